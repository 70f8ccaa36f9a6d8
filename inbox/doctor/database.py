"""The database itself: does it answer, has it the schema of this version, what do stored webhooks rest on?"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from datetime import date

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db import guarantees, migrate
from inbox.db.dialect import POSTGRES, SQLITE
from inbox.db.trouble import trouble_text
from inbox.errors import ConfigError, NotExamined
from inbox.events.timestamps import as_time, rfc3339
from inbox.examination import DoctorFinding, Examination, FindingKind, Installation

# --- does it answer?

UNREACHABLE = FindingKind(
    "database_unreachable",
    "critical",
    "The database does not answer.",
    "every webhook gets 503, and nothing is delivered",
    "inbox check --online",
)
UNUSABLE = FindingKind(
    "database_url_unusable",
    "critical",
    "The URL of the database can't be used.",
    "neither program starts with it, and nothing of the database is examined",
    "inbox check",
)
UNREADABLE = FindingKind(
    "database_unreadable",
    "critical",
    "The SQLite file can't be read.",
    "every webhook gets 503, and nothing is delivered",
    "ls -l {path}; df -h {folder} # mend its rights or make room; a damaged file needs its last backup",
)
MISSING = FindingKind(
    "database_missing",
    "critical",
    "The SQLite file does not exist.",
    "neither program starts without it",
    "inbox migrate",
)


def _database(installation: Installation) -> Iterator[DoctorFinding]:
    try:
        engines.parse_url(installation.config.database.url)
    except ConfigError as error:
        yield UNUSABLE.found("url", str(error))
        return
    path = installation.sqlite_path
    try:
        if path is not None and not path.exists():
            yield MISSING.found(str(path), f"there is no file {path}")
            return
        with installation.reading() as connection:
            # SQLite opens any file, and looks into it only for its schema
            is_sqlite = connection.dialect.name == SQLITE
            connection.exec_driver_sql("PRAGMA schema_version" if is_sqlite else "SELECT 1")
    except (DBAPIError, OSError) as error:
        yield unreachable(installation, error)


def unreachable(installation: Installation, error: Exception) -> DoctorFinding:
    """Make the finding that the database can't be read."""
    why = str(error) if isinstance(error, OSError) else trouble_text(error)
    path = installation.sqlite_path
    if path is not None:
        places = {"path": shlex.quote(str(path)), "folder": shlex.quote(str(path.parent))}
        return UNREADABLE.found(str(path), f"{path} can't be read: {why}", **places)
    url = engines.shown(engines.parse_url(installation.config.database.url))
    return UNREACHABLE.found(url, f"{url} does not answer: {why}")


# --- versions

WAL_RESET = FindingKind(
    "sqlite_wal_reset_bug",
    "information",
    "SQLite has the WAL-reset bug, which both programs avoid.",
    "a checkpoint that runs while another connection commits can lose committed transactions"
    " (https://sqlite.org/wal.html#walresetbug). Both programs turn automatic checkpoints off, and copy the log only while they"
    " hold the write lock. Any other program that writes to the file must do the same",
    "PRAGMA wal_autocheckpoint = 0; -- in a shell or program of yours, before it writes",
)
WITHDRAWN = FindingKind(
    "sqlite_withdrawn",
    "warning",
    "SQLite 3.52.0 was withdrawn by its authors.",
    "it has problems that they judged important enough to replace it with 3.51.3",
    "python -c 'import sqlite3; print(sqlite3.sqlite_version)' # after an update of SQLite or of Python",
)
UNSUPPORTED = FindingKind(
    "server_unsupported",
    "warning",
    "This major version of Postgres gets no more updates.",
    "bugs that lose data, and holes in its security, stay open (https://www.postgresql.org/support/versioning/)",
    "pg_upgrade --check # with the programs of a newer version",
)
KNOWN_BUG = FindingKind(
    "server_known_bug",
    "warning",
    "This minor version of Postgres has a bug that concerns these tables.",
    "indexes that were made CONCURRENTLY can lack rows, so that events are not found and a lane gets a second head"
    " (https://www.postgresql.org/docs/release/14.4/)",
    "REINDEX DATABASE {database}; -- after an update to a later minor version",
)
VERSIONS = FindingKind("versions", "information", "Versions of server, library and driver.")

_FIXED, _BACKPORTS = (3, 51, 3), ((3, 44, 6), (3, 50, 7))
_LAST_DAYS = {
    14: date(2026, 11, 12),
    15: date(2027, 11, 11),
    16: date(2028, 11, 9),
    17: date(2029, 11, 8),
    18: date(2030, 11, 14),
}
"""Last day of each major version, by https://www.postgresql.org/support/versioning/."""
_CONCURRENTLY_BUG = range(140000, 140004)
_MAJOR = 10_000


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Return whether this version of SQLite has the WAL-reset bug: before 3.51.3, but for 3.44.6 and 3.50.7 and later."""
    is_backport = any(version[:2] == fixed[:2] and version >= fixed for fixed in _BACKPORTS)
    return version < _FIXED and not is_backport


def of_sqlite(version: tuple[int, ...]) -> Iterator[DoctorFinding]:
    """Yield what is known of a version of SQLite."""
    shown = ".".join(map(str, version))
    if has_wal_reset_bug(version):
        yield WAL_RESET.found("SQLite", f"SQLite {shown} has the WAL-reset bug, fixed in 3.51.3; it does no harm here")
    if version[:3] == (3, 52, 0):
        yield WITHDRAWN.found("SQLite", f"SQLite {shown} was withdrawn by its authors")


def of_postgres(number: int, today: date, database: str) -> Iterator[DoctorFinding]:
    """Yield what is known of a version of Postgres, given as `server_version_num`."""
    major, minor = divmod(number, _MAJOR)
    end = _LAST_DAYS.get(major)
    if major < min(_LAST_DAYS) or (end is not None and today > end):
        yield UNSUPPORTED.found("Postgres", f"Postgres {major} gets no more updates" + (f" since {end}" if end else ""))
    if number in _CONCURRENTLY_BUG:
        what = f"Postgres {major}.{minor} can make indexes that lack rows, with CREATE INDEX or REINDEX … CONCURRENTLY"
        yield KNOWN_BUG.found("Postgres", what, database=database)


def _versions(installation: Installation) -> Iterator[DoctorFinding]:
    with installation.reading() as connection:
        if connection.dialect.name == SQLITE:
            shown = connection.execute(text("SELECT sqlite_version()")).scalar_one()
            yield VERSIONS.found("SQLite", f"SQLite {shown}")
            yield from of_sqlite(tuple(int(part) for part in str(shown).split(".")))
            return
        row = connection.execute(
            text(
                "SELECT current_setting('server_version') AS shown, current_setting('server_version_num')::int AS number,"
                " quote_ident(current_database()) AS name"
            )
        ).one()
    driver = f"psycopg {psycopg.__version__}, libpq {psycopg.pq.version()}"
    yield VERSIONS.found("Postgres", f"Postgres {row.shown}, {driver}")
    yield from of_postgres(row.number, installation.now.date(), row.name)


# --- schema

PENDING = FindingKind(
    "migrations_pending",
    "critical",
    "The database lacks migrations of this version.",
    "receiver and relay of this version don't start",
    "inbox migrate",
)
TO_CONTRACT = FindingKind(
    "migrations_to_contract",
    "information",
    "Migrations wait until no older program runs.",
    "they remove what only older versions use",
    "inbox migrate --contract",
)
NEWER = FindingKind(
    "database_newer",
    "critical",
    "The database belongs to a newer version.",
    "receiver and relay of this version don't start",
    "pip install --upgrade inbox-relay",
)


def _migrations(installation: Installation) -> Iterator[DoctorFinding]:
    if installation.engine is None:
        raise NotExamined("needs a database url that can be used")
    try:
        lacking = migrate.plan(installation.engine)
    except ConfigError as error:
        yield NEWER.found("alembic_version", str(error))
        return
    adding = [step for step in lacking if not step.contracts]
    if adding:
        yield PENDING.found("alembic_version", f"{len(adding)} to run: {', '.join(map(str, adding))}")
    elif lacking:
        yield TO_CONTRACT.found("alembic_version", f"to follow: {', '.join(map(str, lacking))}")


# --- clocks

SKEW = FindingKind(
    "clock_skew",
    "warning",
    "The clocks of this host and of the database differ.",
    "secrets become valid and expire by the host's clock, and leases and retries follow the database's: signatures with a time"
    " are rejected, and ages in listings are wrong",
    "timedatectl timesync-status # on both hosts",
)
BACK = FindingKind(
    "clock_went_back",
    "warning",
    "Stored times lie in the future of the database's clock.",
    "a clock went back, or a host's clock is ahead: deliveries are due later than they should be, and ages are wrong",
    "timedatectl timesync-status # on the database's host and the receiver's",
)
_LARGEST_SKEW_SECONDS = 2.0
_LARGEST_LEAD_SECONDS = 5.0


def _clock(installation: Installation) -> Iterator[DoctorFinding]:
    newest = {}
    with installation.reading() as connection:
        began = time.monotonic()
        before = SystemClock().now()
        database = before  # SQLite has no clock of its own
        if connection.dialect.name == POSTGRES:
            database = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        took = time.monotonic() - began
        for what, statement in _NEWEST_TIMES.items():
            if (value := connection.execute(text(statement)).scalar()) is not None:
                newest[what] = as_time(value)
    skew = (as_time(database) - before).total_seconds() - took / 2
    if abs(skew) > _LARGEST_SKEW_SECONDS + took / 2:
        side = "ahead of" if skew > 0 else "behind"
        yield SKEW.found("clock", f"the database's clock is {abs(skew):.1f} s {side} this host's")
    for what, moment in newest.items():
        lead = (moment - as_time(database)).total_seconds()
        if lead > _LARGEST_LEAD_SECONDS:
            yield BACK.found(what, f"the newest {what} is {lead:.0f} s in the future: {rfc3339(moment)}")


_NEWEST_TIMES = {
    "delivery_log.at": "SELECT at FROM delivery_log ORDER BY id DESC LIMIT 1",
    "inbox.received_at": "SELECT received_at FROM inbox ORDER BY seq DESC LIMIT 1",
}


# --- durability

LOST = FindingKind(
    "setting_lost",
    "critical",
    "A setting that both programs make on each connection does not hold.",
    "a guarantee does not hold",
    "inbox check --online",
)
DOUBTFUL = FindingKind(
    "setting_doubtful",
    "warning",
    "A setting of the server puts stored webhooks at risk.",
    "what was acknowledged can be lost",
    "ALTER SYSTEM RESET {setting}; SELECT pg_reload_conf();",
)
JOURNAL = FindingKind(
    "journal_mode",
    "critical",
    "The SQLite file is not in the journal mode WAL.",
    "somebody has changed it: readers and the receiver stop each other until a program starts again",
    "PRAGMA journal_mode = WAL;",
)
STANDBY = FindingKind(
    "standby_missing",
    "critical",
    "A synchronous standby is configured, and none is connected.",
    "every commit waits for it, so every webhook gets 503",
    "SELECT application_name, state, sync_state FROM pg_stat_replication;",
)
DURABILITY = FindingKind(
    "durability",
    "information",
    "Settings that stored webhooks rest on, as they were read back.",
    "an acknowledged webhook survives what these cover",
)


def _durability(installation: Installation) -> Iterator[DoctorFinding]:
    with installation.reading() as connection:
        if connection.dialect.name == POSTGRES:
            for lost in guarantees.lost_settings(connection):
                yield LOST.found(lost.subject, lost.what, why=lost.why)
            for doubtful in guarantees.doubtful_settings(connection):
                yield DOUBTFUL.found(doubtful.subject, doubtful.what, why=doubtful.why, setting=doubtful.subject)
            row = connection.execute(_DURABILITY).one()
            yield from _standbys(row.synchronous_standby_names, row.connected)
            shown = ", ".join(f"{name} = {getattr(row, name)}" for name in _SHOWN)
            standby = (
                f"synchronous standbys: {row.synchronous_standby_names or 'none, so it rests on this server alone'}"
            )
            yield DURABILITY.found("Postgres", f"{shown}; {standby}")
            return
        mode = connection.execute(text("PRAGMA journal_mode")).scalar_one()
    if mode != "wal":
        yield JOURNAL.found("journal_mode", f"the SQLite file has journal_mode = {mode}, not wal")
        return
    yield from _pragmas(installation)


def _pragmas(installation: Installation) -> Iterator[DoctorFinding]:
    """Read back the pragmas on a connection as both programs make it. In a file with WAL it changes nothing."""
    made = engines.connect(installation.config.database.url, application="inbox-doctor")
    try:
        with made.connect() as connection:
            for lost in guarantees.lost_settings(connection):
                yield LOST.found(lost.subject, lost.what, why=lost.why)
            driver = connection.connection.cursor()
            values = {name: driver.execute(f"PRAGMA {name}").fetchone()[0] for name in guarantees.SQLITE_PRAGMAS}
            driver.close()
            connection.rollback()
    finally:
        made.dispose()
    yield DURABILITY.found("SQLite", ", ".join(f"{name} = {value}" for name, value in values.items()))


def _standbys(names: str, connected: int) -> Iterator[DoctorFinding]:
    if names and not connected:
        yield STANDBY.found("synchronous_standby_names", f"synchronous_standby_names = {names}, and none is connected")


_SHOWN = ("synchronous_commit", "fsync", "full_page_writes")
_DURABILITY = text("""
SELECT current_setting('synchronous_commit') AS synchronous_commit, current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_standby_names') AS synchronous_standby_names,
       (SELECT count(*) FROM pg_stat_replication) AS connected
""")


# --- sequences

BEHIND = FindingKind(
    "sequence_behind",
    "critical",
    "The next number of a sequence is in use already.",
    "nothing can be stored in its table: every webhook gets 503, or the relay stands still",
    "SELECT setval('SEQUENCE', HIGHEST)",
)


def _sequences(installation: Installation) -> Iterator[DoctorFinding]:
    with installation.reading() as connection:
        for behind in guarantees.sequences_behind(connection):
            yield BEHIND.found(behind.subject, behind.what, mend=behind.remedy.removeprefix("Run: "))


DATABASE = Examination(
    "database",
    "Database",
    "Does the database answer?",
    _database,
    (UNREACHABLE, UNREADABLE, UNUSABLE, MISSING),
    needs_database=False,
)
EXAMINATIONS = (
    DATABASE,
    Examination(
        "versions",
        "Database",
        "Versions of server, library and driver, and their known bugs.",
        _versions,
        (UNSUPPORTED, KNOWN_BUG, WITHDRAWN, WAL_RESET, VERSIONS),
    ),
    Examination(
        "migrations", "Database", "Migrations that the database lacks.", _migrations, (PENDING, NEWER, TO_CONTRACT)
    ),
    Examination("clock", "Database", "Clocks of this host and of the database.", _clock, (SKEW, BACK)),
    Examination(
        "durability",
        "Database",
        "Settings that an acknowledged webhook rests on, read back from a connection.",
        _durability,
        (LOST, DOUBTFUL, JOURNAL, STANDBY, DURABILITY),
    ),
    Examination("sequences", "Database", "Sequences and their tables.", _sequences, (BEHIND,), on=(POSTGRES,)),
)
