"""The walk: whose work has which threads."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from factories import encoded, noise
from fakes import FakeEngine, served

from server.admission import Admission
from server.backend import LocalBackend
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.preparation import Limits, Pair, Preparation
from server.schemas import Candidate, Item, RankBody, VqaBody
from server.settings import Settings
from server.types import Timings

PNG = encoded(noise(64, 64), "PNG")
LIMITS = Limits(max_image_pixels=10**6, max_request_pixels=10**6, max_text_chars=100, decoded_cache_bytes=0)


def test_question_is_decoded_while_abandoned_ranks_are_still_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread goes on with a picture though its rank has gone; one thread is left to questions all the same."""
    begun, end = threading.Semaphore(0), threading.Event()

    async def scenario(pool: ThreadPoolExecutor) -> float:
        models, metrics, clock = [served(FakeEngine())], Metrics(), time.perf_counter
        backend = LocalBackend(Settings(), models, Admission(100, metrics, clock), metrics, clock)
        preparation = Preparation(LIMITS, backend.count_decoded_hit)
        pipeline = Pipeline(models, backend=backend, preparation=preparation, pool=pool, decode_threads=2, clock=clock)

        def prepare(*_: object) -> Pair:
            begun.release()
            end.wait(10)
            raise AssertionError("nobody waits for it")

        async def rank() -> RankBody:
            return RankBody(query=Item(text="a star"), candidates=[Candidate(image=PNG)] * 4)

        async def ask() -> VqaBody:
            return VqaBody(image=PNG, question="how many?")

        monkeypatch.setattr(preparation, "candidate", prepare)
        async with backend.running():
            for may_begin in (True, False):
                ranking = asyncio.create_task(pipeline.rank(rank, Timings(), clock() + 60))
                assert await asyncio.to_thread(begun.acquire, timeout=10 if may_begin else 0.2) is may_begin
                ranking.cancel()
                await asyncio.wait([ranking])
            outcome = await pipeline.answer("vqa", ask, Timings(), clock() + 10)
            end.set()
            return outcome.answers()[0].score

    with ThreadPoolExecutor(2) as pool:
        assert asyncio.run(scenario(pool)) > 0
