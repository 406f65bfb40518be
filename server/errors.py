"""Every failure a client can see. The one handler in app.py turns them into JSON; nothing else does.

ServerError
├── BadRequest            400  the request cannot be read: a body, a field, a header
├── Unauthorized          401  no key, or a wrong one, where keys are required
├── NotFound              404  no such route, or no model of that name for the task
├── MethodNotAllowed      405
├── TooLarge              413  a body, an image, a text or a list beyond its limit
├── UnsupportedMediaType  415  a Content-Type that the route does not read
├── Unusable              422  understood, but unusable: an image that does not decode, an empty question
├── Overloaded            429  the server or the client has as much work in progress as is allowed
├── EngineFault           500  the model failed on these inputs
├── Unavailable           503  not ready yet, shutting down, or the deadline would be missed
└── DeadlineExceeded      504  the request's deadline passed

429 and 503 say when to retry. 503 and 504 only ever mean time, never content.
"""

from collections.abc import Mapping
from types import MappingProxyType


class ServerError(Exception):
    """A failure with a status, a stable code and a sentence for the client."""

    status = 500

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        details: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.details = details or {}  # more fields of the body


class BadRequest(ServerError):
    status = 400


class Unauthorized(ServerError):
    status = 401
    headers: Mapping[str, str] = MappingProxyType({"WWW-Authenticate": "Bearer"})

    def __init__(self, message: str) -> None:
        super().__init__("unauthorized", message)


class NotFound(ServerError):
    status = 404


class MethodNotAllowed(ServerError):
    status = 405


class TooLarge(ServerError):
    status = 413


class UnsupportedMediaType(ServerError):
    status = 415


class Unusable(ServerError):
    status = 422


class Overloaded(ServerError):
    status = 429


class EngineFault(ServerError):
    status = 500


class Unavailable(ServerError):
    status = 503


class DeadlineExceeded(ServerError):
    status = 504

    def __init__(
        self,
        code: str = "deadline_exceeded",
        message: str = "The request's deadline passed before its answer was ready.",
    ) -> None:
        super().__init__(code, message)


def internal_error() -> ServerError:
    """Return the error for a failure that nobody foresaw."""
    return ServerError("internal_error", "The server failed on this request; the error has been logged.")
