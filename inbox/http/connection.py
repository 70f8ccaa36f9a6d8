"""Deadlines of a connection, answers that bypass the app, and the lingering close."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from inbox.errors import RequestError
from inbox.http.problems import problem_headers, problem_of
from inbox.sources.sender import address_text
from inbox.telemetry import metrics
from inbox.telemetry.metrics import OFF, Meters

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

TAKEN_WITHIN_SECONDS = 10.0
"""Seconds in which a sender must take its answers; then the connection is aborted."""

DRAIN_SECONDS = 2.0
"""Seconds in which input is discarded after an answer that ends the connection: if it were closed with unread bytes,
the sender's system would discard the answer (RFC 9112 §9.6)."""


THIS_HOST = ("127.0.0.1", 0)
"""The peer of a Unix socket. It has no address, but it is a proxy on this host, and is trusted as one."""

MOST_UNTAKEN = 8 * 1024
"""Bytes of answers that are buffered for a slow sender; then the next answer waits."""


class Connection(HttpToolsProtocol):
    """The base of `inbox.http.protocol.HardenedHttpProtocol`."""

    discarding_input = False
    """True once input is ignored: the connection ends with the answers under way."""
    draining = False
    """True once the last answer is written, and input is discarded."""
    peer_half_closed = False
    """True once the sender has closed its half."""
    meters: Meters = OFF
    allows_slow_readers = False
    """True where answers are large: a sender may take one for as long as it takes some of it in each period."""
    on_gone: Callable[[], None] | None = None
    """Called when the sender hangs up before its answer."""
    _deadline: asyncio.TimerHandle | None = None
    _abort: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """True when no answer is under way."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    # --- deadlines

    @property
    def has_deadline(self) -> bool:
        """True when a deadline is set."""
        return self._deadline is not None

    def arm(self, seconds: float, then: Callable[[], None]) -> None:
        """Set the deadline: call `then` after `seconds`, unless it is set again before."""
        self.disarm()
        self._deadline = self.loop.call_later(seconds, then)

    def disarm(self) -> None:
        """Remove the deadline."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Normalise the peer's address."""
        super().connection_made(transport)
        if self.client is not None and (address := address_text(self.client[0])) is not None:
            # A socket of IPv6 that takes IPv4 too says ::ffff:127.0.0.1, which no list of proxies has.
            self.client = (address, self.client[1])
        elif transport.get_extra_info("socket").family == socket.AF_UNIX:
            self.client = THIS_HOST  # other families have no peer: the connection was reset meanwhile
        transport.set_write_buffer_limits(high=MOST_UNTAKEN)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self.disarm()
        self._cancel_abort()
        self.tell_gone()
        super().connection_lost(exc)

    def when_gone(self, then: Callable[[], None]) -> None:
        """Call `then` when the sender hangs up, or has closed its half. One that only closed its half still gets an answer."""
        self.on_gone = then
        if self.peer_half_closed or self.transport.is_closing():
            self.tell_gone()

    def tell_gone(self) -> None:
        """Call the function of `when_gone`, once."""
        then, self.on_gone = self.on_gone, None
        if then is not None:
            then()

    def pause_writing(self) -> None:
        """Start the time in which the sender must take its answers."""
        super().pause_writing()
        self._abort_after(TAKEN_WITHIN_SECONDS)

    def resume_writing(self) -> None:
        """Stop that time."""
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
        """Close the connection after an answer, so that the answer arrives."""
        if not self.peer_half_closed and (self.discarding_input or self.cycle.more_body):
            self.drain()
            return
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._abort_after(TAKEN_WITHIN_SECONDS)

    def answer(self, error: RequestError) -> None:
        """Answer an error without calling the app."""
        self.meters.count(metrics.REJECTED, metrics.UNKNOWN, error.cause)
        body = problem_of(error)
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


class LingeringCloseTransport:
    """The transport that answers are written to: closing it ends the connection gently."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.end
