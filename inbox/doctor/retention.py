"""Retention as relays carry it out: kinds of rows that stay longer than their age, and a pruner that fails or stands still."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import text

from inbox.config.model import Retention
from inbox.db.pruning import database_time, states
from inbox.events.timestamps import as_time
from inbox.examination import DoctorFinding, Examination, FindingKind, Installation

BEHIND = FindingKind(
    "retention_behind",
    "warning",
    "Rows stay for longer than their age.",
    "more arrives than relays prune, or somebody holds rows locked: the disk fills up",
    "inbox prune --kind {kind}",
)
FAILED = FindingKind(
    "retention_failed",
    "warning",
    "The last batch of a kind could not be pruned.",
    "its rows stay until the cause is gone; other kinds are pruned",
    "inbox prune --kind {kind}",
)
IDLE = FindingKind(
    "retention_idle",
    "warning",
    "No relay has pruned anything for a day.",
    "rows that have expired stay, and the disk fills up",
    "inbox prune --dry-run",
)
_IDLE_FOR = timedelta(days=1)


def _retention(installation: Installation) -> Iterator[DoctorFinding]:
    retention: Retention = installation.config.retention
    with installation.reading() as connection:
        now = database_time(connection)
        ran_at = connection.execute(text("SELECT ran_at FROM pruner WHERE id = 1")).scalar()
        every = states(connection)
    if ran_at is not None and now - as_time(ran_at) > _IDLE_FOR:
        yield IDLE.found("pruner", f"a relay pruned last at {as_time(ran_at):%Y-%m-%d %H:%M}Z")
    for kind, state in every.items():
        if retention.age_of(kind).is_forever:
            continue
        if state.behind_since is not None:
            what = f"{kind}: the oldest expired row is {state.behind_seconds / 86_400:,.1f} d late"
            yield BEHIND.found(kind, what, kind=kind)
        if state.error:
            yield FAILED.found(kind, f"{kind}: {state.error}", kind=kind)


EXAMINATIONS = (
    Examination("retention", "Disk", "Progress of retention, kind by kind.", _retention, (BEHIND, FAILED, IDLE)),
)
