"""The walk of a request: receive, admit, decode, preprocess, tokenize, queue, inference, answer.

`Pipeline.answer` walks one image and one text, `Pipeline.rank` many. Knows no HTTP.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from models.answers import RankedAnswer, matching_score, sigmoid, sigmoids, top_answers
from server.backend import Backend, Permit
from server.errors import DeadlineExceeded, NotFound
from server.preparation import Pair, Preparation
from server.schemas import Candidate, ItmBody, RankBody, VqaBody
from server.threads import run_on
from server.types import Clock, EntryResult, Logits, ServedModel, Timings, Urgency

T = TypeVar("T")
MATCH_FROM = 0.5  # the least score of a match
KEY_END = 256  # bytes or characters at the end of an image or a text, by which a retry is recognised
PREPARED_AHEAD = 4  # candidates of a rank decoded before the engine asks for them


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The logits of one pair, and what they mean."""

    model: ServedModel
    truncated: bool
    logits: Logits
    top_k: int
    ran: EntryResult

    def answers(self) -> list[RankedAnswer]:
        """Return the best answers to a question."""
        return top_answers(self.logits["vqa_logits"], self.model.artifact.labels, self.top_k)

    def match(self) -> tuple[float, bool]:
        """Return the score of a pair, from the matching head or, if there is none, the ranking head."""
        if "itm_logits" in self.logits:
            score = matching_score(self.logits["itm_logits"])
        else:
            score = sigmoid(float(self.logits["rank_logits"][0]))
        return score, score >= MATCH_FROM


@dataclass(frozen=True, slots=True)
class RankedCandidate:
    index: int
    id: str | None
    score: float
    logit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOutcome:
    """Candidates, best first."""

    model: ServedModel
    truncated: bool
    results: list[RankedCandidate]
    ran: EntryResult  # of the last slice


class Pipeline:
    """Walks requests through admission, preparation, the queue and the model."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        backend: Backend,
        preparation: Preparation,
        pool: ThreadPoolExecutor,
        decode_threads: int,
        clock: Clock,
    ) -> None:
        self._models = models
        self._backend = backend
        self._preparation = preparation
        self._pool = pool  # its threads are the decode permits: they bound how many images are open at once
        self._clock = clock
        # All decode threads but one, so that a question's image never waits for those of a long rank.
        self._rank_permits = asyncio.Semaphore(max(1, decode_threads - 1))

    async def answer(
        self,
        task: str,
        receive: Callable[[], Awaitable[VqaBody | ItmBody]],
        timings: Timings,
        deadline_s: float,
        client: str = "",
    ) -> Outcome:
        """Answer one question, or match one text.

        Raises: ServerError: why there is no answer.
        """
        async with self._until(deadline_s):
            body = await receive()
            timings.mark("receive")
            model = self._choose(body.model, task)
            text = body.question if isinstance(body, VqaBody) else body.text
            key = _retry_key(client, body)
            admitted = self._backend.admit(
                model.name, Urgency.INTERACTIVE, 1, deadline_s=deadline_s, client=client, key=key
            )
            async with admitted as permit:
                timings.mark("admit")
                pair = await self._in_pool(lambda: self._preparation.pair(model, body.image, text, timings))
                result = await permit.run(pair.features, _key(model, pair))
                _mark_runs(timings, [result])
                top_k = body.top_k if isinstance(body, VqaBody) else 0
                truncated = pair.features.text.truncated
                return Outcome(model=model, truncated=truncated, logits=result.logits, top_k=top_k, ran=result)

    async def rank(
        self,
        receive: Callable[[], Awaitable[RankBody]],
        timings: Timings,
        deadline_s: float,
        client: str = "",
    ) -> RankOutcome:
        """Rank candidates, best first, preparing them just in time.

        Raises: ServerError: why there is no answer.
        """
        async with self._until(deadline_s):
            body = await receive()
            timings.mark("receive")
            model = self._choose(body.model, "rank")
            count = len(body.candidates)
            key = _retry_key(client, body)
            admitted = self._backend.admit(
                model.name, Urgency.RANK, count, deadline_s=deadline_s, client=client, key=key
            )
            async with admitted as permit:
                timings.mark("admit")
                pixels = self._preparation.budget()
                first = await self._in_pool(lambda: self._preparation.first_of(model, body, timings, pixels))

                def prepare(index: int) -> Pair:
                    return self._preparation.candidate(model, body, index, first, pixels)

                results, truncated = await self._run_slices(model, first, count, prepare, permit)
                ended_last = max(results, key=lambda result: result.ended_s)
                _mark_runs(timings, results)
                ranked = _ranked(body.candidates, results)[: body.top_k]
                return RankOutcome(model=model, truncated=truncated, results=ranked, ran=ended_last)

    async def _run_slices(
        self, model: ServedModel, first: Pair, count: int, prepare: Callable[[int], Pair], permit: Permit
    ) -> tuple[list[EntryResult], bool]:
        """Queue each candidate as an entry, preparing only a few ahead of the engine."""
        results: dict[int, EntryResult] = {}
        truncated = first.features.text.truncated
        indices = iter(range(count))

        async def work() -> None:
            nonlocal truncated
            for index in indices:
                pair = first
                if index:
                    pair = await self._in_pool(functools.partial(prepare, index), self._rank_permits)
                truncated |= pair.features.text.truncated
                results[index] = await permit.run(pair.features, _key(model, pair))

        try:
            async with asyncio.TaskGroup() as group:
                ahead = model.slice_size + PREPARED_AHEAD
                for _ in range(min(count, ahead)):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        return [results[index] for index in range(count)], truncated

    def _choose(self, name: str | None, task: str) -> ServedModel:
        for model in self._models:
            if task in model.tasks and name in (None, model.name):
                return model
        serving = [model.name for model in self._models if task in model.tasks]
        if not serving:
            raise NotFound("unknown_model", f"No model on this server can do {task}: none has a head for it.")
        raise NotFound(
            "unknown_model", f"No model named {(name or '')[:100]!r} serves {task}; these do: {', '.join(serving)}."
        )

    @contextlib.asynccontextmanager
    async def _until(self, deadline_s: float) -> AsyncIterator[None]:
        """Bound everything inside by the request's deadline; `receive` may have a shorter limit of its own."""
        try:
            async with asyncio.timeout(deadline_s - self._clock()):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded from error

    async def _in_pool(self, work: Callable[[], T], permits: asyncio.Semaphore | None = None) -> T:
        return await run_on(self._pool, work, permits)


def _mark_runs(timings: Timings, results: Sequence[EntryResult]) -> None:
    """Mark the start of the first run and the end of the last, and sum the parts of all runs."""
    timings.mark("queue", min(result.started_s for result in results))
    timings.mark("inference", max(result.ended_s for result in results))
    # One result for each run, by when it ended: of those, the one that started first, as it saw the whole run.
    runs = {result.ended_s: result for result in sorted(results, key=lambda result: result.started_s, reverse=True)}
    for result in runs.values():
        for part, value in result.parts_s.items():
            timings.parts_s[part] = timings.parts_s.get(part, 0.0) + value


def _retry_key(client: str, body: VqaBody | ItmBody | RankBody) -> Hashable:
    """Return the key by which a request is recognised when it comes back: client, task, and the end of each part.

    Units: a microsecond or two.
    """

    def end_of(content: str | bytes | None) -> Hashable:
        return content and (len(content), content[-KEY_END:])

    match body:
        case RankBody():
            items = (body.query, body.candidates[-1])
            return client, len(body.candidates), *(end_of(part) for one in items for part in (one.text, one.image))
        case VqaBody():
            return client, "vqa", end_of(body.question), end_of(body.image)
        case ItmBody():
            return client, "itm", end_of(body.text), end_of(body.image)


def _key(model: ServedModel, pair: Pair) -> Hashable:
    """Return a key that is equal only for entries that ask for the same."""
    return model.name, pair.digest, pair.features.text.input_ids.tobytes()


def _ranked(candidates: Sequence[Candidate], results: Sequence[EntryResult]) -> list[RankedCandidate]:
    logits = [float(result.logits["rank_logits"][0]) for result in results]
    scores = sigmoids(logits)
    order = sorted(range(len(logits)), key=lambda index: -logits[index])  # stable: equal logits keep their order
    return [RankedCandidate(index, candidates[index].id, scores[index], logits[index]) for index in order]
