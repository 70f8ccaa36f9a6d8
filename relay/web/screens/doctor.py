"""`/doctor`: findings of `inbox doctor`, as the last run has them."""

from __future__ import annotations

from datetime import datetime

import msgspec

from relay.doctor.run import ExaminationResult
from relay.findings import LEVELS, Finding
from relay.web.reading import Reading, Screen


class DoctorQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The doctor takes no parameter: `POST /doctor/run` runs it."""


class DoctorPage(msgspec.Struct, frozen=True):
    """The last report of this page, for everybody."""

    running_since: datetime | None
    """Start of the run that is under way; None: there is none."""
    began_at: datetime | None
    """Start of the run that the rest is of; None: there was none since the page started."""
    seconds: float | None
    error: str | None
    findings: tuple[Finding, ...]
    """The critical ones first, then warnings, then information."""
    not_examined: tuple[ExaminationResult, ...]
    """Examinations that were not made, or only in part, with their requirement."""
    clean: tuple[str, ...]
    """Examinations that found nothing."""


def read(reading: Reading, _query: DoctorQuery) -> DoctorPage:
    """Show the last report. Nothing is examined here."""
    report, running_since = reading.doctor.report, reading.doctor.running_since
    if report is None:
        return DoctorPage(running_since, None, None, None, (), (), ())  # a struct's field
    found = [finding for result in report.results for finding in result.findings]
    return DoctorPage(
        running_since,
        report.began_at,
        report.seconds,
        report.error,
        tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level))),
        tuple(result for result in report.results if result.needs),
        tuple(result.name for result in report.results if not result.needs and not result.findings),
    )


SCREEN = Screen(
    name="doctor",
    path="/doctor",
    title="Doctor",
    query=DoctorQuery,
    page=DoctorPage,
    read=read,
    template="doctor.html",
)
