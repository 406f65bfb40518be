"""HTTP connections: bounded heads, ignored offers to upgrade, responses that arrive, a shutdown that cuts off none."""

from asyncio import TimerHandle, Transport

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 65_536  # the fields of a raw image are in the query string: 2,000 characters of up to 12 bytes
MAX_HEADERS = 256  # each takes some Python
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
MAX_PIPELINED = 16  # requests of a connection that wait for the one before them
LINGER_S = 1.0  # in which requests arrive that were sent before the client could know of the end


class Lingering:
    """The transport of one response, which is not closed while the client is still sending.

    What is unread when a connection is closed makes the kernel reset it, and the client may lose the response.
    """

    def __init__(self, protocol: "ServerProtocol", cycle: RequestResponseCycle) -> None:
        self._protocol, self._cycle = protocol, cycle
        self.write, self.is_closing = protocol.transport.write, protocol.transport.is_closing

    def close(self) -> None:
        """Close the connection, or only its half until the rest has arrived or its time is over."""
        if self._cycle.more_body or self._protocol.ignores_rest:
            self._protocol.is_half_closed = True
            self._protocol.transport.write_eof()
        else:
            self._protocol.transport.close()


class ServerProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with five changes.

    A head is bounded in length and time. An offer to upgrade is ignored. A response that ends its connection reaches a
    client that is still sending. When a client hangs up, the request that is being answered is told, and not only the
    last one that was pipelined. And while draining, a connection stays open for as long as a request may be on its way,
    where uvicorn closes idle connections at once.
    """

    receive_timeout_s: float
    ignores_rest = False  # of what the client sends: it sent too much at once
    is_half_closed = False
    _running: RequestResponseCycle | None = None
    _timer: TimerHandle | None = None
    _head_bytes = 0
    _unread_bytes = 0  # since the parser last called back: part of a header, or of a chunk's extensions
    _offers_upgrade = False
    _head_is_too_large = False
    _is_ending = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; at the beginning of a head, or of a body that nobody reads, limit the time for the rest."""
        if self.ignores_rest:
            return
        self._unread_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except HttpParserError:
            if not self.ignores_rest:
                self._refuse()
        if self.transport.is_closing():
            return
        if self._unread_bytes > HEAD_BYTES:
            self._head_is_too_large = True
            self._refuse()
        elif self._is_idle() and self._timer is None and self.timeout_keep_alive_task is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._take(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._take(len(name) + len(value) + len(": \r\n"))

    def on_headers_complete(self) -> None:
        """Begin a request, unless its head has to be parsed again without its offer to upgrade.

        While draining, its response is the last of its connection. Of too many requests at once, the first are
        answered: a client has to send those without an answer again.

        Raises: HttpParserError: parse no more.
        """
        if self.transport.is_closing():
            raise HttpParserError
        self._unread_bytes = 0
        self._stop_timer()
        self._offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._offers_upgrade:
            super().on_headers_complete()
            self.cycle.transport = Lingering(self, self.cycle)  # type: ignore[assignment]  # all of it that a cycle uses
            if self._is_ending and not self._is_idle():
                self.cycle.keep_alive = False
        if len(self.pipeline) > MAX_PIPELINED:
            self.pipeline.popleft()
            self.cycle, _ = self.pipeline[0]
            self.cycle.keep_alive = False
            self.ignores_rest = True
            raise HttpParserError

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Pass on the end of a body; after a body that was refused, keep the connection as after any other."""
        self._unread_bytes = 0
        if self._offers_upgrade:
            return
        super().on_message_complete()
        if self.is_half_closed:
            self.transport.close()
        elif self._is_idle():
            self._stop_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """Answer what is there or arrives within LINGER_S, each the last of its connection, and then close."""
        self._is_ending = True
        if self._is_idle():
            self.loop.call_later(LINGER_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()

    def _refuse(self) -> None:
        """Answer a head that cannot be accepted, and close the connection."""
        if self.is_half_closed or self.transport.is_closing():
            self.transport.close()
        elif self._head_is_too_large:
            self.logger.warning("A request's head is too large.")
            self.transport.write(HEAD_TOO_LARGE)
            self.transport.close()
        else:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def _parse(self, data: bytes) -> None:
        """Parse data, and where a head offers to upgrade, parse it again without the offer.

        Some clients offer HTTP/2 with every request. The parser treats what follows as another protocol: it would skip
        the request's body, or read it as the next request.

        Raises: HttpParserError: it is not HTTP.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                if not self._offers_upgrade:  # CONNECT, which is answered like any other method
                    return
                (offset,) = upgrade.args
                data = self._head_without_upgrade() + data[offset:]
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b" ".join((self.parser.get_method(), self.url, b"HTTP/" + version))]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    def _take(self, count: int) -> None:
        """Count the bytes of a head, including the trailers of a chunked body.

        Raises: HttpParserError: there are too many.
        """
        self._unread_bytes = 0
        self._head_bytes += count
        if self._head_bytes > HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._head_is_too_large = True
            raise HttpParserError

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.receive_timeout_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def protocol(receive_timeout_s: float) -> type[ServerProtocol]:
    """Return the protocol class, which uvicorn instantiates, with its time limit for a head."""
    return type("Protocol", (ServerProtocol,), {"receive_timeout_s": receive_timeout_s})
