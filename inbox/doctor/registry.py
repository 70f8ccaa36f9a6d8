"""Every examination: those of the database, the host and the configuration, and those that an installed relay adds."""

from __future__ import annotations

from inbox import check
from inbox.doctor import configuration, database, disk, online, retention, schema_drift, server, traffic
from inbox.examination import Examination

OWN: tuple[Examination, ...] = (
    *database.EXAMINATIONS,
    *schema_drift.EXAMINATIONS,
    *server.EXAMINATIONS,
    *disk.EXAMINATIONS,
    *retention.EXAMINATIONS,
    *configuration.EXAMINATIONS,
    *traffic.EXAMINATIONS,
)


def examinations() -> tuple[Examination, ...]:
    """Return every examination in the order of their sections in a report."""
    further = [each for side in check.sides() for each in side.examinations]
    return (*OWN, *further, *online.EXAMINATIONS)
