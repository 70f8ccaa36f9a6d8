"""The one POST resource: bytes and headers in, an answer out, and between them the writer's commit."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import ParamSpec, Protocol, TypeVar

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.clock import Clock
from inbox.config.model import Route, Source
from inbox.db.intake import Rejected
from inbox.errors import (
    NotAuthenticated,
    NotDelivered,
    RequestError,
    StillOpen,
    TooMany,
    Unavailable,
)
from inbox.events.event import Event, RawRequest, Receipt
from inbox.http.body import read
from inbox.http.limits import Bucket, MemoryBudget, Reservation
from inbox.sources import PRESETS
from inbox.sources.base import Preset
from inbox.sources.credentials import Verifier
from inbox.sources.normalize import events_of, kept_headers, refuse_old
from inbox.sources.sender import address_of
from inbox.telemetry import metrics
from inbox.telemetry.metrics import OFF

UNKNOWN_SOURCE_MAX_BODY = 256 * 1024
"""Bytes: as most presets have it. A source with another limit can be told from one that does not exist by a larger request;
to read all for everybody would let strangers send as much as the largest source may."""

AT_ONCE = 64 * 1024
"""Bytes. A larger body is hashed and read in a thread: 25 MiB take a good part of a second, in which no other request of the
process would get on. Hashing lets other threads run. Reading does not, or not often, so one is read at a time: the event loop
waits for a single one, and what more than `MEMORY_FOR_BODY` it may take, it takes once."""

HASHED_AT_ONCE = 1024 * 1024
"""Bytes, which take 1 to 3 ms. A refusal hashes the body with every key of all sources: beyond this a thread does."""

_HANDSHAKES = frozenset(
    (preset.handshake.method, preset.handshake.header)
    for preset in PRESETS.values()
    if preset.handshake is not None and preset.handshake.header is not None
)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Writer(Protocol):
    """What stores events; `inbox.receiver.writer.GroupCommit` in earnest."""

    async def append(self, events: Sequence[Event]) -> list[Receipt]:
        """Store the events of one request, all or none; return after the commit."""
        ...

    async def probe(self) -> None:
        """Raise Unavailable when nothing can be stored now."""
        ...

    def reject(self, row: Rejected) -> None:
        """Keep a refusal, when there is room."""
        ...

    async def close(self) -> None:
        """Store what waits, and stop."""
        ...


class Outcomes(Protocol):
    """What knows how deliveries end; `inbox.receiver.outcome_waiter.Waiting` in earnest."""

    async def delivered(self, seqs: Sequence[int], *, within: float, at_most: int) -> None:
        """Return when all of these events have ended well on every route."""
        ...

    async def close(self) -> None:
        """Let nobody wait any more."""
        ...


class SourceEndpoint(msgspec.Struct, frozen=True):
    """One source as the receiver sees it: everything that can be worked out before the first request."""

    source: Source
    preset: Preset
    verifier: Verifier
    routes: tuple[Route, ...]
    bucket: Bucket | None = None
    """What its `rate` lets through; each process that is forked has one of its own."""

    @property
    def max_body(self) -> int:
        """The largest body it may send, in bytes."""
        return self.source.max_body or self.preset.max_body


class Webhooks:
    """`POST /webhooks/{source}`: read, verify, identify, route, store, answer."""

    def __init__(
        self, inlets: Mapping[str, SourceEndpoint], stranger: Verifier, clock: Clock, room: MemoryBudget
    ) -> None:
        self._inlets = inlets
        self._room = room
        self._stranger = stranger
        self._clock = clock
        self._reading = asyncio.Lock()
        self.writer: Writer | None = None
        self.waiting: Outcomes | None = None
        self.meters = OFF

    async def on_post(self, req: Request, resp: Response, source: str, token: str | None = None) -> None:
        """Answer 200, or what the provider wants, once every event of the body is committed."""
        await self._answer(req, resp, source, token)

    async def on_get(self, req: Request, resp: Response, source: str, token: str | None = None) -> None:
        """Answer a handshake; 405 to everything else."""
        await self._answer(req, resp, source, token)

    async def on_options(self, req: Request, resp: Response, source: str, token: str | None = None) -> None:
        """Answer a handshake; 405 to everything else."""
        await self._answer(req, resp, source, token)

    async def _answer(self, req: Request, resp: Response, source: str, token: str | None) -> None:
        began, status = time.perf_counter(), "500"
        try:
            await self._handle(req, resp, source, token)
            status = str(resp.status)[:3]
        except (RequestError, falcon.HTTPError) as error:
            status = str(error.status)[:3]
            raise
        finally:
            self.meters.observe(metrics.REQUEST_SECONDS, time.perf_counter() - began, status)

    async def _handle(self, req: Request, resp: Response, source: str, token: str | None) -> None:
        headers = req.headers_lower
        # By the request alone, or the answer would tell which sources there are.
        if req.method != "POST" and _HANDSHAKES.isdisjoint((req.method, name) for name in headers):
            raise falcon.HTTPMethodNotAllowed(["POST"])
        inlet = self._inlets.get(source)
        body, place = b"", Reservation(self._room)
        proven: SourceEndpoint | None = None
        try:
            body = await read(req, UNKNOWN_SOURCE_MAX_BODY if inlet is None else inlet.max_body, place)
            raw = RawRequest(
                source=source,
                headers=headers,
                body=body,
                received_at=self._clock.now(),
                url_token=token,
                remote_address=sender_of(req),
                method=req.method,
                query=req.query_string,
            )
            verifier = self._stranger if inlet is None else inlet.verifier
            if len(body) * verifier.passes > HASHED_AT_ONCE:
                await asyncio.to_thread(verifier.verify, raw, raw.received_at)
            else:
                await _beside(body, verifier.verify, raw, raw.received_at)
            proven = inlet
            if proven is None:
                raise NotAuthenticated("unknown source")  # the stranger's verifier has refused already
            _spend(proven)
            await self._take_in(proven, raw, resp)
        except RequestError as error:
            self.meters.count(metrics.REJECTED, metrics.UNKNOWN if inlet is None else source, error.cause)
            if not isinstance(error, Unavailable | NotDelivered) and self.writer is not None:
                named = source if inlet is not None else unnamed(source)
                raw = RawRequest(named, headers, body, self._clock.now(), remote_address=sender_of(req))
                self.writer.reject(await _beside(body, _rejected, proven, raw, error))
            if (
                proven is None
                or proven.preset.refusal is None
                or isinstance(error, Unavailable | NotDelivered | TooMany)
            ):
                raise
            resp.status, resp.data = proven.preset.refusal(error)
            resp.content_type = falcon.MEDIA_JSON
        finally:
            place.leave()

    async def _take_in(self, inlet: SourceEndpoint, raw: RawRequest, resp: Response) -> None:
        preset = inlet.preset
        if "access_token" in raw.query:
            resp.cache_control = ["private"]  # RFC 6750 §2.3 wants it of answers to URLs that hold a token
        greeting = preset.greeting(raw)
        if greeting is not None:
            resp.status, resp.data, resp.content_type = greeting.status, greeting.body, greeting.content_type
            resp.set_headers(greeting.headers)
            return
        if raw.method != "POST":
            raise falcon.HTTPMethodNotAllowed(["POST"])
        async with self._reading if len(raw.body) > AT_ONCE else nullcontext():
            events = await _beside(raw.body, events_of, inlet.source, preset, raw, inlet.routes)
        refuse_old(inlet.source, events)
        if self.writer is None:
            raise Unavailable("the receiver is starting")
        receipts = await self.writer.append(events) if events else []
        statuses = [receipt.status for receipt in receipts]
        patience = wait_timeout(inlet.source, raw.headers.get("prefer"))
        if patience is not None:
            statuses = [await self._delivered([each.seq for each in receipts], inlet, patience)] * len(receipts)
        resp.status = preset.status if patience is None else falcon.HTTP_200
        if not preset.answers_empty:
            resp.content_type = falcon.MEDIA_JSON
            resp.data = _told(statuses, receipts)

    async def _delivered(self, seqs: Sequence[int], inlet: SourceEndpoint, patience: float) -> str:
        if self.waiting is None:
            raise StillOpen("the receiver is starting")
        await self.waiting.delivered(seqs, within=patience, at_most=inlet.source.answer_waiting)
        return "delivered"


def sender_of(req: Request) -> str | None:
    """The address of the connection, or what a trusted proxy says; None when neither is an address.

    Not Falcon's `remote_addr`: for that, a connection that is gone already comes from 127.0.0.1.
    """
    client = req.scope.get("client")
    address = address_of(client[0]) if client else None
    return None if address is None else str(address)


async def _beside(body: bytes, function: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    """What the function makes of a request with this body, without keeping others waiting when it is large."""
    if len(body) > AT_ONCE:
        return await asyncio.to_thread(function, *arguments, **named)
    return function(*arguments, **named)


def _told(statuses: Sequence[str], receipts: Sequence[Receipt]) -> bytes:
    """What is answered: of one event it alone, of several or none a list."""
    if len(receipts) == 1:
        return b'{"status":"%b","seq":%d}' % (statuses[0].encode(), receipts[0].seq)
    listed = [{"status": status, "seq": each.seq} for status, each in zip(statuses, receipts, strict=True)]
    return msgspec.json.encode({"events": listed})


def _spend(inlet: SourceEndpoint) -> None:
    """Use one of what the source may send. Whoever is not the source has been refused before, and uses up nothing of it.

    Raises:
        TooMany: there is none.
    """
    if inlet.bucket is None:
        return
    wait = inlet.bucket.take(time.monotonic())
    if wait:
        raise TooMany("this source sends more than its rate; send it again later", retry_after_seconds=math.ceil(wait))


def unnamed(source: str) -> str:
    """What is kept of a source that there is not: its name may be a token whose sender has forgotten the source."""
    return f"unknown ({len(source)} characters)"


def _rejected(inlet: SourceEndpoint | None, raw: RawRequest, error: RequestError) -> Rejected:
    """Of a sender that did not prove who it is (`inlet` is None), neither body nor headers are kept."""
    return Rejected(
        received_at=raw.received_at,
        source=raw.source,
        status=error.status,
        cause=error.cause,
        reason=_storable((error.why if isinstance(error, NotAuthenticated) else None) or error.detail),
        field=error.field,
        remote_address=raw.remote_address,
        body_sha256=hashlib.sha256(raw.body).digest(),
        headers=None if inlet is None else kept_headers(inlet.source, inlet.preset, raw.headers),
        body=None if inlet is None else raw.body,
    )


def _storable(text: str) -> str:
    """Postgres stores no NUL in a text, and UTF-8 has no half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


LONGEST_WAIT_SECONDS = 60.0
_WAIT = re.compile(r"\s*wait\s*=\s*([0-9]{1,4})\s*(?:;.*)?", re.IGNORECASE)


def wait_timeout(source: Source, prefer: str | None) -> float | None:
    """For how many seconds the outcome is waited for; None: the answer is made after the commit.

    A request may ask for it by `Prefer: wait=N` (RFC 7240 §4.3), for a minute at most; what else it prefers is ignored.
    """
    for preference in (prefer or "").split(","):
        if match := _WAIT.fullmatch(preference):
            return min(float(match[1]), LONGEST_WAIT_SECONDS)
    return float(source.answer_timeout) if source.answer == "delivered" else None
