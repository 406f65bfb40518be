"""The walk behind HTTP, with an engine whose logits depend on its input: each request gets its own answer, in order."""

import asyncio
import base64
import contextlib
import hashlib
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from factories import encoded, noise
from fakes import HeldEngine, SplitBackend, artifact, latency, served

from models.batch import Features
from models.text import TextEncoder, TextTokens
from server import forms, preparation
from server.admission import Admission
from server.app import create_app
from server.backend import Backend, LocalBackend
from server.metrics import Metrics
from server.settings import Settings
from server.types import Clock, EngineOutput, LoadedModel

PATIENCE_S = 30.0
PNG = encoded(noise(64, 64), "PNG")
IMAGE = base64.b64encode(PNG).decode()
COLORS = ("red", "blue", "green", "yellow")
LAYOUTS = {"one process": False, "a front": True}


class TellingEngine(HeldEngine):
    """Computes its logits from the sum of a row's token ids, which padding does not change, and a number of its own."""

    def __init__(self, own: int = 0, *, heads: Sequence[str] = ("vqa_logits", "itm_logits", "rank_logits")) -> None:
        super().__init__()
        self.own = own
        self.heads = heads
        self.sums: list[int] = []
        self.threads: set[int] = set()

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        output = super().run(batch)
        self.threads.add(threading.get_ident())
        sums = np.array([pair.text.input_ids.sum() for pair in batch])
        self.sums += sums.tolist()
        numbers = (sums + self.own)[:, np.newaxis]
        logits = {
            "vqa_logits": np.where(numbers % self.labels == np.arange(self.labels), 9.0, -9.0),
            "itm_logits": numbers / 1000 * [0, 1],
            "rank_logits": numbers / 1000,
        }
        return EngineOutput({head: logits[head].astype(np.float32) for head in self.heads}, output.parts_s)


def number_of(text: str) -> int:
    """Add a text's token ids up, as the engine does."""
    return int(artifact().text_encoder.encode(text).input_ids.sum())


def answer_to(text: str, own: int = 0) -> str:
    """Return what an engine answers to a question."""
    labels = artifact().labels
    return labels[(number_of(text) + own) % len(labels)]


class Walk:
    """A server without sockets, and what is asked of it."""

    def __init__(self, client: httpx.AsyncClient, metrics: Metrics) -> None:
        self.client = client
        self._metrics = metrics

    def ask(self, task: str, headers: dict[str, str] | None = None, **body: Any) -> "asyncio.Task[httpx.Response]":
        return asyncio.create_task(self.client.post(f"/v1/{task}", json=body, headers=headers))

    async def answer(self, question: str, **body: Any) -> str:
        response = await self.ask("vqa", image=IMAGE, question=question, **body)
        return str(response.json()["answers"][0]["answer"])

    async def occupy(self, engine: HeldEngine) -> "asyncio.Task[httpx.Response]":
        """Hold the engine with a question of its own, so that what comes next waits in the queue."""
        engine.may_run.clear()
        asked = self.ask("vqa", image=IMAGE, question="is it held?")
        await until(engine.has_begun.is_set)
        return asked

    def queued(self) -> float:
        return self.value("vilt_queue_entries")

    def joined(self) -> float:
        """Count the entries that wait for the run of another."""
        return self.value("vilt_cache_hits_total", cache="in_flight")

    def value(self, name: str, **labels: str) -> float:
        return self._metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def walking(
    models: Sequence[LoadedModel], *, is_front: bool = False, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[Walk]:
    """Serve fake models, with the engine in this process or behind a front."""
    made, metrics = Settings(decode_threads=4, **settings), Metrics()
    clock = clock or asyncio.get_running_loop().time
    local = LocalBackend(made, models, Admission(1024, metrics, clock), metrics, clock)
    backend: Backend = SplitBackend(local, models) if is_front else local
    transport = httpx.ASGITransport(create_app(made, models, backend))
    async with (
        backend.running(),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE_S) as client,
    ):
        try:
            yield Walk(client, metrics)
        finally:
            for model in models:
                model.engine.may_run.set()  # or a failed test would wait for it


async def until(has_happened: Callable[[], bool]) -> None:
    while not has_happened():  # noqa: ASYNC110 what happens elsewhere gives no event to wait for
        await asyncio.sleep(0)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


@pytest.mark.parametrize("is_front", LAYOUTS.values(), ids=LAYOUTS)
def test_questions_about_one_picture_in_flight_at_once_get_their_own_answers(is_front: bool) -> None:
    """They share the decoded image, and nothing else."""
    questions = [f"how many {color} stars are there?" for color in COLORS]
    expected = [answer_to(question) for question in questions]
    assert len(set(expected)) == len(questions)

    async def scenario() -> None:
        engine = TellingEngine()
        async with walking([served(engine)], is_front=is_front) as walk:
            held = await walk.occupy(engine)
            asked = [asyncio.create_task(walk.answer(question)) for question in questions]
            await until(lambda: walk.queued() + walk.joined() == len(questions))
            engine.may_run.set()

            assert await asyncio.gather(*asked) == expected
            assert (await held).json()["answers"][0]["answer"] == answer_to("is it held?")

    play(scenario)


@pytest.mark.parametrize("is_front", LAYOUTS.values(), ids=LAYOUTS)
def test_kept_answer_is_given_to_the_same_question_alone(is_front: bool) -> None:
    """The image is the same, the text is not; asked again, each question gets its own answer without a run."""
    questions = [f"is there a {color} circle?" for color in COLORS]

    async def scenario() -> None:
        engine = TellingEngine()
        async with walking([served(engine)], is_front=is_front, logits_cache_entries=9) as walk:
            answers = [await walk.answer(question) for question in 2 * questions]

            assert answers == 2 * [answer_to(question) for question in questions]
            assert walk.value("vilt_cache_hits_total", cache="logits") == len(questions) == len(engine.sums)

    play(scenario)


@pytest.mark.parametrize("is_front", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kept", [0, 9], ids=["in flight", "kept"])
def test_same_question_to_two_models_is_answered_by_each(is_front: bool, kept: int) -> None:
    """Neither joins the other's run, nor finds the other's answer kept."""
    question = "what color is the star?"

    async def scenario() -> None:
        engines = {"a": TellingEngine(0), "b": TellingEngine(1)}
        models = [served(engine, name=name) for name, engine in engines.items()]
        async with walking(models, is_front=is_front, logits_cache_entries=kept) as walk:
            answers = []
            if kept:
                answers = [await walk.answer(question, model=name) for name in engines]
            else:
                await walk.occupy(engines["a"])
                asked = [asyncio.create_task(walk.answer(question, model=name)) for name in engines]
                await until(lambda: walk.queued() + walk.joined() == len(engines))
                engines["a"].may_run.set()
                answers = await asyncio.gather(*asked)

            assert answers == [answer_to(question, engine.own) for engine in engines.values()]
            assert answers[0] != answers[1]

    play(scenario)


class HoldingEncoder:
    """Encodes, but for one text only when it may; remembers the threads that it was asked on."""

    def __init__(self, encoder: TextEncoder, held: str = "") -> None:
        self._encoder = encoder
        self._held = held
        self.may_go: Future[None] = Future()
        self.threads: set[int] = set()

    def encode(self, text: str) -> TextTokens:
        self.threads.add(threading.get_ident())
        if text == self._held:
            self.may_go.result(PATIENCE_S)
        return self._encoder.encode(text)


def encoding_by(model: LoadedModel, encoder: HoldingEncoder) -> LoadedModel:
    return replace(model, artifact=replace(model.artifact, text_encoder=encoder))


@pytest.mark.parametrize("is_front", LAYOUTS.values(), ids=LAYOUTS)
def test_logits_of_a_rank_belong_to_their_candidates_in_whatever_order_they_are_run(is_front: bool) -> None:
    """The second text is encoded last and so run last; each has the logit that is its own."""
    texts = [f"a {color} {shape}" for color in COLORS for shape in ("star", "cross", "circle")]
    assert len({number_of(text) for text in texts}) == len(texts)

    async def scenario() -> None:
        engine, encoder = TellingEngine(), HoldingEncoder(artifact().text_encoder, held=texts[1])
        async with walking([encoding_by(served(engine), encoder)], is_front=is_front) as walk:
            candidates = [{"id": text, "text": text} for text in texts]
            asked = walk.ask("rank", query={"image": IMAGE}, candidates=candidates)
            await until(lambda: len(engine.sums) == len(texts) - 1)
            encoder.may_go.set_result(None)
            results = (await asked).json()["results"]

            logits = {result["index"]: result["logit"] for result in results}
            assert logits == pytest.approx({index: number_of(text) / 1000 for index, text in enumerate(texts)})
            assert [result["id"] for result in results] == sorted(texts, key=number_of, reverse=True)
            assert engine.sums[-1] == number_of(texts[1])

    play(scenario)


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (4, 4), (99, 4), (None, 4)])
def test_rank_returns_the_best_that_were_asked_for(top_k: int | None, count: int) -> None:
    """All of them unless told; never more than there are."""

    async def scenario() -> None:
        async with walking([served(TellingEngine())]) as walk:
            candidates = [{"text": f"a {color} star"} for color in COLORS]
            asked = {"query": {"image": IMAGE}, "candidates": candidates}
            results = (await walk.ask("rank", **asked, **({"top_k": top_k} if top_k else {}))).json()["results"]

            best = sorted(range(len(COLORS)), key=lambda index: -number_of(f"a {COLORS[index]} star"))
            assert [result["index"] for result in results] == best[:count]

    play(scenario)


@pytest.mark.parametrize("longest", [None, 0, 2, 3])
def test_rank_says_if_any_of_its_texts_was_truncated(longest: int | None) -> None:
    """Whichever candidate has it."""
    texts = [f"a {color} star" if index != longest else "a star " * 100 for index, color in enumerate(COLORS)]

    async def scenario() -> None:
        async with walking([served(TellingEngine())]) as walk:
            asked = walk.ask("rank", query={"image": IMAGE}, candidates=[{"text": text} for text in texts])
            assert (await asked).json()["truncated"] is (longest is not None)

    play(scenario)


@pytest.mark.parametrize("heads", [("itm_logits", "rank_logits"), ("rank_logits",)], ids=["matching", "ranking alone"])
@pytest.mark.parametrize("logit", [2.0, -2.0])
def test_match_is_scored_by_the_matching_head_or_where_there_is_none_the_ranking_one(
    heads: tuple[str, ...], logit: float
) -> None:
    """With either head, a positive logit is a match and a negative one is not."""
    text = "a red star"

    async def scenario() -> None:
        engine = TellingEngine(int(1000 * logit) - number_of(text), heads=heads)
        async with walking([served(engine)]) as walk:
            found = (await walk.ask("itm", image=IMAGE, text=text)).json()

            assert found["score"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
            assert found["match"] is (logit > 0)

    play(scenario)


@pytest.mark.parametrize("is_front", LAYOUTS.values(), ids=LAYOUTS)
def test_ranks_wait_for_questions_and_take_turns_with_other_clients_ranks(is_front: bool) -> None:
    """A question that arrives after two ranks runs first; then the ranks run a candidate each in turn."""
    many, few = ([f"a {color} {shape}" for color in COLORS] for shape in ("star", "circle"))
    few, question = few[:2], "is there a cross?"
    keys = [{"Authorization": f"Bearer {key}"} for key in ("one", "two")]

    async def scenario() -> None:
        engine = TellingEngine()
        models = [served(engine, max_batch_size=1, runs=latency(per_token_s=0.001))]
        async with walking(models, is_front=is_front, api_key="one,two") as walk:
            walk.client.headers.update(keys[0])
            await walk.occupy(engine)
            asked = []
            for key, texts in zip(keys, (many, few), strict=True):
                queued, candidates = walk.queued(), [{"text": text} for text in texts]
                asked.append(walk.ask("rank", key, query={"image": IMAGE}, candidates=candidates))
                await until(lambda: walk.queued() == queued + len(texts))  # noqa: B023 used before the next
            asked.append(walk.ask("vqa", image=IMAGE, question=question))
            await until(lambda: walk.queued() == len(many) + len(few) + 1)
            engine.may_run.set()
            assert {response.status_code for response in await asyncio.gather(*asked)} == {200}

            first, *ranked = engine.sums[1:]
            assert first == number_of(question)
            of_few = {number_of(text) for text in few}
            assert ["few" if number in of_few else "many" for number in ranked] == ["many", "few"] * 2 + ["many"] * 2
            assert sorted(ranked) == sorted(map(number_of, [*many, *few]))

    play(scenario)


@pytest.mark.parametrize("is_front", LAYOUTS.values(), ids=LAYOUTS)
def test_event_loop_neither_parses_decodes_resizes_encodes_nor_runs_a_model(
    is_front: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any of it there would delay all other requests, and health checks."""
    threads: dict[str, set[int]] = {}

    def watch(module: Any, name: str) -> None:
        original = getattr(module, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            threads.setdefault(name, set()).add(threading.get_ident())
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, watched)

    watch(forms, "parse")
    for name in ("_image_bytes", "identify", "load", "to_patches"):
        watch(preparation, name)
    monkeypatch.setattr(preparation, "hashlib", SimpleNamespace(sha256=hashlib.sha256))
    watch(preparation.hashlib, "sha256")

    async def scenario() -> None:
        engine, encoder = TellingEngine(), HoldingEncoder(artifact().text_encoder)
        two = [{"image": base64.b64encode(encoded(noise(40, 40, seed=seed), "PNG")).decode()} for seed in (1, 2)]
        async with walking([encoding_by(served(engine), encoder)], is_front=is_front) as walk:
            for asked in (
                walk.ask("vqa", image=IMAGE, question="a star?"),
                walk.ask("itm", image=IMAGE, text="a star"),
                walk.ask("rank", query={"text": "a star"}, candidates=two),
                walk.ask("rank", query={"image": IMAGE}, candidates=[{"text": "a star"}, {"text": "a cross"}]),
            ):
                assert (await asked).status_code == 200
        threads.update(encode=encoder.threads, run=engine.threads)

    play(scenario)

    assert len(threads) == 8
    for name, seen in threads.items():
        assert threading.get_ident() not in seen, name
