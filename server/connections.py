"""Connections: what a client may send before it is answered, offers to upgrade, and an end that cuts off no request."""

from asyncio import TimerHandle, Transport

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536  # a raw image's fields are in the query string: 2,000 characters, each up to 12 bytes there
MOST_HEADERS = 256  # of a request: each takes some Python
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
MOST_PIPELINED = 16  # requests on a connection that wait for the one before them
LINGER_S = 1.0  # longer than a request takes to arrive that was sent before its client could know


class ServerProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with three changes.

    A head is bounded in length and time. An offer to upgrade is ignored. And while draining, a connection stays open
    for as long as a request may be on its way, where uvicorn closes idle connections at once.
    """

    receive_timeout_s: float
    _timer: TimerHandle | None = None
    _head_bytes = 0
    _unread_bytes = 0  # that came since the parser told of anything: part of a header, of a chunk's extensions
    _offers_upgrade = False
    _head_is_too_large = False
    _is_ending = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; where it is the beginning of a head, or a body that nobody wants, bound what follows."""
        self._unread_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except HttpParserError:
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
        """Begin a request, unless its head is to be read again without its offer to upgrade.

        While draining, its response is the last of its connection.

        Raises: HttpParserError: too many requests of the connection wait for the one before them.
        """
        self._unread_bytes = 0
        self._stop_timer()
        self._offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._offers_upgrade:
            super().on_headers_complete()
            if self._is_ending and not self._is_idle():
                self.cycle.keep_alive = False
        if len(self.pipeline) > MOST_PIPELINED:
            raise HttpParserError

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Hand on a whole body; behind one that was refused, keep the connection as behind any other."""
        self._unread_bytes = 0
        if self._offers_upgrade:
            return
        super().on_message_complete()
        if self._is_idle():
            self._stop_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

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
        """Say what is wrong with a head, and hang up."""
        if self._head_is_too_large:
            self.logger.warning("A request's head is too large.")
            self.transport.write(HEAD_TOO_LARGE)
            self.transport.close()
        else:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def _parse(self, data: bytes) -> None:
        """Have the parser read, and where a head offers to upgrade, read it again without that.

        Some clients offer HTTP/2 with every request. The parser takes what follows for another protocol: it would leave
        out the request's body, or take it for the next request.

        Raises: HttpParserError: it is not HTTP.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                if not self._offers_upgrade:  # CONNECT, which is answered as it is
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
        """Count what a head has, as it is written, with the headers behind a chunked body.

        Raises: HttpParserError: it is too much, and the parser ends.
        """
        self._unread_bytes = 0
        self._head_bytes += count
        if self._head_bytes > HEAD_BYTES or len(self.headers) > MOST_HEADERS:
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
    """Make the protocol of a server that waits so long for a head; uvicorn takes a class."""
    return type("Protocol", (ServerProtocol,), {"receive_timeout_s": receive_timeout_s})
