"""What the soak asks and how it tells that memory grows; then a soak of seconds."""

import asyncio
import contextlib
import io
import itertools
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

from loadtest.capacity import Capacity
from loadtest.launch import started
from loadtest.trials import soak
from loadtest.trials.process import Held


def test_growth_is_the_slope_once_the_server_has_settled() -> None:
    """What is taken while caches fill does not count, a step in the middle does."""
    filling = [(minute / 2, Held(500 + 50 * minute, 20, 12)) for minute in range(10)]
    flat = [(5 + minute / 2, Held(1_000, 20, 12)) for minute in range(31)]
    rising = [(minute, Held(one.resident_mb + 2 * minute, 20, 12)) for minute, one in flat]
    stepping = [(minute, Held(one.resident_mb + 120 * (minute > 12), 20, 12)) for minute, one in flat]

    assert soak.growth([*filling, *flat]) == pytest.approx(0, abs=1e-9)
    assert soak.growth([*filling, *rising]) == pytest.approx(2)
    assert soak.growth([*filling, *stepping]) > soak.MB_PER_MINUTE


def test_watching_leaves_the_loop_to_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is read in another thread."""
    threads = []

    def held(_: int) -> Held:
        threads.append(threading.get_ident())
        return Held(1.0, 1, 1)

    monkeypatch.setattr(soak, "held", held)
    monkeypatch.setattr(soak, "EVERY_S", 0.0)
    seen: list[soak.Seen] = []

    async def watch() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(soak._watch(0, seen), 0.1)

    asyncio.run(watch())

    assert seen
    assert threading.get_ident() not in threads


def test_mixed_requests_differ_in_size_length_and_bytes() -> None:
    """Nothing is decoded before; most grids and lengths come up."""
    requests = list(itertools.islice(soak.mixed(), 200))

    assert len({request.body for request in requests}) == len(requests)
    assert len({Image.open(io.BytesIO(request.body)).size for request in requests}) > soak.PICTURES / 2
    lengths = {len(parse_qs(urlsplit(request.path).query)["question"][0].split()) for request in requests}
    assert min(lengths) == 6
    assert max(lengths) > 40
    assert len(lengths) > 20


@pytest.mark.slow
def test_soak_answers_everything_and_tells_how_busy_the_engine_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seconds at 70 % of what is said to be the capacity."""

    async def capacity(*_: Any, **__: Any) -> Capacity:
        return Capacity(
            rate_per_s=20, share=0.99, confirmed_share=1.0, confirmed_requests=500, runs=[], flaws=["it was late"]
        )

    monkeypatch.setattr(soak, "capacity", capacity)
    monkeypatch.setattr(soak, "MINUTES", 0.05)
    monkeypatch.setattr(soak, "SETTLED_MINUTES", 0.01)
    monkeypatch.setattr(soak, "EVERY_S", 0.2)

    with started() as own:
        figures, checks = asyncio.run(soak.run(own))

    assert 0 < figures["engine_busy_ratio"] < 1
    assert figures["capacity_confirmed"] == {"share": 1.0, "requests": 500}
    assert figures["capacity_flaws"] == ["it was late"]
    assert figures["outcomes"] == {"ok": round(3 * figures["offered_per_s"])}
    assert checks[0].holds
