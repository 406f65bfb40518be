"""The application: everything wired together, the operator's routes, the one exception handler."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response, params
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message

from server.backend import Backend
from server.bodies import BodyRoom
from server.clients import ApiKeys
from server.context import RequestContext, server_timing, timings_of
from server.cpus import usable_cpus
from server.errors import BadRequest, MethodNotAllowed, NotFound, ServerError, internal_error
from server.metrics import CONTENT_TYPE
from server.pages import add_pages
from server.pipeline import Pipeline
from server.preparation import Limits, Preparation
from server.routes import TaskRoutes
from server.schemas import ERRORS, CalibrationResponse, ModelInfo, ModelsResponse, SlowestResponse, StatusResponse
from server.settings import Settings
from server.types import ServedModel
from server.version import own_version

log = logging.getLogger(__name__)
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {
        "model": StatusResponse,
        "description": "starting or draining, or the model keeps failing, hangs, or its process does not answer",
    }
}


def create_app(settings: Settings, models: Sequence[ServedModel], backend: Backend) -> ASGIApp:
    """Wire models, and the backend that runs them, into an application."""
    clock = time.perf_counter
    decode_threads = settings.decode_threads or usable_cpus()
    pool = ThreadPoolExecutor(decode_threads, "decode")
    parser = ThreadPoolExecutor(1, "parse")  # it holds the interpreter lock: a second would wait for the first
    limits = Limits(
        max_image_pixels=settings.max_image_pixels,
        max_request_pixels=settings.max_request_pixels,
        max_text_chars=settings.max_text_chars,
        decoded_cache_bytes=int(settings.decoded_cache_mb * 1e6),
    )
    pipeline = Pipeline(
        models,
        backend=backend,
        preparation=Preparation(limits, backend.count_decoded_hit, scales_jpegs=settings.jpeg_decode == "scaled"),
        pool=pool,
        decode_threads=decode_threads,
        clock=clock,
    )
    room = BodyRoom(int(settings.max_bodies_mb * 1e6), backend.count_body_bytes, clock)
    tasks = TaskRoutes(pipeline, settings=settings, backend=backend, parser=parser, room=room, clock=clock)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await _prepare_routes(answering)
        async with backend.running():
            with contextlib.suppress(asyncio.CancelledError):  # told to end twice: starlette would log a traceback
                yield
        pool.shutdown(wait=False)
        parser.shutdown(wait=False)

    app = FastAPI(
        title="ViLT server",
        version=own_version(),
        description="Ask a vision-and-language transformer about an image, and see where each millisecond goes.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads its scripts from elsewhere: pages.py
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,  # not in the contract, and to the wrong scheme behind a proxy
    )
    add_pages(app)
    keys = settings.api_key.get_secret_value().split(",") if settings.api_key else []
    guards = [Depends(ApiKeys(keys))] if keys else []
    # All of /v1, and nothing else. A router that is included would be searched three times for each request.
    for router in (tasks.router(models, guards), _about_models_and_requests(models, backend, guards)):
        app.router.routes.extend(router.routes)
    _add_operator_routes(app, backend)
    _add_exception_handler(app, tasks.record)
    for_pages = _for_pages_of(app, settings.cors_origins)
    answering = RequestContext(for_pages, settings.cors_origins)  # outside the framework's own handlers
    return answering


def _for_pages_of(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let pages of other origins call the application and read its headers."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Server-Timing", "X-Request-ID", "Retry-After"],
    )


async def _prepare_routes(app: ASGIApp) -> None:
    """Request a route behind all of /v1: FastAPI prepares routes when the first request passes them, in 6 ms."""
    scope = {"type": "http", "method": "GET", "path": "/livez", "query_string": b"", "headers": []}

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_: Message) -> None:
        pass

    await app(scope, receive, send)


def _about_models_and_requests(
    models: Sequence[ServedModel], backend: Backend, guards: Sequence[params.Depends]
) -> APIRouter:
    router = APIRouter(
        prefix="/v1",
        dependencies=guards,
        responses={status: ERRORS[status] for status in (401, 405)},
        tags=["operation"],
    )

    @router.get("/models", summary="List the models", response_model=ModelsResponse)
    async def list_models() -> ModelsResponse:
        """List the models that are served; the first that serves a task is its default."""
        return ModelsResponse(models=[_describe(model) for model in models])

    @router.get("/calibration", summary="How long runs take", response_model=CalibrationResponse)
    async def calibration() -> Response:
        """Return what the server has measured of each model on this machine, and how much slower runs are now."""
        return Response(await backend.report("calibration"), media_type="application/json")

    @router.get("/slowest", summary="The slowest recent requests", response_model=SlowestResponse)
    async def list_slowest() -> Response:
        """List the slowest requests of the last 5 to 10 minutes, up to 20 of each task, and where their time went."""
        return Response(await backend.report("slowest"), media_type="application/json")

    return router


def _add_operator_routes(app: FastAPI, backend: Backend) -> None:
    operation: dict[str, Any] = {"tags": ["operation"]}

    @app.get("/livez", summary="Is the process alive?", **operation)
    async def livez() -> StatusResponse:
        """Answer that the process need not be restarted."""
        return StatusResponse(status="alive")

    @app.get(
        "/readyz", summary="Does it accept requests?", response_model=StatusResponse, responses=NOT_READY, **operation
    )
    @app.get("/health", summary="The same as /readyz", response_model=StatusResponse, responses=NOT_READY, **operation)
    async def readyz() -> JSONResponse:
        """Return whether the server wants requests."""
        status = await backend.status()
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=text, **operation)
    async def prometheus() -> Response:
        """Expose the server's metrics to Prometheus."""
        return Response(await backend.report("metrics"), media_type=CONTENT_TYPE)


def _add_exception_handler(app: FastAPI, record: Callable[[Request, int, str], None]) -> None:
    async def handle(request: Request, error: Exception) -> JSONResponse:
        """Turn any error into the contract's body."""
        known = _as_server_error(error)
        if known is not error and known.status >= 500:
            log.error("a request failed", exc_info=error)
        content: dict[str, object] = {
            "error": known.message,
            "code": known.code,
            "request_id": request.state.request_id,
            **known.details,
        }
        timings = timings_of(request)
        timings.close()
        headers = {**server_timing(timings.as_ms()), **(getattr(error, "headers", None) or {})}
        if known.status == 405 and "GET" in headers.setdefault("Allow", "GET"):
            headers["Allow"] = "GET, HEAD"  # see RequestContext
        if known.retry_after_s is not None:
            content["retry_after_ms"] = math.ceil(1000 * known.retry_after_s)
            headers["Retry-After"] = str(max(1, math.ceil(known.retry_after_s)))
        record(request, known.status, known.code)
        _let_go(error)
        return JSONResponse(content, known.status, headers)

    for kind in (ServerError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, handle)


def _let_go(error: BaseException | None) -> None:
    """Drop the frames of an error and its causes: in a cycle, they would keep the body until the next collection."""
    if error is not None:
        behind = (error.__cause__, error.__context__, *getattr(error, "exceptions", ()))
        error.__traceback__ = error.__cause__ = error.__context__ = None
        for one in behind:
            _let_go(one)


def _as_server_error(error: Exception) -> ServerError:
    match error:
        case ServerError():
            return error
        case HTTPException(status_code=404):
            return NotFound("not_found", "There is no such route; GET /docs lists them.")
        case HTTPException(status_code=405):
            return MethodNotAllowed("method_not_allowed", "This route does not support that method.")
        case ClientDisconnect():
            return BadRequest("client_disconnected", "The client disconnected before it had its answer.")
        case _:
            return internal_error()


def _describe(model: ServedModel) -> ModelInfo:
    manifest = model.artifact.manifest
    return ModelInfo(
        name=model.name,
        description=manifest.description,
        tasks=list(model.tasks),
        artifact=model.artifact.short_identity,
        precision=model.artifact.precision,
        provider=model.provider,
        max_text_tokens=manifest.spec.max_text_tokens,
        labels=len(model.artifact.labels),
    )
