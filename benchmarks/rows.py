"""Registry of the product's figures, each with its command, both sides, and the bar.

A command prints JSON, in which the JMESPath expressions `ours` and `theirs` find the figures of the rounds. With `theirs`,
the figure is the median of the ratios, as a slow machine affects both sides of a round. Commands of several figures run
once; those of curves have no figure in the table.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Command(msgspec.Struct, frozen=True):
    """A benchmark: its module in `benchmarks`, its options, and those of a short run."""

    module: str
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None
    """Extra options of `make bench-quick`, or None to omit it there."""


class Row(msgspec.Struct, frozen=True):
    """A figure."""

    what: str
    command: str
    """A key of COMMANDS."""
    ours: str
    theirs: str | None
    """Expression of the other side, or None for a plain figure."""
    bar: float
    better: float
    unit: str = ""
    """Unit of a plain figure."""
    is_limit: bool = False
    """True if the bar is a maximum instead of a minimum."""


COMMANDS: Mapping[str, Command] = {
    "intake-postgres": Command("intake", ("--database", "postgres"), ("--seconds", "1", "--rounds", "4")),
    "intake-sqlite": Command(
        "intake",
        ("--database", "sqlite"),
        ("--seconds", "1", "--rounds", "4", "--against", "noop", "--against", "fastapi"),
    ),
    "drain-postgres": Command(
        "drain", ("--database", "postgres"), ("--events", "800", "--against", "bare", "--against", "procrastinate")
    ),
    "drain-sqlite": Command("drain", ("--database", "sqlite"), ("--events", "1000")),
    "relays": Command("relays", (), ("--events", "1000", "--rounds", "2")),
    "sizes": Command("sizes", ("--database", "postgres", "--sizes", "100")),
    "mountain": Command("backlog", ("mountain",)),
    "inbox": Command("growth", ("inbox",)),
    "lane": Command("backlog", ("lane",)),
    "fold": Command("backlog", ("fold",)),
    "order-lock": Command("order_lock", ("--database", "postgres")),
    "memory": Command("memory", ("--open", "1000000")),
    "takeover": Command("takeover"),
    "latency-postgres": Command("latency", ("--database", "postgres")),
    "latency-sqlite": Command("latency", ("--database", "sqlite")),
    "help": Command("startup", (), ("--rounds", "5")),
    **{f"growth-{name}": Command("growth", (name,)) for name in ("backlog", "lanes", "routes", "relays")},
    **{f"growth-{name}": Command("growth", (name,)) for name in ("body", "connections", "receivers")},
}


def _side(beginning: str) -> str:
    """Return the expression for the rounds of the side with this name prefix."""
    return f"sides[?starts_with(side, '{beginning}')].rounds | [0]"


def _latency(database: str, rate: int, figure: str, bar: float, better: float) -> Row:
    return Row(
        f"arrival to downstream, {database}, {rate} event{'s' if rate > 1 else ''}/s, {figure}",
        f"latency-{database.lower()}", f"rows[?rate==`{rate}` && backlog==`0` && wake_up].{figure} | [0]", None,
        bar, better, "ms", is_limit=True,
    )  # fmt: skip


ROWS: Mapping[str, Row] = {
    "intake-fastapi": Row(
        "durable intake, Postgres, vs FastAPI, SQLAlchemy and asyncpg",
        "intake-postgres", "sides[0].rounds", _side("FastAPI"), 7, 10,
    ),
    "intake-pgbench": Row(
        "durable intake, Postgres, vs pgbench without HTTP",
        "intake-postgres", "sides[0].rounds", _side("pgbench"), 0.65, 0.75,
    ),
    "app-falcon": Row(
        "the app without a database vs a bare Falcon app that parses the same JSON",
        "intake-postgres", _side("the same app"),
        _side("bare Falcon"), 0.60, 0.70,
    ),
    "intake-noop": Row(
        "durable intake, Postgres, vs the app without a database",
        "intake-postgres", "sides[0].rounds", _side("the same app"), 0.55, 0.65,
    ),
    "intake-noop-sqlite": Row(
        "durable intake, SQLite, vs the app without a database",
        "intake-sqlite", "sides[0].rounds", _side("the same app"), 0.75, 0.85,
    ),
    "intake-fastapi-sqlite": Row(
        "durable intake, SQLite, vs FastAPI, SQLAlchemy and aiosqlite",
        "intake-sqlite", "sides[0].rounds", _side("FastAPI"), 5, 8,
    ),
    "drain-bare": Row(
        "deliveries, Postgres, vs a bare loop of Session.post",
        "drain-postgres", "sides[0].rounds", _side("bare"), 1.0, 1.2,
    ),
    "drain-bare-sqlite": Row(
        "deliveries, SQLite, vs a bare loop of Session.post",
        "drain-sqlite", "sides[0].rounds", _side("bare"), 1.0, 1.2,
    ),
    "drain-procrastinate": Row(
        "deliveries, Postgres, vs procrastinate",
        "drain-postgres", "sides[0].rounds", _side("procrastinate"), 5, 7,
    ),
    "wal-intake": Row(
        "WAL of an event's intake, body of 100 bytes",
        "sizes", "sizes[0].wal_received", None, 1300, 1100, "bytes", is_limit=True,
    ),
    "wal-relay": Row(
        "WAL of an event's delivery, body of 100 bytes",
        "sizes", "sizes[0].wal_delivered", None, 1800, 1400, "bytes", is_limit=True,
    ),
    "two-relays": Row(
        "two relay processes vs one, downstream takes 20 ms",
        "relays", "sides[0].rounds", "sides[1].rounds", 1.8, 1.95,
    ),
    "mountain": Row(
        "deliveries from 1 M open vs from 1 k held open",
        "mountain", "sides[0].rounds", "sides[1].rounds", 0.95, 1.0,
    ),
    "large-inbox": Row(
        "intake with 5 M events in the inbox vs with none",
        "inbox", "points[-1].rounds", "points[0].rounds", 0.9, 0.95,
    ),
    "stopped-lane": Row(
        "deliveries beside a lane of 100 k that is stopped vs without it",
        "lane", "sides[0].rounds", "sides[1].rounds", 0.95, 1.0,
    ),
    "fold": Row(
        "updates downstream of 1 M updates of 1 k entities, latest",
        "fold", "updates_downstream", None, 2000, 1000, "updates", is_limit=True,
    ),
    "order-lock": Row(
        "longest transaction under the order lock, 100 k open",
        "order-lock", "max(longest[].milliseconds)", None, 250, 100, "ms", is_limit=True,
    ),
    "memory-relay": Row(
        "resident memory of a relay process at 1 M open",
        "memory", "relay.peak_mib", None, 115, 100, "MiB", is_limit=True,
    ),
    "memory-worker": Row(
        "resident memory of a receiver's worker at 1 M open",
        "memory", "worker.peak_mib", None, 110, 90, "MiB", is_limit=True,
    ),
    **{
        f"latency-{database.lower()}-{rate}-{figure}": _latency(database, rate, figure, bar, better)
        for database, rate, figure, bar, better in (
            ("Postgres", 100, "p50", 15, 8), ("Postgres", 100, "p99", 60, 40),
            ("Postgres", 1, "p50", 30, 12), ("Postgres", 1, "p99", 80, 36),
            ("SQLite", 100, "p50", 20, 10), ("SQLite", 100, "p99", 90, 60),
            ("SQLite", 1, "p50", 80, 30), ("SQLite", 1, "p99", 200, 100),
        )
    },
    "takeover": Row(
        "takeover of a call after the SIGKILL of its relay",
        "takeover", "seconds", None, 20, 16, "s", is_limit=True,
    ),
    "help": Row(
        "relay --help vs the import of SQLAlchemy, typer and rich",
        "help", "sides[0].rounds", "sides[1].rounds", 1.2, 1.0, is_limit=True,
    ),
}  # fmt: skip
