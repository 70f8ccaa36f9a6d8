"""Arriving webhooks: sources that went silent, and rejections that rise. Only the newest rows are read."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import text

from inbox.events.timestamps import as_time
from inbox.examination import DoctorFinding, Examination, FindingKind, Installation

SILENT = FindingKind(
    "source_silent",
    "warning",
    "A source has sent nothing for longer than its `silent_after`.",
    "its webhooks may be lost on the way: a disabled hook, a proxy, an expired certificate",
    "inbox rejected --source {source}",
)
NEVER = FindingKind(
    "source_never_heard",
    "information",
    "A source has never sent anything.",
    "it is new, or its sender has another URL",
    "inbox send {source}",
)
_MOST_EVENTS = 10_000


def _sources(installation: Installation) -> Iterator[DoctorFinding]:
    sources = installation.config.sources
    with installation.reading() as connection:
        rows = connection.execute(_NEWEST_OF_SOURCES, {"most": _MOST_EVENTS}).all()
        newest = {row.source: as_time(row.newest) for row in rows}
        whole = sum(row.events for row in rows) < _MOST_EVENTS
        oldest = min((as_time(row.oldest) for row in rows), default=installation.now)
        for name, source in sources.items():
            last = newest.get(name)
            if last is None and not connection.execute(_ANY_OF_SOURCE, {"source": name}).first():
                yield NEVER.found(name, f"source {name} has never sent anything", source=shlex.quote(name))
                continue
            if source.silent_after is None:
                continue
            # one that is not among the newest events was last heard before all of them
            heard = last or oldest
            silent = (installation.now - heard).total_seconds()
            if silent > source.silent_after:
                longer = "" if last or whole else "more than "
                what = f"source {name}: nothing has arrived for {longer}{silent / 3600:,.1f} h"
                yield SILENT.found(name, what, source=shlex.quote(name))


_NEWEST_OF_SOURCES = text("""
SELECT source, max(received_at) AS newest, min(received_at) AS oldest, count(*) AS events
FROM (SELECT source, received_at FROM inbox ORDER BY seq DESC LIMIT :most) newest
GROUP BY source
""")
_ANY_OF_SOURCE = text(
    "SELECT 1 FROM inbox WHERE source = :source ORDER BY source, entity_type, entity_id, seq LIMIT 1"  # by the index
)

RISING = FindingKind(
    "rejections_rising",
    "warning",
    "Many more requests were rejected in the last hour than in the hours before.",
    "a sender has changed, a secret is wrong, or somebody tries the door",
    "inbox rejected",
)
_MOST_REJECTED = 5000
_HOUR = timedelta(hours=1)
_LEAST_IN_HOUR = 30
_RISE = 3


def _rejected(installation: Installation) -> Iterator[DoctorFinding]:
    with installation.reading() as connection:
        rows = connection.execute(_NEWEST_REJECTED, {"most": _MOST_REJECTED}).all()
    if not rows:
        return
    times = [as_time(row.received_at) for row in rows]
    begin = installation.now - _HOUR
    lately = [row for row, moment in zip(rows, times, strict=True) if moment >= begin]
    is_cut = len(rows) == _MOST_REJECTED
    hours = max((begin - min(times)) / _HOUR, 0.0)
    before = (len(rows) - len(lately)) / max(hours, 24 if not is_cut else 1.0)
    if len(lately) < _LEAST_IN_HOUR or len(lately) < _RISE * before:
        return
    causes = Counter(
        (row.source if row.source in installation.config.sources else "unknown", row.cause) for row in lately
    )
    (source, cause), number = causes.most_common(1)[0]
    more = " or more" if is_cut and len(lately) == len(rows) else ""
    yield RISING.found(
        source,
        f"{len(lately):,}{more} requests were rejected in the last hour, and {before:,.0f} an hour before; {number:,} of them of"
        f" source {source} as {cause}",
    )


_NEWEST_REJECTED = text("SELECT received_at, source, cause FROM rejected_request ORDER BY id DESC LIMIT :most")

EXAMINATIONS = (
    Examination("sources", "Traffic", "The last webhook of each source.", _sources, (SILENT, NEVER)),
    Examination("rejected", "Traffic", "Rejected requests of the last hour.", _rejected, (RISING,)),
)
