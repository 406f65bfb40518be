"""What every request has (an id, a clock that starts with its head, a deadline) and every response carries."""

import math
import re
import uuid
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BadRequest
from server.types import Timings

# A response that echoes a client's words is never taken for a page.
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
ON_PAGES = [  # that is, on /docs: it loads from and calls only this server, and may not be framed
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
        b" img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
]
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestContext:
    """Starts a request's clock and gives it an id before anything else sees it; adds headers to every response.

    These are the id, and what keeps browsers from misreading the response.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] = ()) -> None:
        """Let pages of `origins` read Server-Timing from their own record of a request, too."""
        self._app = app
        self._headers = [(b"timing-allow-origin", ", ".join(origins).encode())] if origins else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
        if scope["method"] == "HEAD":  # as some balancers ask: the HTTP server, which has its own scope, sends no body
            scope = {**scope, "method": "GET"}
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, timings=Timings())
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = [*message["headers"], (b"x-request-id", request_id.encode()), NO_SNIFFING, *self._headers]
                if dict(headers).get(b"content-type", b"").startswith(b"text/html"):
                    headers += ON_PAGES
                message["headers"] = headers
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # starlette re-raises what the handler has logged and answered
            if not has_started:
                raise


def timings_of(request: Request) -> Timings:
    """Return a request's timings."""
    timings: Timings = request.state.timings
    return timings


def deadline_of(request: Request, default_ms: float) -> float:
    """Return the instant by which a request must be answered, on the clock of its timings.

    Raises: BadRequest: X-Deadline-Ms is not a number of at least 1.
    """
    timeout_ms = default_ms
    header = request.headers.get("x-deadline-ms")
    if header is not None:
        try:
            timeout_ms = float(header)
        except ValueError:
            timeout_ms = math.nan
        if not 1 <= timeout_ms < math.inf:
            raise BadRequest("invalid_header", "X-Deadline-Ms must be a number of milliseconds of at least 1.")
    return timings_of(request).started_s + timeout_ms / 1000


def server_timing(timing_ms: Mapping[str, float]) -> dict[str, str]:
    """Write the Server-Timing header.

    Source: W3C Server Timing.
    """
    return {"Server-Timing": ", ".join(f"{name};dur={value:.3f}" for name, value in timing_ms.items())}
