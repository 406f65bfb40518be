"""The task routes: a body in, an outcome out, counted and logged. What happens in between is in pipeline.py."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response, params
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.background import BackgroundTask

from server import bodies, forms
from server.backend import Backend
from server.bodies import BodyRoom
from server.clients import Connection, client_of
from server.context import deadline_of, server_timing, timings_of
from server.errors import DeadlineExceeded, Unavailable
from server.logs import FIELDS
from server.pipeline import Outcome, Pipeline, RankOutcome
from server.schemas import (
    ERRORS,
    Body,
    ItmBody,
    ItmResponse,
    RankBody,
    RankResponse,
    VqaBody,
    VqaResponse,
    rank_forms,
    three_forms,
)
from server.settings import Settings
from server.slowest import RequestRecord
from server.threads import run_on
from server.types import Clock, ServedModel, Timings

log = logging.getLogger(__name__)
BodyT = TypeVar("BodyT", bound=Body)
OutcomeT = TypeVar("OutcomeT", Outcome, RankOutcome)
Walk = Callable[[Callable[[], Awaitable[BodyT]], Timings, float, str], Awaitable[OutcomeT]]
TASK_PATHS = {"/v1/vqa": "vqa", "/v1/itm": "itm", "/v1/rank": "rank"}
SPARE_PARTS = 4  # multipart parts beyond the fields or candidates, so that a repeated one is reported by name


class TaskRoutes:
    """POST /v1/vqa, /v1/itm and /v1/rank."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        settings: Settings,
        backend: Backend,
        parser: Executor,
        room: BodyRoom,
        clock: Clock,
    ) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._backend = backend
        self._parser = parser
        self._room = room
        self._clock = clock

    def router(self, models: Sequence[ServedModel], guards: Sequence[params.Depends]) -> APIRouter:
        """Route the tasks. Bodies are read here, not by FastAPI, so OpenAPI needs their description."""
        named = {task: _default_model(models, task) for task in TASK_PATHS.values()}
        router = APIRouter(prefix="/v1", dependencies=guards, responses=ERRORS, tags=["tasks"])
        described: list[tuple[str, Any, type[BaseModel], dict[str, Any]]] = [
            ("/vqa", self.vqa, VqaResponse, three_forms(VqaBody, named["vqa"])),
            ("/itm", self.itm, ItmResponse, three_forms(ItmBody, named["itm"])),
            ("/rank", self.rank, RankResponse, rank_forms(named["rank"])),
        ]
        for path, route, response, body in described:
            router.post(path, summary=route.__doc__, response_model=response, openapi_extra=body)(route)
        return router

    async def vqa(self, request: Request) -> Response:
        """Answer a question about an image."""
        outcome = await self._walk(request, "vqa", VqaBody, functools.partial(self._pipeline.answer, "vqa"))
        return self._respond(request, outcome, answers=outcome.answers())

    async def itm(self, request: Request) -> Response:
        """Score whether a text matches an image."""
        outcome = await self._walk(request, "itm", ItmBody, functools.partial(self._pipeline.answer, "itm"))
        score, match = outcome.match()
        return self._respond(request, outcome, score=score, match=match)

    async def rank(self, request: Request) -> Response:
        """Rank images for a text, or texts for an image."""
        outcome = await self._walk(request, "rank", RankBody, self._pipeline.rank)
        return self._respond(request, outcome, results=outcome.results)

    async def _walk(self, request: Request, task: str, schema: type[BodyT], walk: Walk[BodyT, OutcomeT]) -> OutcomeT:
        """Walk a request while its client is connected, in one of the client's places.

        Raises: ServerError: why there is no answer. ClientDisconnect: nobody is left to answer.
        """
        timings, connection, client = timings_of(request), Connection(request), client_of(request)
        deadline_s = deadline_of(request, self._settings.deadline_ms)
        began_s = deadline_s
        try:
            async with self._backend.place(client, task), connection:
                began_s = self._clock()
                with self._room.body() as take:
                    return await walk(self._receiver(request, schema, connection, take), timings, deadline_s, client)
        except DeadlineExceeded as error:
            if connection.is_watched or began_s >= deadline_s:  # the body was here, or nobody began to read it in time
                raise
            within_s = min(self._settings.receive_timeout_s, deadline_s - timings.started_s)
            raise DeadlineExceeded("receive_timeout", f"The body did not arrive within {within_s:g} s.") from error
        except asyncio.CancelledError as error:  # by uvicorn, when the drain has taken too long
            raise Unavailable("shutting_down", "The server is shutting down.", retry_after_s=1.0) from error

    def _receiver(
        self, request: Request, schema: type[BodyT], connection: Connection, take: Callable[[int], None]
    ) -> Callable[[], Awaitable[BodyT]]:
        """Return the walk's first step: read a body of any form and validate it."""
        is_rank, max_candidates = schema is RankBody, self._settings.max_candidates

        async def receive() -> BodyT:
            async with asyncio.timeout(self._settings.receive_timeout_s):
                body = await bodies.read(
                    request.stream(),
                    request.headers,
                    max_body_bytes=self._settings.max_body_bytes,
                    accepts_image=not is_rank,
                    take=take,
                )
            connection.watch()
            query = request.scope["query_string"]
            parse = functools.partial(
                forms.parse,
                body,
                query,
                schema,
                max_parts=(max_candidates if is_rank else len(schema.model_fields)) + SPARE_PARTS,
                max_candidates=max_candidates,
            )
            if not forms.takes_long(body, query):
                return parse()
            # Not on the decode threads: a refusal should not wait for one.
            return await run_on(self._parser, parse)

        return receive

    def _respond(self, request: Request, outcome: Outcome | RankOutcome, **result: object) -> Response:
        timings = timings_of(request)
        timings.mark("answer")
        timing_ms = timings.as_ms()
        content = {
            **result,
            "model": outcome.model.name,
            "request_id": request.state.request_id,
            "truncated": outcome.truncated,
            "timing_ms": timing_ms,
        }
        response = Response(to_json(content), headers=server_timing(timing_ms), media_type="application/json")
        response.background = BackgroundTask(self._record_sent, request, response.status_code, outcome)
        return response

    async def _record_sent(self, request: Request, status: int, outcome: Outcome | RankOutcome) -> None:
        """Record an answer after it has been sent, so that nobody waits for that."""
        self.record(request, status, "ok", outcome)

    def record(self, request: Request, status: int, code: str, outcome: Outcome | RankOutcome | None = None) -> None:
        """Count and log a task request that has its response, and perhaps keep it as a slow one; ignore other routes.

        A refused request has no model: which one it would have been is not always known.
        """
        task = TASK_PATHS.get(request.scope["path"])
        if task is None:
            return
        timings, request_id = timings_of(request), request.state.request_id
        model = outcome.model.name if outcome else ""
        elapsed_s = timings.elapsed_s()
        stages_s = dict(timings.stages_s)  # after a 504 a pool thread may still be marking
        stages_ms = {f"{stage}_ms": round(1000 * value, 2) for stage, value in stages_s.items()}
        fields = {"request_id": request_id, "model": model, "status": status, "code": code}
        log.info(task, extra={FIELDS: {**fields, "total_ms": round(1000 * elapsed_s, 2), **stages_ms}})
        self._backend.record(
            RequestRecord(
                request_id=request_id,
                task=task,
                model=model,
                status=status,
                code=code,
                when=datetime.now(UTC),
                total_ms=round(1000 * elapsed_s, 3),
                timing_ms={stage: round(1000 * value, 3) for stage, value in {**stages_s, **timings.parts_s}.items()},
                batch_size=outcome.ran.batch_size if outcome else None,
            )
        )


def _default_model(models: Sequence[ServedModel], task: str) -> str | None:
    return next((model.name for model in models if task in model.tasks), None)
