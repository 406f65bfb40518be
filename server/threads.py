"""Work on an executor's threads, for as long as somebody waits for it."""

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def run_on(executor: Executor, work: Callable[[], T], permits: asyncio.Semaphore | None = None) -> T:
    """Run work on a thread, with a permit if there are some, and wait for it.

    An executor keeps what it has not begun until a thread comes to it, though nobody waits any more: of work that is
    cancelled before then, and of the pictures that it is about, nothing is kept here. What has begun is not ended by
    that: its permit is given back when the thread is done with it.
    """
    if permits:
        await permits.acquire()
    box = [work]
    del work
    try:
        return await _submitted(executor, lambda: box[0](), permits)  # noqa: PLW0108 looked up then
    except asyncio.CancelledError:
        box.clear()
        raise


def _submitted(executor: Executor, work: Callable[[], T], permits: asyncio.Semaphore | None) -> asyncio.Future[T]:
    future = executor.submit(work)
    if permits:
        future.add_done_callback(functools.partial(_give_back, permits, asyncio.get_running_loop()))
    return asyncio.wrap_future(future)


def _give_back(permits: asyncio.Semaphore, loop: asyncio.AbstractEventLoop, _: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
        loop.call_soon_threadsafe(permits.release)
