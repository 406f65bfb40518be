"""Work on an executor's threads, for as long as somebody waits for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def run_on(executor: Executor, work: Callable[[], T]) -> T:
    """Run work on a thread, and wait for it.

    An executor keeps what it has not begun until a thread comes to it, though nobody waits any more: of work that is
    cancelled before then, and of the pictures that it is about, nothing is kept here.
    """
    box = [work]
    del work
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, lambda: box[0]())  # noqa: PLW0108 looked up then
    except asyncio.CancelledError:
        box.clear()
        raise
