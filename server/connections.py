"""The end of connections: none is closed while a request may be on its way."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LINGER_S = 1.0  # longer than a request takes to arrive that was sent before its client could know


class LingeringProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes idle connections at once when it drains, under a request that is being sent."""

    _is_ending = False

    def shutdown(self) -> None:
        """Answer what is there or arrives within LINGER_S, each the last of its connection, and then close."""
        self._is_ending = True
        if self._is_idle():
            self.loop.call_later(LINGER_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def on_headers_complete(self) -> None:
        """Begin a request; one that arrives at the end is told with its response that there is no other."""
        super().on_headers_complete()
        if self._is_ending and not self._is_idle():
            self.cycle.keep_alive = False

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()
