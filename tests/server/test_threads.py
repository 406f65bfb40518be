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


def test_permit_of_work_that_is_cancelled_is_given_back_when_its_thread_is_done() -> None:
    """Or ranks that nobody waits for any more could have all threads; what had not begun gives it back at once."""
    begun, end = threading.Event(), threading.Event()

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            permits = asyncio.Semaphore(2)
            running = asyncio.create_task(run_on(executor, lambda: begun.set() or end.wait(10), permits))
            await asyncio.to_thread(begun.wait, 10)
            waiting = asyncio.create_task(run_on(executor, lambda: 7, permits))
            await asyncio.sleep(0)
            assert permits.locked()
            for asked, is_free in ((running, False), (waiting, True)):
                asked.cancel()
                await asyncio.wait([asked])
                await asyncio.sleep(0)
                assert permits.locked() is not is_free
            end.set()
            for _ in range(2):
                await permits.acquire()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_work_is_done_and_its_failure_told() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            assert await run_on(executor, lambda: 7) == 7
            with pytest.raises(ZeroDivisionError):
                await run_on(executor, lambda: 1 // 0)

    asyncio.run(main())
