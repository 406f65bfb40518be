"""Two servers behind a proxy, restarted under load."""

import asyncio
import shutil

import pytest

from loadtest.launch import started
from loadtest.trials import rollout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("haproxy"), reason="no haproxy here: make tools installs it")
def test_no_request_fails_while_servers_restart_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a short run; how long they take is for a machine that does nothing else."""
    monkeypatch.setattr(rollout, "SECONDS", 24.0)
    monkeypatch.setattr(rollout, "RESTARTS_AT_S", (2.0, 10.0))
    monkeypatch.setattr(rollout, "BUSY", 0.2)

    with started(rollout.FLAGS) as own:
        figures, checks = asyncio.run(rollout.run(own))

    assert all(check.holds for check in checks if not check.says.startswith("slowest")), checks
    assert figures["with_one_ms"].p50 > 0
