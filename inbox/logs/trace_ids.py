"""The trace that the current thread or task works on, for log lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec


class TraceIds(msgspec.Struct, frozen=True):
    """Ids of a span, in lower-case hexadecimal: 32 and 16 digits."""

    trace_id: str
    span_id: str


_current: ContextVar[TraceIds | None] = ContextVar("trace_ids", default=None)


def current_ids() -> TraceIds | None:
    """Return the ids of the span that this thread or task works on; None without one."""
    return _current.get()


@contextmanager
def working_on(ids: TraceIds | None) -> Iterator[None]:
    """Let log lines of this thread or task have these ids."""
    token = _current.set(ids)
    try:
        yield
    finally:
        _current.reset(token)
