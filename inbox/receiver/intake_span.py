"""The trace of one request: its times are noted as it goes on, and its spans made at the end, if it is sampled."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from falcon.asgi import Request

from inbox.events.event import Event, RawRequest, Receipt
from inbox.observe.traces import Span, Tracer
from inbox.receiver.writer import CommitTimes
from inbox.sources.normalize import valid_traceparent

SERVER_ERROR = 500


class IntakeTrace(msgspec.Struct, eq=False, gc=False):
    """Notes of one request in progress, in `time.perf_counter` seconds; made only where traces are on.

    Nothing that it holds refers to it, so the collector of garbage need not look at it.
    """

    tracer: Tracer
    req: Request
    began: float
    verified: float = 0.0
    raw: RawRequest | None = None
    """Set once the sender is proven: from then on its trace context counts."""
    queued: float = 0.0
    commit: CommitTimes | None = None
    """To be filled in; None for a request that is not sampled."""
    receipts: Sequence[Receipt] = ()
    cause: str | None = None
    """Of a rejection, as in `rejected_request`."""
    span: Span | None = None
    is_left_out: bool = False
    """True once its events have decided that it is not sampled."""

    def sample(self, events: Sequence[Event]) -> Sequence[Event]:
        """Decide whether it is sampled. Return the events; those of a sampled request continue its span."""
        if not events:
            return events
        self.span = self._begin(events[0].traceparent)
        if self.span is None:
            self.is_left_out = True
            return events
        self.queued, self.commit = time.perf_counter(), CommitTimes()
        traceparent = self.span.traceparent
        return [msgspec.structs.replace(event, traceparent=traceparent) for event in events]

    def end(self, status: str) -> None:
        """End a request that is not left out: make and export its spans, if it is sampled."""
        span = self.span
        if span is None:  # it was rejected, or holds no event
            sent = None if self.raw is None else self.raw.headers.get("traceparent")
            span = self._begin(valid_traceparent(sent))
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
            span.child("verify", began=self.began).end(at=self.verified)
        self._end_commit(span)
        if self.cause is not None:
            span.attributes["inbox.cause"] = self.cause
        failed = int(status) >= SERVER_ERROR
        span.end(error=(self.cause or status) if failed else None)

    def _begin(self, parent: str | None) -> Span | None:
        return self.tracer.begin(f"{self.req.method} /webhooks/{{source}}", "server", parent=parent, began=self.began)

    def _end_commit(self, span: Span) -> None:
        if self.receipts:
            span.attributes["inbox.seq"] = self.receipts[0].seq
            span.attributes["inbox.duplicates"] = sum(receipt.duplicate for receipt in self.receipts)
            span.attributes["messaging.batch.message_count"] = len(self.receipts)
        if self.commit is None or not self.commit.ended:
            return
        span.child("wait for commit", began=self.queued).end(at=self.commit.began)
        commit = span.child("commit", began=self.commit.began)
        commit.attributes["messaging.batch.message_count"] = self.commit.events
        commit.end(at=self.commit.ended)
