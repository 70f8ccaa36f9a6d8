"""HTTP/1.1 for senders: uvicorn's protocol, hardened so that every connected sender gets a response.

Plain uvicorn has these flaws:

- It answers malformed input in plain text, even in the middle of another response.
- It limits neither the size nor the duration of a head.
- It ignores the body of a request that offers an upgrade, and mixes trailers with headers.
- It closes a connection without a response when the sender closes its half, even if the request is complete.
- It closes so abruptly that the response is lost if the sender is still sending.
- It calls the app only with the first byte of a body, so the app can't start a deadline.
- A stopping worker closes connections whose next request is on its way.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from inbox.errors import RequestError, TooSlow, Unavailable, Unreadable
from inbox.http import head
from inbox.http.bodies import format_problem, problem_headers
from inbox.http.limits import (
    BODY_COMPLETE,
    CAPACITY,
    CUT_SHORT,
    METERS,
    SEND_CONTINUE,
    WHEN_GONE,
    Bucket,
    Capacity,
)
from inbox.observe import metrics
from inbox.observe.logs import fields
from inbox.observe.metrics import OFF, Meters
from inbox.sources.credentials import address_text

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


TAKEN_WITHIN_SECONDS = 10.0
"""Seconds within which a sender must read its responses, or the connection is aborted."""

DRAIN_SECONDS = 2.0
"""Seconds for which input is discarded after the last response: if the connection closed with unread bytes, the
sender's system would discard the response (RFC 9112 §9.6)."""


THIS_HOST = ("127.0.0.1", 0)
"""Peer address given to a Unix socket, which has none: its peer is trusted like a proxy on this host."""

MOST_UNTAKEN = 8 * 1024
"""Bytes of responses buffered for a slow sender, before the next response waits."""


HEAD_WITHIN_SECONDS = 10.0
"""Seconds from the first byte to the empty line (then 408), and from the start to the first byte (then no response)."""

LINGER_SECONDS = 1.0
"""Seconds for which a stopping worker still serves open connections; those in use get `Connection: close`."""

MOST_QUEUED = 16
"""Maximum number of pipelined requests that wait on one connection."""

_HEALTH = b"/health/"
_log = logging.getLogger("uvicorn.error")
_logged = Bucket(rate=1, burst=10)  # so that strangers can't fill the log


class LingeringCloseTransport:
    """The transport for responses; closing it ends the connection gracefully."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, connection: HardenedHttpProtocol) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.end


class HardenedHttpProtocol(HttpToolsProtocol):
    """One connection of a sender."""

    discarding_input = False
    """True once input is ignored and the connection ends after the current responses."""
    draining = False
    """True once the last response is written and input is discarded."""
    peer_half_closed = False
    """True once the sender has closed its half of the connection."""
    meters: Meters = OFF
    allows_slow_readers = False
    """True if responses are large: a slow reader is allowed while it makes progress in each period."""
    on_gone: Callable[[], None] | None = None
    """Callback for a sender that hangs up before its response."""
    _deadline: asyncio.TimerHandle | None = None
    _abort: asyncio.TimerHandle | None = None
    _is_stopping = False
    _in_head = False
    _keep_alive = False
    _unused = 0
    """Bytes of an unfinished head, trailer or chunk extension."""
    _received = 0
    """Bytes being parsed."""
    _arrived = 0
    """Minimum bytes of the head so far."""
    _parser_error: RequestError | None = None
    """The error with which we stopped the parser, if any."""
    _capacity: Capacity | None = None
    _requests = 0
    """Number of requests passed to the app."""
    makes_room = False
    """True if a new connection may replace the one that has been idle, or has owed a body, for longest."""
    longest_target = head.LONGEST_TARGET
    """Maximum bytes of path and query."""
    _idle_since = 0.0
    _ending: LingeringCloseTransport

    @property
    def is_idle(self) -> bool:
        """True if no response is in progress."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    # --- deadlines

    def arm(self, seconds: float, then: Callable[[], None]) -> None:
        """Set the deadline: call `then` after `seconds`, unless the deadline is reset before."""
        self.disarm()
        self._deadline = self.loop.call_later(seconds, then)

    def disarm(self) -> None:
        """Remove the deadline."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self.disarm()
        self._cancel_abort()
        self.tell_gone()
        super().connection_lost(exc)

    def when_gone(self, then: Callable[[], None]) -> None:
        """Call `then` when the sender hangs up or closes its half. A half-closed sender still gets a response."""
        self.on_gone = then
        if self.peer_half_closed or self.transport.is_closing():
            self.tell_gone()

    def tell_gone(self) -> None:
        """Call the callback of `when_gone`, once."""
        then, self.on_gone = self.on_gone, None
        if then is not None:
            then()

    def pause_writing(self) -> None:
        """Start the deadline for the sender to read its responses."""
        super().pause_writing()
        self._abort_after(TAKEN_WITHIN_SECONDS)

    def resume_writing(self) -> None:
        """Cancel that deadline."""
        super().resume_writing()
        if not self.transport.is_closing() and not self.draining:
            self._cancel_abort()

    def _abort_after(self, seconds: float) -> None:
        self._cancel_abort()
        self._abort = self.loop.call_later(seconds, self._is_not_taken, seconds, self.transport.get_write_buffer_size())

    def _is_not_taken(self, seconds: float, before: int) -> None:
        if self.allows_slow_readers and self.transport.get_write_buffer_size() < before:
            self._abort_after(seconds)
        else:
            self.transport.abort()

    def _cancel_abort(self) -> None:
        if self._abort is not None:
            self._abort.cancel()
            self._abort = None

    # --- the end

    def end(self) -> None:
        """Close the connection after a response, ensuring that the response arrives."""
        if not self.peer_half_closed and (self.discarding_input or self.cycle.more_body):
            self.drain()
            return
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._abort_after(TAKEN_WITHIN_SECONDS)

    def answer(self, error: RequestError) -> None:
        """Send an error response without calling the app."""
        self.meters.count(metrics.REJECTED, metrics.UNKNOWN, error.cause)
        body = format_problem(error)
        fields = [
            *self.server_state.default_headers,
            *((name.lower().encode(), value.encode()) for name, value in problem_headers(error).items()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[error.status], lines, body))

    def drain(self) -> None:
        """Close our half of the connection, and discard input for a short time."""
        self.discarding_input = self.draining = True
        if self.transport.can_write_eof():  # not over TLS
            self.transport.write_eof()
        self.flow.resume_reading()
        self.disarm()
        self._abort_after(DRAIN_SECONDS)

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Normalise the peer's address, check the capacity, and start the deadline for a head."""
        super().connection_made(transport)
        if self.client is not None and (address := address_text(self.client[0])) is not None:
            # A dual-stack IPv6 socket reports ::ffff:127.0.0.1, which no list of proxies contains.
            self.client = (address, self.client[1])
        elif transport.get_extra_info("socket").family == socket.AF_UNIX:
            self.client = THIS_HOST  # a TCP socket without a peer was reset meanwhile
        transport.set_write_buffer_limits(high=MOST_UNTAKEN)
        self._ending = LingeringCloseTransport(self)
        self._capacity = self.app_state.get(CAPACITY)
        self._idle_since = self.loop.time()
        self.meters = self.app_state.get(METERS, OFF)
        try:
            if self._capacity is not None:
                others = len(self.connections) - 1
                if self.makes_room and others >= self._capacity.connections:
                    others = self._close_idle(self._capacity.connections - 1)
                if others >= self._capacity.connections:
                    raise Unavailable("too many connections are open; send it again later")
        except RequestError as error:
            self.discarding_input = True
            self.answer(error)
            transport.close()
        else:
            self.arm(HEAD_WITHIN_SECONDS, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and reject input that it can't read."""
        if self.discarding_input:
            return
        self._unset_keepalive_if_required()
        self._received = len(data)
        self._arrived += self._received
        self._unused += self._received
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._resume_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._reject(self._parser_error or Unreadable(f"this is not HTTP/1.1: {error}"))
        else:
            if self._unused > head.LARGEST_HEAD:
                self._reject(head.make_unfinished_error(self.url if self._in_head else b"", self.longest_target))
            elif self.is_idle and self._deadline is None:
                self.arm(HEAD_WITHIN_SECONDS, self._head_is_late)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own; uvicorn's always lets it close
        """Handle the end of the sender's input. Returns whether to stay open for the response."""
        self.peer_half_closed = True
        self.tell_gone()
        if self.draining:
            return False
        if self._in_head and not self.discarding_input:
            self._reject(Unreadable("the connection was closed before the request's head was complete"))
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete:
            return False
        cycle.keep_alive = False
        if cycle.more_body:
            self._cut_short(cycle, "the connection was closed")
        return True

    # --- the parser's calls

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        super().on_message_begin()
        self._in_head = True
        self._unused = 0
        self._arrived = self._received

    def on_headers_complete(self) -> None:
        """Call the app at once: it can reject the request by its headers, and its deadline for the body begins.

        Raises:
            RequestError: the head is rejected; the parser must stop.
        """
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            return  # `_resume_without_upgrade` follows
        try:
            self._check_head()
        except RequestError as error:
            self._parser_error = error  # the parser loses it
            raise
        self._in_head = False
        self._requests += 1
        self.disarm()
        super().on_headers_complete()
        self.headers = []  # for trailers, which are dropped (RFC 9112 §7.1.2): authentication comes before them
        cycle: RequestResponseCycle = self.cycle
        cycle.transport = cast("asyncio.Transport", self._ending)
        # A response sent before the body has arrived ends the connection: otherwise the rest would have no deadline.
        self._keep_alive, cycle.keep_alive = cycle.keep_alive, False
        cycle.message_event.set()
        cast("dict[str, Any]", cycle.scope)[WHEN_GONE] = self.when_gone
        self._unused = 0
        if (
            cycle.waiting_for_100_continue
        ):  # uvicorn would send it when Falcon reads, before the app has checked the headers
            cycle.waiting_for_100_continue = False
            if self.scope["http_version"] == "1.1":  # older versions don't know it
                cast("dict[str, Any]", cycle.scope)[SEND_CONTINUE] = self._send_continue

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body to the app."""
        super().on_body(body)
        self._unused = 0

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        if self._in_head:
            return
        is_last = self._capacity is not None and self._requests >= self._capacity.per_connection
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive and not self._is_stopping and not is_last
        # Input after the last request is ignored: the sender sees `Connection: close` and resends it on another connection.
        self.discarding_input = self.discarding_input or is_last
        super().on_message_complete()
        cast("dict[str, Any]", self.cycle.scope)[BODY_COMPLETE] = True
        self._unused = 0

    def on_response_complete(self) -> None:
        """Start the next request of the connection, if one is allowed."""
        self._idle_since = self.loop.time()
        self.on_gone = None
        if self.draining:
            self.server_state.total_requests += 1
        else:
            super().on_response_complete()

    def _close_idle(self, most: int) -> int:
        """Close other idle connections until at most `most` remain. Returns the number that remain."""
        others = [each for each in self.connections if isinstance(each, HardenedHttpProtocol) and each is not self]
        others = [each for each in others if not each.transport.is_closing()]
        # then connections that owe a body, perhaps for long
        idle = [each for each in others if each.is_idle or (each.cycle.more_body and not each.cycle.response_started)]
        idle.sort(key=lambda each: (not each.is_idle, each._idle_since))  # noqa: SLF001
        closed = idle[: max(len(others) - most, 0)]
        for each in closed:
            each.transport.close()
        return len(others) - len(closed)

    def _send_continue(self) -> None:
        if not self.cycle.response_started and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- the worker stops

    def shutdown(self) -> None:
        """Stop with the worker. An idle connection stays open briefly, as its next request may be on its way."""
        self._is_stopping = True
        if self.is_idle:
            self.loop.call_later(LINGER_SECONDS, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        if self.is_idle:
            self.transport.close()

    # --- rejected input

    def _check_head(self) -> None:
        if self._capacity is not None and self._requests >= self._capacity.per_connection:
            raise Unavailable("this connection has reached its limit of requests; send it again over another")
        if self._arrived > head.LONGEST_TARGET:  # otherwise no part can be too long
            head.check_size(self.url, self.headers, self.longest_target)
        head.check(self.parser.get_http_version(), self.url, self.headers)
        is_full = self._capacity is not None and len(self.tasks) >= self._capacity.requests
        if is_full and not self.url.startswith(_HEALTH):
            raise Unavailable("too many requests are open; send it again later")
        if len(self.pipeline) >= MOST_QUEUED:
            raise Unavailable("too many requests wait on this connection; send it again later")

    def _reject(self, error: RequestError) -> None:
        """Reject a head, a part of a body, or input after a whole request; ignore all further input."""
        self.discarding_input = True
        self.disarm()
        if _logged.take(time.monotonic()) == 0:
            sender = self.client[0] if self.client else "?"
            _log.warning(
                "rejected a request of %s with %d: %s",
                sender,
                error.status,
                error.detail,
                extra=fields("rejected", status=error.status, cause=error.cause, error=error.detail),
            )
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self.answer(error)
            self.drain()
        elif cycle.more_body:
            self._cut_short(cycle, f"the rest can't be read ({error.detail})")
        else:
            cycle.keep_alive = False  # a later response would be taken for its response

    @staticmethod
    def _cut_short(cycle: RequestResponseCycle, reason: str) -> None:
        cast("dict[str, Any]", cycle.scope)[CUT_SHORT] = reason
        cycle.more_body = False
        cycle.message_event.set()

    def _resume_without_upgrade(self, rest: bytes) -> None:
        """Parse the head again without its upgrade offer, at which the parser stopped.

        Upgrades are never made here (RFC 9110 §7.8), so the body follows as usual.
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
            self._reject(TooSlow(f"the head did not arrive within {HEAD_WITHIN_SECONDS:g} s"))
        else:
            self.transport.close()
