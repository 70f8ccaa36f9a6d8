"""Runs the examinations: each apart from the others, within its time, and none that asks a database which is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec
from sqlalchemy.exc import DBAPIError

from inbox import check
from inbox.db.dialect import failure_of, trouble_text
from inbox.db.engine import parse_url
from inbox.doctor import configuration, database, schema_drift
from inbox.errors import ConfigError, NotExamined
from inbox.examination import Examination, Finding, Installation

LONGEST_SECONDS = 10.0
"""Longest time of an examination: a disk that hangs lets no call return. Statements end earlier by themselves."""

State = Literal["examined", "partly examined", "not examined", "does not apply"]


class ExaminationResult(msgspec.Struct, frozen=True):
    """The result of one examination."""

    name: str
    state: State
    needs: str | None
    """Its requirement, if it was not examined, or only in part."""
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def is_whole(self) -> bool:
        """Return whether everything was looked at."""
        return self.state in {"examined", "does not apply"}


def examinations() -> tuple[Examination, ...]:
    """Return every examination: the receiver's, and those that an installed relay adds."""
    further = [each for side in check.sides() for each in side.examinations]
    return (*database.EXAMINATIONS, *schema_drift.EXAMINATIONS, *configuration.EXAMINATIONS, *further)


def run(
    installation: Installation, examinations: Sequence[Examination], done: Callable[[str], None] = lambda _: None
) -> list[ExaminationResult]:
    """Run all examinations, in their order. One that fails is reported, and stops no other.

    A database that stops answering is a finding of the examination `database`, which so comes first.
    """
    dialect = _dialect_of(installation)
    results: list[ExaminationResult] = []
    is_gone = False
    for examination in [database.DATABASE, *(each for each in examinations if each is not database.DATABASE)]:
        if dialect is not None and dialect not in examination.on:
            result = ExaminationResult(examination.name, "does not apply", None, 0.0, ())
        elif examination.needs_database and is_gone:
            result = ExaminationResult(examination.name, "not examined", "needs the database", 0.0, ())
        else:
            result, went = _examined(installation, examination)
            is_gone = is_gone or went or (examination is database.DATABASE and bool(result.findings))
        if examination in examinations or result.findings:
            results.append(result)
        done(examination.name)
    return results


def _dialect_of(installation: Installation) -> str | None:
    try:
        return parse_url(installation.config.database.url).get_backend_name()
    except ConfigError:
        return None


def _examined(installation: Installation, examination: Examination) -> tuple[ExaminationResult, bool]:
    """Run one examination in a thread of its own. Returns its result, and whether the database stopped answering."""
    found: list[Finding] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            for each in examination.examine(installation):
                found.append(each)  # noqa: PERF402  # what was found before an error counts
        except Exception as error:  # noqa: BLE001  # whatever it is, the other examinations are made
            failed.append(error)

    began = time.monotonic()
    thread = threading.Thread(target=work, name=f"examine-{examination.name}", daemon=True)
    thread.start()
    thread.join(LONGEST_SECONDS)
    seconds = round(time.monotonic() - began, 3)
    needs = f"needs more than {seconds:.0f} s" if thread.is_alive() else _needs(failed[0]) if failed else None
    state: State = "examined" if needs is None else "partly examined" if found else "not examined"
    is_gone = bool(failed) and _is_gone(failed[0])
    if is_gone:
        found.append(database.unreachable(installation, failed[0]))
    return ExaminationResult(examination.name, state, needs, seconds, tuple(found)), is_gone


_SQLITE_INTERRUPT = 9
_TOO_SLOW, _ON_STANDBY = "57014", "25006"
_MIGRATE = "needs the schema of this version: run `inbox migrate` ({why})"
_NEEDS = {
    # https://www.postgresql.org/docs/current/errcodes-appendix.html: undefined table, column and function first
    **dict.fromkeys(("42P01", "42703", "42883", "no such table", "no such column"), _MIGRATE),
    **dict.fromkeys((_TOO_SLOW, "interrupted"), "needs more than 5 s for a statement"),
    "42501": "needs more rights in the database: {why}",
    "55P03": "needs a lock that another session holds",
    _ON_STANDBY: "needs the primary server: {why}",
}
"""Requirements by the error's SQLSTATE, or by the beginning of SQLite's message."""


def _needs(error: Exception) -> str:
    """Word what an examination would have needed."""
    if isinstance(error, NotExamined | ConfigError):
        return str(error)
    why = trouble_text(error)
    if not isinstance(error, DBAPIError):
        return f"needs a repair of its own: {why}"
    state = getattr(error.orig, "sqlstate", None) or why.partition(":")[0]
    return _NEEDS.get(state, "needs the database to answer: {why}").replace("{why}", why)


def _is_gone(error: Exception) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else None
    if getattr(cause, "sqlite_errorcode", None) == _SQLITE_INTERRUPT:
        return False
    return (
        cause is not None
        and getattr(cause, "sqlstate", None) not in {_TOO_SLOW, _ON_STANDBY}
        and (failure_of(error) == "unreachable")
    )


def findings(results: Sequence[ExaminationResult]) -> Iterator[Finding]:
    """Yield the findings, and no information."""
    for result in results:
        for each in result.findings:
            if each.level != "information":
                yield each
