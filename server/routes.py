"""The task routes: a body in, an outcome out, counted and logged. What happens in between is pipeline.py's."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from server import bodies
from server.context import deadline_of, server_timing, timings_of
from server.logs import FIELDS
from server.metrics import Metrics
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
from server.types import Timings

log = logging.getLogger(__name__)
BodyT = TypeVar("BodyT", bound=Body)
TASK_PATHS = {"/v1/vqa": "vqa", "/v1/itm": "itm", "/v1/rank": "rank"}
SPARE_PARTS = 4  # multipart parts beside a body's fields or a rank's candidates, so that a wrong one is named


class TaskRoutes:
    """POST /v1/vqa, /v1/itm and /v1/rank."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        metrics: Metrics,
        pool: ThreadPoolExecutor,
        deadline_ms: float,
        max_body_bytes: int,
        max_candidates: int,
    ) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        self._pool = pool
        self._deadline_ms = deadline_ms
        self._max_body_bytes = max_body_bytes
        self._max_candidates = max_candidates

    def router(self) -> APIRouter:
        """Route the tasks, with bodies described for OpenAPI: they are read here, not by FastAPI."""
        router = APIRouter(prefix="/v1", responses=ERRORS, tags=["tasks"])
        described: list[tuple[str, Any, type[BaseModel], dict[str, Any]]] = [
            ("/vqa", self.vqa, VqaResponse, three_forms(VqaBody)),
            ("/itm", self.itm, ItmResponse, three_forms(ItmBody)),
            ("/rank", self.rank, RankResponse, rank_forms()),
        ]
        for path, route, response, forms in described:
            router.post(path, summary=route.__doc__, response_model=response, openapi_extra=forms)(route)
        return router

    async def vqa(self, request: Request) -> Response:
        """Answer a question about an image."""
        outcome = await self._pipeline.answer("vqa", self._receiver(request, VqaBody), *self._clock_of(request))
        return self._respond(request, outcome, answers=[asdict(answer) for answer in outcome.answers()])

    async def itm(self, request: Request) -> Response:
        """Say whether a text belongs to an image."""
        outcome = await self._pipeline.answer("itm", self._receiver(request, ItmBody), *self._clock_of(request))
        score, match = outcome.match()
        return self._respond(request, outcome, score=score, match=match)

    async def rank(self, request: Request) -> Response:
        """Rank images for a text, or texts for an image."""
        outcome = await self._pipeline.rank(self._receiver(request, RankBody), *self._clock_of(request))
        return self._respond(request, outcome, results=[asdict(result) for result in outcome.results])

    def _clock_of(self, request: Request) -> tuple[Timings, float]:
        return timings_of(request), deadline_of(request, self._deadline_ms)

    def _receiver(self, request: Request, schema: type[BodyT]) -> Callable[[], Awaitable[BodyT]]:
        """Make the walk's first step: read a body of any form and hold it to its schema."""
        is_rank = schema is RankBody

        async def receive() -> BodyT:
            body = await bodies.read(
                request.stream(),
                request.headers,
                max_body_bytes=self._max_body_bytes,
                max_parts=(self._max_candidates if is_rank else len(schema.model_fields)) + SPARE_PARTS,
                accepts_image=not is_rank,
            )
            parse = functools.partial(bodies.parse, body, dict(request.query_params), schema)
            if body.form == "json":  # a large one takes milliseconds
                return await asyncio.get_running_loop().run_in_executor(self._pool, parse)
            return parse()

        return receive

    def _respond(self, request: Request, outcome: Outcome | RankOutcome, **result: object) -> JSONResponse:
        timings = timings_of(request)
        timings.mark("answer")
        for stage, value in {**timings.stages_s, **timings.parts_s}.items():
            self._metrics.stage_seconds.labels(stage).observe(value)
        content = {
            **result,
            "model": outcome.model.name,
            "request_id": request.state.request_id,
            "truncated": outcome.truncated,
            "timing_ms": timings.as_ms(),
        }
        response = JSONResponse(content, headers=server_timing(timings))
        record(request, self._metrics, response.status_code, "ok", model=outcome.model.name)
        return response


def record(request: Request, metrics: Metrics, status: int, code: str, *, model: str = "") -> None:
    """Count and log a task request that has its response; other routes are not worth a line.

    A request that was refused has no model: which one it would have been is not always known.
    """
    task = TASK_PATHS.get(request.url.path)
    if task is None:
        return
    timings = timings_of(request)
    elapsed_s = timings.elapsed_s()
    metrics.requests.labels(task, model, str(status), code).inc()
    metrics.request_seconds.labels(task, model).observe(elapsed_s)
    stages_s = dict(timings.stages_s)  # after a 504 a pool thread may still be marking
    stages_ms = {f"{stage}_ms": round(1000 * value, 2) for stage, value in stages_s.items()}
    fields = {"request_id": request.state.request_id, "model": model, "status": status, "code": code}
    log.info(task, extra={FIELDS: {**fields, "total_ms": round(1000 * elapsed_s, 2), **stages_ms}})
