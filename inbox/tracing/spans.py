"""Spans, and the tracer that begins them. This module imports no OpenTelemetry; `inbox.tracing.exporting` does.

A span exists only for sampled work: everything takes `Span | None`, and None costs nothing.
"""

from __future__ import annotations

import hashlib
import random
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import msgspec

from inbox.clock import epoch_nanoseconds
from inbox.logs.trace_ids import TraceIds, working_on

Kind = Literal["internal", "server", "client", "consumer"]
Value = str | int | float | bool

_HALVES = struct.Struct(">QQ")
_LOWEST = (1 << 32) - 1
_random = random.Random()  # noqa: S311  # ids need to be unique, not secret


class EndedSpan(msgspec.Struct, frozen=True):
    """A span that has ended, as it is exported. Times are nanoseconds since 1970."""

    name: str
    kind: Kind
    ids: TraceIds
    parent: TraceIds | None
    """None for a span without one."""
    began: int
    ended: int
    attributes: dict[str, Value]
    error: str | None = None
    """Class of the failure; None for success."""
    link: TraceIds | None = None
    """A span of another trace to which this one belongs."""
    is_continued: bool = False
    """True where another program began the parent: tracing systems show the step between services by it."""


class Span:
    """A sampled span in progress. Only the thread or task that works on it calls it. Times are `time.perf_counter` seconds."""

    __slots__ = (
        "_began",
        "_is_continued",
        "_link",
        "_offset",
        "_parent",
        "_tracer",
        "attributes",
        "ids",
        "kind",
        "name",
    )

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        kind: Kind,
        ids: TraceIds,
        *,
        parent: TraceIds | None = None,
        is_continued: bool = True,
        link: TraceIds | None = None,
        began: float | None = None,
        offset: int | None = None,
    ) -> None:
        now = time.perf_counter()
        self.name = name
        self.kind: Kind = kind
        self.ids = ids
        self.attributes: dict[str, Value] = {}
        self._tracer = tracer
        self._parent = parent
        self._is_continued = is_continued
        self._link = link
        self._began = now if began is None else began
        self._offset = epoch_nanoseconds() - int(now * 1e9) if offset is None else offset
        """Turns seconds of the counter into the wall clock's. Children share it: a clock that is set meanwhile bends no tree."""

    @property
    def traceparent(self) -> str:
        """Return the header by which others continue this span."""
        return f"00-{self.ids.trace_id}-{self.ids.span_id}-01"

    def child(self, name: str, kind: Kind = "internal", *, began: float | None = None) -> Span:
        """Begin a span below this one, now or at `began`."""
        ids = TraceIds(self.ids.trace_id, new_span_id())
        return Span(
            self._tracer, name, kind, ids, parent=self.ids, is_continued=False, began=began, offset=self._offset
        )

    @contextmanager
    def current(self) -> Iterator[None]:
        """Let log lines of this thread have its ids, and spans that other code begins be its children."""
        with working_on(self.ids), self._tracer.attached(self.ids):
            yield

    def end(self, *, error: str | None = None, at: float | None = None) -> None:
        """End it, now or at `at`, and export it. Raises nothing."""
        ended = time.perf_counter() if at is None else at
        self._tracer.export(
            EndedSpan(
                self.name,
                self.kind,
                self.ids,
                self._parent,
                int(self._began * 1e9) + self._offset,
                int(ended * 1e9) + self._offset,
                self.attributes,
                error,
                self._link,
                self._is_continued,
            )
        )


class Tracer:
    """Begins spans of sampled work. This class samples nothing; `inbox.tracing.exporting.OtelTracer` does."""

    is_on = False
    least_ruled_out = 0
    """Of the checksums of seeds: `begin` would surely return None for one that has none below it."""

    def begin(
        self,
        name: str,
        kind: Kind,
        *,
        parent: str | None = None,
        seed: str | None = None,
        is_apart: bool = False,
        began: float | None = None,
    ) -> Span | None:
        """Begin a span, if the sampler takes it; return None otherwise. It raises nothing.

        Args:
            name: one of few names, without values of a request.
            kind: the role of the work, as OpenTelemetry has it.
            parent: the `traceparent` that it continues, in version 00.
            seed: a text that gives a trace without `parent` its id. Equal texts are sampled alike by a share of ids.
            is_apart: True for a trace of its own, with a link to `parent`; it is sampled as that would be.
            began: when the work began, in `time.perf_counter` seconds; now unless given.
        """
        del name, kind, parent, seed, is_apart, began
        return None

    def export(self, span: EndedSpan) -> None:
        """Queue a span for export. It never waits, and raises nothing."""

    def attached(self, ids: TraceIds) -> AbstractContextManager[None]:
        """Let spans that other code begins in this thread be children of this one."""
        del ids
        return nullcontext()

    def close(self) -> None:
        """Export what is queued, for at most a second."""


OFF = Tracer()


def new_span_id() -> str:
    """Make a span id: 16 hexadecimal digits, not all zero."""
    return f"{_random.getrandbits(64) or 1:016x}"


def new_trace_id(seed: str | None = None) -> int:
    """Make a trace id of 128 bits that is not 0: at random, or from a seed."""
    if seed is None:
        return _random.getrandbits(128) or 1
    high, low = _HALVES.unpack_from(hashlib.sha256(seed.encode()).digest())
    # A share of all traces has those whose lower half is low enough. Its upper 32 bits are a checksum: most traces are ruled
    # out by it, in a third of the time that their ids take.
    return (high << 64 | seed_checksum(seed.encode()) << 32 | low & _LOWEST) or 1


seed_checksum = zlib.crc32
"""The checksum of a seed in UTF-8, 32 bits."""


def unsampled_context(seed: str) -> str:
    """Make a `traceparent` by which nobody samples: for what belongs to work that was not sampled."""
    return f"00-{new_trace_id(seed):032x}-{new_span_id()}-00"


def trace_id_apart(trace_id: int) -> int:
    """Make another trace id with the same lower half, which decides whether a share of all traces contains it."""
    return (_random.getrandbits(64) or 1) << 64 | (trace_id & (1 << 64) - 1)


def event_seed(source: str, dedup_key: str) -> str:
    """Return the seed of an event's trace. Receiver and relays sample it alike without storing anything."""
    return f"{source}|{dedup_key}"
