"""Work on threads: who no longer waits keeps nothing alive."""

import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.threads import run_on


class Picture:
    """Something large."""


def test_work_that_is_cancelled_before_its_turn_keeps_nothing() -> None:
    """A thread may come to it in a minute: until then nobody counts its picture."""
    begun, end = threading.Event(), threading.Event()

    async def ask(executor: ThreadPoolExecutor) -> weakref.ref[Picture]:
        picture = Picture()
        seen = weakref.ref(picture)
        asked = asyncio.create_task(run_on(executor, lambda held=picture: held))
        del picture
        await asyncio.sleep(0)  # it is in the executor's queue
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        return seen

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            busy = asyncio.create_task(run_on(executor, lambda: begun.set() or end.wait(10)))
            await asyncio.to_thread(begun.wait, 10)
            seen = await ask(executor)
            assert seen() is None
            end.set()
            await busy

    asyncio.run(main())


def test_work_is_done_and_its_failure_told() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            assert await run_on(executor, lambda: 7) == 7
            with pytest.raises(ZeroDivisionError):
                await run_on(executor, lambda: 1 // 0)

    asyncio.run(main())
