"""Fixtures and settings of every test."""

import os
import signal

import pytest
from hypothesis import settings

# The same examples each time: what fails on one machine fails on another. HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("repeatable", derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# A shell starts what runs in the background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets for the processes that it starts is not for those of the next test."""
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # which is unset, and is put back
