"""A front: its share of what is for all of them, and which engine processes it takes answers from."""

import asyncio
from typing import Any

import pytest

from server.front import Front, share_of
from server.settings import Settings


@pytest.mark.parametrize(
    ("workers", "bodies_mb", "threads", "cache_mb"), [(1, 512, 6, 64), (4, 128, 2, 16), (6, 512 / 6, 1, 64 / 6)]
)
def test_share_of_a_front_is_a_part_of_what_all_may_have(
    workers: int, bodies_mb: float, threads: int, cache_mb: float
) -> None:
    """Memory is divided exactly; of threads each has one at least."""
    settings = Settings(workers=workers, max_bodies_mb=512, decode_threads=6, decoded_cache_mb=64)

    share = share_of(settings)

    assert share.max_bodies_mb == pytest.approx(bodies_mb)
    assert (share.decode_threads, share.decoded_cache_mb) == (threads, pytest.approx(cache_mb))


class Stopped:
    """A server that remembers whether it was told to end."""

    should_exit = force_exit = False


def test_front_whose_artifact_was_replaced_ends_and_takes_no_answer_by_old_labels() -> None:
    """The first engine process says what the front serves; one that serves another artifact does not suit."""

    async def scenario() -> None:
        described: list[list[dict[str, Any]]] = [[{"identity": identity}] for identity in ("one", "one", "other")]
        front, server = Front(Settings(), []), Stopped()
        front._server = server

        assert front._suits(described[0])
        assert front._suits(described[1])
        assert not server.should_exit
        assert not front._suits(described[2])
        assert server.should_exit
        assert server.force_exit

    asyncio.run(scenario())
