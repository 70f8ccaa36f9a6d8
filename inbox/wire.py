"""What a receiver needs of its HTTP server beyond what uvicorn does: every sender that is still there gets an answer.

As it comes, uvicorn closes the connection unanswered when the sender closes its half, whether the request is whole or
not; an app hears of a request only with the first byte of its body, so that no deadline of the app's can begin; and a
server that ends closes connections on which the next request is on its way.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inbox.receive import ENDED_EARLY

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_VERSIONS = frozenset({"1.0", "1.1"})

_TOKEN = re.compile(r"(/webhooks/[^/?]*/).*|\?.*", re.DOTALL)

LINGER_SECONDS = 1.0
"""How long a worker that ends still answers on a connection that is open; one in use is told to close by then."""


class Wire(HttpToolsProtocol):
    """One connection."""

    _leaving = False

    def on_headers_complete(self) -> None:
        """Tell the app at once: it can refuse by the headers alone, and its deadline for the body begins.

        Raises:
            ValueError: a version that Falcon raises at; the parser makes an answer of 400 of it.
        """
        if self.parser.get_http_version() not in _VERSIONS:
            raise ValueError("neither HTTP/1.1 nor HTTP/1.0")
        super().on_headers_complete()
        if self._leaving:
            self.cycle.keep_alive = False
        self.cycle.message_event.set()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own; uvicorn's always lets it close
        """The sender sends nothing more, but may wait for its answer. Returns whether to stay open for it."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete:
            return False
        cycle.keep_alive = False
        if cycle.more_body:
            cast("dict[str, Any]", cycle.scope)[ENDED_EARLY] = True
            cycle.more_body = False
            cycle.message_event.set()
        return True

    def shutdown(self) -> None:
        """The worker ends. A connection between two requests is not closed at once: the next may be on its way already."""
        self._leaving = True
        if self._is_idle():
            self.loop.call_later(LINGER_SECONDS, self._close_if_idle)
        else:
            super().shutdown()

    def _is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()


def mask_token(record: logging.LogRecord) -> bool:
    """A filter for uvicorn's access log, if somebody asks for one: of a path it shows no token, and no query."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            _TOKEN.sub(r"\1…", value) if isinstance(value, str) and value.startswith("/") else value
            for value in record.args
        )
    return True
