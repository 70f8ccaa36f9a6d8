"""What a receiver needs of its HTTP server beyond what uvicorn does: every sender that is still there gets an answer.

As it comes, uvicorn answers what is no request in plain text, and in the middle of another answer if need be; has no
limit on a head nor on the time it takes; takes a request that offers an upgrade to have no body; mixes trailers with
headers; closes the connection unanswered when the sender closes its half, whether the request is whole or not, and so
hard that an answer may be lost when the sender still sends; an app hears of a request only with the first byte of its
body, so that no deadline of the app's can begin; and a server that ends closes connections on which the next request is
on its way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, cast

import httptools

from inbox.errors import RequestError, TooSlow, Unavailable, Unreadable
from inbox.http import head
from inbox.http.connection import Connection, LingeringCloseTransport
from inbox.http.limits import Bucket, Capacity
from inbox.http.scope import CAPACITY, CUT_SHORT, GO_ON, METERS, WHOLE
from inbox.telemetry.metrics import OFF

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

HEAD_WITHIN_SECONDS = 10.0
"""From the first byte to the empty line, and from the connection's beginning to the first byte. Longer: 408, or nothing."""

LINGER_SECONDS = 1.0
"""For so long a worker that ends still answers on a connection that is open; one in use is told to close by then."""

MOST_QUEUED = 16
"""Requests that may wait on one connection for the answer to the one before."""

_HEALTH = b"/health/"
_log = logging.getLogger("uvicorn.error")
_logged = Bucket(rate=1, burst=10)  # a stranger can't fill the log


class HardenedHttpProtocol(Connection):
    """One connection."""

    _leaving = False
    _in_head = False
    _keep_alive = False
    _unused = 0
    """Bytes that have come since any were of use: a head, a trailer or a chunk's extension that does not end."""
    _received = 0
    """Bytes of what the parser sees just now."""
    _arrived = 0
    """Bytes of the head that have come, and perhaps of what stands around it."""
    _refusal: RequestError | None = None
    """Why the parser was stopped, where it was not the parser itself that stopped."""
    _capacity: Capacity | None = None
    _requests = 0
    """Count of the requests that the app has got."""
    _ending: LingeringCloseTransport

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Somebody is there: the time for a head begins."""
        super().connection_made(transport)
        self._ending = LingeringCloseTransport(self)
        self._capacity = self.app_state.get(CAPACITY)
        self.meters = self.app_state.get(METERS, OFF)
        try:
            if self._capacity is not None:
                self._capacity.check_connections(len(self.connections) - 1)
        except RequestError as error:
            self.deaf = True
            self.answer(error)
            transport.close()
        else:
            self.arm(HEAD_WITHIN_SECONDS, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        """Let the parser see it, and answer what it can't read."""
        if self.deaf:
            return
        self._unset_keepalive_if_required()
        self._received = len(data)
        self._arrived += self._received
        self._unused += self._received
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or Unreadable(f"this is not HTTP/1.1: {error}"))
        else:
            if self._unused > head.LARGEST_HEAD:
                self._refuse(head.unfinished(self.url if self._in_head else b""))
            elif self.is_idle and not self.has_deadline:
                self.arm(HEAD_WITHIN_SECONDS, self._head_is_late)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own; uvicorn's always lets it close
        """The sender sends nothing more, but may wait for its answer. Returns whether to stay open for it."""
        self.heard_out = True
        if self.draining:
            return False
        if self._in_head and not self.deaf:
            self._refuse(Unreadable("the connection was closed before the head of the request was whole"))
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete:
            return False
        cycle.keep_alive = False
        if cycle.more_body:
            self._cut_short(cycle, "the connection was closed")
        return True

    # --- the parser's calls

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True
        self._unused = 0
        self._arrived = self._received

    def on_headers_complete(self) -> None:
        """Tell the app at once: it can refuse by the headers alone, and its deadline for the body begins.

        Raises:
            RequestError: it is not to be told, and the parser has to stop.
        """
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            return  # `_go_on_without_upgrade` follows
        try:
            self._check_head()
        except RequestError as error:
            self._refusal = error  # the parser does not keep it
            raise
        self._in_head = False
        self._requests += 1
        self.disarm()
        super().on_headers_complete()
        self.headers = []  # for trailers, which are dropped (RFC 9112 §7.1.2): who sends it was asked before they came
        cycle: RequestResponseCycle = self.cycle
        cycle.transport = cast("asyncio.Transport", self._ending)
        # An answer that is made before the body has come ends the connection: else the rest of it had no deadline.
        self._keep_alive, cycle.keep_alive = cycle.keep_alive, False
        cycle.message_event.set()
        self._unused = 0
        if cycle.waiting_for_100_continue:  # uvicorn would say it when Falcon looks, which is before the app has looked
            cycle.waiting_for_100_continue = False
            if self.scope["http_version"] == "1.1":  # an older one does not know of it
                cast("dict[str, Any]", cycle.scope)[GO_ON] = self._say_go_on

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        super().on_body(body)
        self._unused = 0

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._in_head:
            return
        is_last = self._capacity is not None and self._requests >= self._capacity.per_connection
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive and not self._leaving and not is_last
        # What stands behind the last is not looked at: its sender sees `Connection: close`, and sends it again over another.
        self.deaf = self.deaf or is_last
        super().on_message_complete()
        cast("dict[str, Any]", self.cycle.scope)[WHOLE] = True
        self._unused = 0

    def on_response_complete(self) -> None:
        """An answer is written: the next request of the connection has its turn, if there may be one."""
        if self.draining:
            self.server_state.total_requests += 1
        else:
            super().on_response_complete()

    def _say_go_on(self) -> None:
        if not self.cycle.response_started and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- the end of the worker

    def shutdown(self) -> None:
        """The worker ends. A connection between two requests is not closed at once: the next may be on its way already."""
        self._leaving = True
        if self.is_idle:
            self.loop.call_later(LINGER_SECONDS, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        if self.is_idle:
            self.transport.close()

    # --- what is refused

    def _check_head(self) -> None:
        if self._capacity is not None and self._requests >= self._capacity.per_connection:
            raise Unavailable("this connection has had its requests; send it again over another")
        if self._arrived > head.LONGEST_TARGET:  # else nothing in it can be too long
            head.check_size(self.url, self.headers)
        head.check(self.parser.get_http_version(), self.url, self.headers)
        if self._capacity is not None and not self.url.startswith(_HEALTH):
            self._capacity.check_requests(len(self.tasks))
        if len(self.pipeline) >= MOST_QUEUED:
            raise Unavailable("too many requests wait on this connection; send it again later")

    def _refuse(self, error: RequestError) -> None:
        """Look at nothing more; what is refused is a head, a part of a body, or what stands behind a whole request."""
        self.deaf = True
        self.disarm()
        if _logged.take(time.monotonic()) == 0:
            sender = self.client[0] if self.client else "?"
            _log.warning("refused a request of %s with %d: %s", sender, error.status, error.detail)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self.answer(error)
            self.drain()
        elif cycle.more_body:
            self._cut_short(cycle, f"there is no more of it that could be read ({error.detail})")
        else:
            cycle.keep_alive = False  # an answer to what stands behind it would be taken for its own

    @staticmethod
    def _cut_short(cycle: RequestResponseCycle, reason: str) -> None:
        cast("dict[str, Any]", cycle.scope)[CUT_SHORT] = reason
        cycle.more_body = False
        cycle.message_event.set()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read the head once more without the offer of an upgrade, behind which the parser leaves off.

        None is made here (RFC 9110 §7.8), so the body is a body.
        """
        fields = b"".join(b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
        version = self.parser.get_http_version().encode()
        again = b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, fields)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(again + rest)

    def _head_is_late(self) -> None:
        self.disarm()
        if not self.is_idle:
            return
        if self._in_head:
            self._refuse(TooSlow(f"the head did not arrive within {HEAD_WITHIN_SECONDS:g} s"))
        else:
            self.transport.close()
