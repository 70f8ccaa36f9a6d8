"""The webhook resource, which responds after the writer's commit."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.clock import Clock
from inbox.config.model import Route
from inbox.config.sources import Source
from inbox.db.dialect import make_storable
from inbox.db.intake import Rejected
from inbox.db.link import Notifier
from inbox.db.throughput import REJECTED, SOURCE, UNAVAILABLE, Tally
from inbox.errors import NotAuthenticated, RequestError, StillOpen, TooMany, Unavailable
from inbox.events.event import Event, RawRequest, Receipt
from inbox.http.bodies import read_whole
from inbox.http.limits import WHEN_GONE, Bucket, MemoryBudget, Reservation
from inbox.observe import metrics
from inbox.observe.metrics import OFF, Meters
from inbox.observe.traces import OFF as OFF_TRACER
from inbox.observe.traces import Span, Tracer
from inbox.receiver.fetcher import CertificateFetcher
from inbox.receiver.reporting import ThroughputFlusher
from inbox.receiver.wait import OutcomeWaiter
from inbox.sources import PRESETS
from inbox.sources.base import Preset
from inbox.sources.credentials import UNKNOWN_SOURCE_MAX_BODY, Verifier, address_text
from inbox.sources.keys import CertificateNeeded
from inbox.sources.normalize import kept_headers, make_events, reject_old, valid_traceparent

OFFLOADED_BYTES = 64 * 1024
"""Size from which bodies are hashed and parsed in a thread, in bytes: 25 MiB take most of a second, and would block all
other requests. Hashing lets other threads run, but parsing rarely does. So only one body is parsed at a time: the event
loop waits for one at most, and only one uses memory beyond `MEMORY_FOR_BODY`."""

OFFLOADED_HASHING = 1024 * 1024
"""Bytes to hash inside the event loop, in 1 to 3 ms. A rejection hashes the body with the keys of all sources; more
work runs in a thread."""

SERVER_ERROR = 500

_HANDSHAKES = frozenset(
    (preset.handshake.method, preset.handshake.header)
    for preset in PRESETS.values()
    if preset.handshake is not None and preset.handshake.header is not None
)


class IntakeTrace(msgspec.Struct, eq=False, gc=False):
    """Notes about one request in progress, for its span at the end; used only with traces.

    Nothing in it refers back to it, so the garbage collector can ignore it.
    """

    tracer: Tracer
    req: Request
    began: float
    """Start of the request, in `time.perf_counter` seconds."""
    raw: RawRequest | None = None
    """The request, set once the sender is authenticated and its trace context counts."""
    receipts: Sequence[Receipt] = ()
    cause: str | None = None
    """Cause of a rejection, as in `rejected_request`."""
    span: Span | None = None
    is_left_out: bool = False
    """True once its events have ruled out sampling."""

    def sample(self, events: Sequence[Event]) -> Sequence[Event]:
        """Decide on sampling, and return the events; those of a sampled request continue its span."""
        if not events:
            return events
        self.span = self._begin(events[0].traceparent)
        if self.span is None:
            self.is_left_out = True
            return events
        traceparent = self.span.traceparent
        return [msgspec.structs.replace(event, traceparent=traceparent) for event in events]

    def end(self, status: str) -> None:
        """Export the span of a sampled request."""
        span = self.span
        if span is None:  # it was rejected, or has no event
            span = self._begin(valid_traceparent(None if self.raw is None else self.raw.headers.get("traceparent")))
        if span is None:
            return
        span.attributes |= {
            "http.request.method": self.req.method,
            "http.route": "/webhooks/{source}",
            "url.scheme": self.req.scheme,
            "http.response.status_code": int(status),
        }
        if self.raw is not None:
            span.attributes |= {"inbox.source": self.raw.source, "url.path": f"/webhooks/{self.raw.source}"}
        if self.receipts:
            span.attributes["inbox.seq"] = self.receipts[0].seq
            span.attributes["inbox.duplicates"] = sum(receipt.duplicate for receipt in self.receipts)
            span.attributes["messaging.batch.message_count"] = len(self.receipts)
        if self.cause is not None:
            span.attributes["inbox.cause"] = self.cause
        span.end(error=(self.cause or status) if int(status) >= SERVER_ERROR else None)

    def _begin(self, parent: str | None) -> Span | None:
        return self.tracer.begin(f"{self.req.method} /webhooks/{{source}}", "server", parent=parent, began=self.began)


class Writer(Protocol):
    """A store of events: `GroupCommit` or `WriterPair`, except in tests."""

    async def append(self, events: Sequence[Event]) -> list[Receipt]:
        """Store all events of one request or none; return after the commit."""
        ...

    async def probe(self) -> None:
        """Raise Unavailable if nothing can be stored now."""
        ...

    def reject(self, row: Rejected) -> None:
        """Store a rejected request if there is room."""
        ...

    async def close(self) -> None:
        """Store the waiting events, and stop."""
        ...


class Services(msgspec.Struct, frozen=True):
    """Services that a worker opens when it starts."""

    writer: Writer
    meters: Meters = OFF
    outcomes: OutcomeWaiter | None = None
    tally: Tally = msgspec.field(default_factory=Tally)
    """The worker's figures for `throughput_minute`."""
    flusher: ThroughputFlusher | None = None
    notifier: Notifier | None = None
    tracer: Tracer = OFF_TRACER
    certificates: CertificateFetcher = msgspec.field(default_factory=CertificateFetcher)


class SourceEndpoint(msgspec.Struct, frozen=True):
    """One source as the receiver sees it, with everything computed before the first request."""

    source: Source
    preset: Preset
    verifier: Verifier
    routes: tuple[Route, ...]
    bucket: Bucket | None = None
    """Token bucket of the source's `rate`; each forked process has its own."""

    @property
    def max_body(self) -> int:
        """Maximum body size of the source, in bytes."""
        return self.source.max_body or self.preset.max_body


class Awaited(msgspec.Struct, frozen=True):
    """A stored request whose response waits for the outcome, without its body."""

    endpoint: SourceEndpoint
    receipts: Sequence[Receipt]
    within: float


class Webhooks:
    """`POST /webhooks/{source}`: read, verify, identify, route and store a request, and respond."""

    def __init__(
        self,
        endpoints: Mapping[str, SourceEndpoint],
        decoy: Verifier,
        clock: Clock,
        memory: MemoryBudget,
        services: Callable[[], Services],
    ) -> None:
        self._endpoints = endpoints
        self._decoy = decoy
        self._clock = clock
        self._memory = memory
        self._services = services
        self._parsing = asyncio.Lock()

    async def on_post(self, req: Request, resp: Response, source: str, token: str | None = None) -> None:
        """Respond 200, or the provider's expected status, once all events of the body are committed."""
        services = self._services()
        began, status = time.perf_counter(), "500"
        trace = IntakeTrace(services.tracer, req, began) if services.tracer.is_on else None
        try:
            awaited = await self._handle(services, req, resp, source, token, trace=trace)
            if awaited is not None:
                await self._wait(services, req, resp, awaited, trace)
            status = str(resp.status)[:3]
        except (RequestError, falcon.HTTPError) as error:
            status = str(error.status)[:3]
            raise
        finally:
            took = time.perf_counter() - began
            if trace is not None and not trace.is_left_out:
                trace.end(status)
            services.meters.observe(metrics.REQUEST_SECONDS, took, status)

    on_get = on_options = on_post
    """Methods of handshakes; all other requests get 405."""

    async def _handle(
        self,
        services: Services,
        req: Request,
        resp: Response,
        source: str,
        token: str | None,
        *,
        trace: IntakeTrace | None,
    ) -> Awaited | None:
        """Store a request's events, and respond unless the response waits for their outcome."""
        headers = req.headers_lower
        # Decided by the request alone, as the response must not reveal which sources exist.
        if req.method != "POST" and _HANDSHAKES.isdisjoint((req.method, name) for name in headers):
            raise falcon.HTTPMethodNotAllowed(["POST"])
        endpoint = self._endpoints.get(source)
        body, read_error, reservation = b"", None, Reservation(self._memory)
        try:
            try:
                body = await read_whole(
                    req, UNKNOWN_SOURCE_MAX_BODY if endpoint is None else endpoint.max_body, reservation
                )
            except RequestError as error:
                read_error = error
            raw = RawRequest(
                # An unknown name may be a token, if the sender left out the source.
                source=f"unknown ({len(source)} characters)" if endpoint is None else source,
                headers=headers,
                body=body,
                received_at=self._clock.now(),
                url_token=token,
                remote_address=get_sender(req),
                method=req.method,
                query=req.query_string,
            )
            proven: SourceEndpoint | None = None
            try:
                if read_error is not None:
                    raise read_error
                proven = await self._prove(services, endpoint, raw)
                if trace is not None:
                    trace.raw = raw
                enforce_rate_limit(proven)
                return await self._accept(services, proven, raw, resp, trace)
            except RequestError as error:
                if trace is not None:
                    trace.cause = error.cause
                name = metrics.UNKNOWN if endpoint is None else source
                services.meters.count(metrics.REJECTED, name, error.cause)
                services.tally.add(SOURCE, name, UNAVAILABLE if isinstance(error, Unavailable) else REJECTED)
                if not isinstance(error, Unavailable):
                    if len(body) > OFFLOADED_BYTES:
                        services.writer.reject(await asyncio.to_thread(_make_row, proven, raw, error))
                    else:
                        services.writer.reject(_make_row(proven, raw, error))
                # Raised here: an error kept in a frame that its traceback refers to is a reference cycle, which would
                # keep the body.
                if not _answer_as_provider(proven, error, resp):
                    raise
                return None
        finally:
            read_error = None  # as above
            reservation.release()

    async def _prove(self, services: Services, endpoint: SourceEndpoint | None, raw: RawRequest) -> SourceEndpoint:
        """Verify that the request comes from its source, with the same work whether or not the source exists.

        Raises:
            NotAuthenticated: authentication failed, or the source does not exist.
            Unavailable: only a certificate is missing, and it can't be fetched now.
        """
        verifier, missing = self._decoy if endpoint is None else endpoint.verifier, None
        try:
            await _verify(verifier, raw)
        except CertificateNeeded as needed:
            missing = needed.missing
        if missing is not None:
            await services.certificates.fetch(missing, raw.received_at)
            await _verify(verifier, raw)
        if endpoint is None:
            raise NotAuthenticated("unknown source")  # unreachable: the decoy verifier always raises
        return endpoint

    async def _accept(
        self, services: Services, endpoint: SourceEndpoint, raw: RawRequest, resp: Response, trace: IntakeTrace | None
    ) -> Awaited | None:
        preset = endpoint.preset
        if "access_token" in raw.query:
            resp.cache_control = ["private"]  # required for URLs with a token (RFC 6750 §2.3)
        handshake = preset.handshake_response(raw, partial(endpoint.verifier.mac, raw))
        if handshake is not None:
            resp.status, resp.data, resp.content_type = handshake.status, handshake.body, handshake.content_type
            resp.set_headers(handshake.headers)
            return None
        if raw.method != "POST":
            raise falcon.HTTPMethodNotAllowed(["POST"])
        events: Sequence[Event]
        if len(raw.body) > OFFLOADED_BYTES:
            async with self._parsing:
                events = await asyncio.to_thread(make_events, endpoint.source, preset, raw, endpoint.routes)
        else:
            events = make_events(endpoint.source, preset, raw, endpoint.routes)
        reject_old(endpoint.source, events)
        if trace is not None:
            events = trace.sample(events)
        receipts = await services.writer.append(events) if events else []
        if trace is not None and not trace.is_left_out:
            trace.receipts = receipts
        timeout = wait_timeout(endpoint.source, raw.headers.get("prefer"))
        if timeout is not None:
            return Awaited(endpoint, receipts, timeout)
        _acknowledge(preset, resp, preset.status, [receipt.status for receipt in receipts], receipts)
        return None

    async def _wait(
        self, services: Services, req: Request, resp: Response, awaited: Awaited, trace: IntakeTrace | None
    ) -> None:
        """Respond with the outcome. The body and its reserved memory are already released."""
        source, receipts = awaited.endpoint.source.name, awaited.receipts
        if trace is not None and trace.raw is not None:
            trace.raw = msgspec.structs.replace(trace.raw, body=b"")
        try:
            if services.outcomes is None:
                raise StillOpen("stored; this receiver does not wait for outcomes")
            seqs = [receipt.seq for receipt in receipts]
            await services.outcomes.wait_until_delivered(
                source, seqs, within=awaited.within, when_gone=req.scope.get(WHEN_GONE)
            )
        except RequestError as error:
            if trace is not None:
                trace.cause = error.cause
            services.meters.count(metrics.REJECTED, source, error.cause)
            raise
        _acknowledge(awaited.endpoint.preset, resp, falcon.HTTP_200, ["delivered"] * len(receipts), receipts)


def _acknowledge(
    preset: Preset, resp: Response, status: int | str, statuses: Sequence[str], receipts: Sequence[Receipt]
) -> None:
    resp.status = status
    if not preset.answers_empty:
        own = preset.acknowledgement
        resp.content_type, resp.data = own or (falcon.MEDIA_JSON, receipt_json(statuses, receipts))


async def _verify(verifier: Verifier, raw: RawRequest) -> None:
    if len(raw.body) > OFFLOADED_BYTES or len(raw.body) * verifier.passes > OFFLOADED_HASHING:
        await asyncio.to_thread(verifier.verify, raw, raw.received_at)
    else:
        verifier.verify(raw, raw.received_at)


def get_sender(req: Request) -> str | None:
    """Return the address of the connection, or the one reported by a trusted proxy; None if it isn't an address.

    Falcon's `remote_addr` would report 127.0.0.1 for a closed connection.
    """
    client = req.scope.get("client")
    return address_text(client[0]) if client else None


def receipt_json(statuses: Sequence[str], receipts: Sequence[Receipt]) -> bytes:
    """Format the response: an object for one event, a list for several or none."""
    if len(receipts) == 1:
        return b'{"status":"%b","seq":%d}' % (statuses[0].encode(), receipts[0].seq)
    listed = [{"status": status, "seq": each.seq} for status, each in zip(statuses, receipts, strict=True)]
    return msgspec.json.encode({"events": listed})


def enforce_rate_limit(endpoint: SourceEndpoint) -> None:
    """Take one token of the source's rate. Only authenticated requests get here, so strangers take none.

    Raises:
        TooMany: there is no token.
    """
    if endpoint.bucket is None:
        return
    wait = endpoint.bucket.take(time.monotonic())
    if wait:
        raise TooMany("this source sends more than its rate; send it again later", retry_after_seconds=math.ceil(wait))


def _answer_as_provider(proven: SourceEndpoint | None, error: RequestError, resp: Response) -> bool:
    """Write an error in the provider's format. Returns False if it has none for this error."""
    if proven is None or proven.preset.rejection is None or isinstance(error, Unavailable | TooMany):
        return False
    resp.status, resp.data = proven.preset.rejection(error)
    resp.content_type = falcon.MEDIA_JSON
    return True


def _make_row(proven: SourceEndpoint | None, raw: RawRequest, error: RequestError) -> Rejected:
    """Build the row of a rejected request, without body and headers if the sender is not authenticated."""
    return Rejected(
        received_at=raw.received_at,
        source=raw.source,
        status=error.status,
        cause=error.cause,
        reason=make_storable((error.why if isinstance(error, NotAuthenticated) else None) or error.detail),
        field=error.field,
        remote_address=raw.remote_address,
        body_sha256=hashlib.sha256(raw.body).digest(),
        headers=None if proven is None else kept_headers(proven.source, proven.preset, raw),
        body=None if proven is None else raw.body,
    )


LONGEST_WAIT_SECONDS = 60.0
_WAIT = re.compile(r"\s*wait\s*=\s*([0-9]{1,4})\s*(?:;.*)?", re.IGNORECASE)


def wait_timeout(source: Source, prefer: str | None) -> float | None:
    """Return the seconds to wait for the outcome; None to respond after the commit.

    A request may ask to wait by `Prefer: wait=N` (RFC 7240 §4.3), at most a minute; other preferences are ignored.
    """
    if prefer is not None:
        for preference in prefer.split(","):
            if match := _WAIT.fullmatch(preference):
                return min(float(match[1]), LONGEST_WAIT_SECONDS)
    return float(source.answer_timeout) if source.answer == "delivered" else None
