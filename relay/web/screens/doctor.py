"""`/doctor`: findings of `inbox doctor`. A look examines, unless another did in the last minute."""

from __future__ import annotations

import socket
import time
from datetime import datetime

import msgspec

from inbox.config.model import Config
from inbox.db.engine import connect_read_only
from inbox.doctor.run import ExaminationResult, examinations, run
from inbox.errors import ConfigError
from inbox.examination import LEVELS, Finding, Installation
from inbox.loader.load import ConfigFile, config_path, load_file, load_text
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
    try:
        engine = connect_read_only(reading.config.database.url, application="relay-web-doctor")
    except ConfigError:  # the examinations of the database say so
        engine = None
    try:
        file = _file_of(reading.config)
        results = run(Installation(config_path(), file, reading.now, socket.gethostname(), engine), examinations())
    finally:
        if engine is not None:
            engine.dispose()
    found = [finding for result in results for finding in result.findings]
    return DoctorPage(
        began_at=reading.now,
        seconds=round(time.monotonic() - began, 3),
        findings=tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level))),
        not_examined=tuple(result for result in results if not result.is_whole),
        clean=tuple(result.name for result in results if result.state == "examined" and not result.findings),
    )


def _file_of(config: Config) -> ConfigFile:
    """Return the file as it is now, on the page's database; without a file, the page's own configuration."""
    try:
        found = load_file()
    except ConfigError:
        found = load_text("")
        return msgspec.structs.replace(found, sound=config)
    return msgspec.structs.replace(found, sound=msgspec.structs.replace(found.sound, database=config.database))


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
