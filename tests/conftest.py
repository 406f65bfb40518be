"""What is every test's."""

import pytest


@pytest.fixture(autouse=True)
def _own_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets for the processes that it starts is not for those of the next test."""
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # which is unset, and is put back
