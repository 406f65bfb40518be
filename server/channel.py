"""Messages between a front and the engine process: a JSON list, and bytes that follow it, over a Unix socket."""

import asyncio
import logging
import struct
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

import numpy as np
from pydantic_core import from_json, to_json  # several times as fast as json

from server import errors
from server.errors import ServerError
from server.slowest import RequestRecord
from server.types import EntryResult

log = logging.getLogger(__name__)
Message = list[Any]
UNREAD_BYTES = 4_000_000  # more than the default --max-queue-entries can cause at once
SIZES = struct.Struct("<II")  # of the list, of the bytes


class Channel(asyncio.Protocol):
    """One end of a connection."""

    is_full = False  # the other end has left too much unread to be sent more

    def __init__(
        self,
        received: Callable[[Message, bytes], None],
        lost: Callable[[], None],
        drained: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `received` with each message, `lost` at the end, `drained` when there is room to write again."""
        self._received = received
        self._lost = lost
        self._drained = drained
        self._buffer = bytearray()

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Send a message, in which dataclasses become objects; it is lost if the other end has gone."""
        if self._transport.is_closing():
            return
        head = to_json(message)
        self._transport.write(b"".join((SIZES.pack(len(head), len(payload)), head, payload)))

    def close(self) -> None:
        """Close the connection; what has been written still arrives."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.set_write_buffer_limits(high=UNREAD_BYTES)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._drained()

    def data_received(self, data: bytes) -> None:
        """Deliver each message that is complete; one that cannot be handled is logged, and affects no other."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= SIZES.size:
            head_size, payload_size = SIZES.unpack_from(buffer, start)
            middle = start + SIZES.size + head_size
            end = middle + payload_size
            if len(buffer) < end:
                break
            head, payload = bytes(buffer[start + SIZES.size : middle]), bytes(buffer[middle:end])
            start = end
            try:
                self._received(from_json(head), payload)
            except Exception:
                log.exception("a message between processes could not be handled: %s", head[:100])
        del buffer[:start]

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()


def write_error(error: ServerError) -> Message:
    """Write an error as a message."""
    return [type(error).__name__, error.code, error.message, error.retry_after_s, dict(error.details)]


def read_error(message: Message) -> ServerError:
    """Read an error from a message."""
    kind, code, text, retry_after_s, details = message
    error: ServerError = getattr(errors, kind).__new__(getattr(errors, kind))
    ServerError.__init__(error, code, text, retry_after_s=retry_after_s, details=details)
    return error


def write_result(result: EntryResult) -> tuple[dict[str, Any], bytes]:
    """Write a result as a message's fields and payload."""
    fields = {
        "logits": {head: values.size for head, values in result.logits.items()},
        "started_s": result.started_s,
        "ended_s": result.ended_s,
        "parts_s": result.parts_s,
        "batch_size": result.batch_size,
    }
    return fields, b"".join(values.tobytes() for values in result.logits.values())


def read_result(fields: dict[str, Any], payload: bytes) -> EntryResult:
    """Read a result from a message's fields and payload."""
    values, logits = np.frombuffer(payload, np.float32), {}
    for head, size in fields["logits"].items():
        logits[head], values = values[:size], values[size:]
    return EntryResult(**fields | {"logits": logits})


def read_record(fields: dict[str, Any]) -> RequestRecord:
    """Read a record, which the channel has written as fields."""
    return RequestRecord(**fields | {"when": datetime.fromisoformat(fields["when"])})
