"""`/doctor`: findings of `inbox doctor`. A look examines, unless another did in the last minute."""

from __future__ import annotations

import time
from datetime import datetime

import msgspec

from relay.doctor.examinations import EXAMINATIONS
from relay.doctor.run import ExaminationResult, installed, run
from relay.findings import LEVELS, Finding
from relay.web.reading import Reading, Screen

KEPT_SECONDS = 60.0
"""A report that is younger is shown again: the examinations cost the database some seconds of work."""


class DoctorQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The doctor takes no parameter."""


class DoctorPage(msgspec.Struct, frozen=True, kw_only=True):
    """The last report, for everybody; it is made when it is asked for and the one before is a minute old."""

    began_at: datetime
    seconds: float
    """Duration of the examinations."""
    findings: tuple[Finding, ...]
    """The critical ones first, then warnings, then information."""
    not_examined: tuple[ExaminationResult, ...]
    """Examinations that were not made, or only in part, with their requirement."""
    clean: tuple[str, ...]
    """Examinations that found nothing."""


def read(reading: Reading, _query: DoctorQuery) -> DoctorPage:
    """Show the last report, or make it."""
    page: DoctorPage = reading.kept("doctor", KEPT_SECONDS, lambda: _examine(reading))
    return page


def _examine(reading: Reading) -> DoctorPage:
    began = time.monotonic()
    with installed(reading.config) as installation:
        results = run(installation, EXAMINATIONS)
    found = [finding for result in results for finding in result.findings]
    return DoctorPage(
        began_at=reading.now,
        seconds=round(time.monotonic() - began, 3),
        findings=tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level))),
        not_examined=tuple(result for result in results if result.needs),
        clean=tuple(result.name for result in results if not result.needs and not result.findings),
    )


SCREEN = Screen(
    name="doctor",
    path="/doctor",
    title="Doctor",
    query=DoctorQuery,
    page=DoctorPage,
    read=read,
    template="doctor.html",
    is_live=False,
)
