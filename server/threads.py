"""Work on an executor's threads that ends with the wait for it."""

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def run_on(executor: Executor, work: Callable[[], T], permits: asyncio.Semaphore | None = None) -> T:
    """Run work on a thread, holding one of the permits, and wait for it.

    If the caller is cancelled before a thread has begun, the work never runs, and what it refers to (an image) is
    released at once, although the executor keeps an empty call in its queue. Work that has begun runs to its end, and
    only then releases its permit.
    """
    if permits:
        await permits.acquire()
    box = [work]
    del work
    try:
        return await _submitted(executor, lambda: box[0](), permits)  # noqa: PLW0108 looked up when it runs
    except asyncio.CancelledError:
        box.clear()
        raise


def _submitted(executor: Executor, work: Callable[[], T], permits: asyncio.Semaphore | None) -> asyncio.Future[T]:
    future = executor.submit(work)
    if permits:
        future.add_done_callback(functools.partial(_give_back, permits, asyncio.get_running_loop()))
    return asyncio.wrap_future(future)


def _give_back(permits: asyncio.Semaphore, loop: asyncio.AbstractEventLoop, _: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed
        loop.call_soon_threadsafe(permits.release)
