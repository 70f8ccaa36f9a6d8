"""Which deliveries an operator means: conditions, and pages of the deliveries that meet them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Literal

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from inbox.reads import Row, plain
from inbox.timestamps import time_text
from relay.store.database import Database, Transaction
from relay.store.reopen import Key

Act = Literal["replay", "cancel", "unblock"]


class Selection(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Every condition that is given must hold. This is also what `relay_command.selection` holds, as JSON."""

    route: str | None = None
    seq: int | None = None
    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    cause: str | None = None
    since: datetime | None = None
    """Died at or after; where others than the dead are meant: arrived at or after."""
    force: bool = False
    """A replay even where it puts something older in the place of what was delivered last."""

    @property
    def is_empty(self) -> bool:
        """Whether no condition is given."""
        return msgspec.structs.replace(self, force=False) == Selection()

    @property
    def dead_only(self) -> bool:
        """Of a replay: unless one event or entity is named, only dead letters are meant, and ended deliveries left alone."""
        return self.cause is not None or (self.seq is None and self.entity_id is None)


class Plan(msgspec.Struct, frozen=True):
    """What an act would change, in the order of arrival."""

    count: int
    sample: tuple[Row, ...]
    overtaken: int = 0
    """Of a replay without `force`: so many are left out, since what they carry is older than what was delivered last."""


def keys_of(rows: Iterable[Row]) -> list[Key]:
    """Seq and route of each."""
    return [(int(row["seq"]), str(row["route"])) for row in rows]


def count(database: Database, act: Act, selection: Selection) -> int:
    """How many deliveries it is about."""
    with database.read() as transaction:
        return int(
            transaction.execute(_counted(database.sql, _which(act, selection)), **_given(act, selection))[0].count
        )


def page(transaction: Transaction, act: Act, selection: Selection, *, after: int, most: int) -> list[Row]:
    """The deliveries of the first events beyond the seq `after`: about `most`, and all of an event or none of it."""
    statement = _page(transaction.sql, _which(act, selection))
    found = transaction.execute(statement, **_given(act, selection), after=after, most=most + 1)
    rows = [plain(row._mapping) for row in found]  # noqa: SLF001  # SQLAlchemy's public name
    if len(rows) <= most:
        return rows
    whole = [row for row in rows if row["seq"] != rows[-1]["seq"]]
    return whole or page(transaction, act, selection, after=after, most=2 * most)


def among(transaction: Transaction, act: Act, selection: Selection, keys: Iterable[Key]) -> set[Key]:
    """Those of these deliveries that are meant, too."""
    wanted = rows_param({"seq": seq} for seq in sorted({seq for seq, _ in keys}))
    statement = _among(transaction.sql, _which(act, selection))
    found = transaction.execute(statement, **_given(act, selection), wanted=wanted)
    return {(row.seq, row.route) for row in found}


def _given(act: Act, selection: Selection) -> dict[str, object]:
    given: dict[str, object] = {
        "route": selection.route,
        "seq": selection.seq,
        "source": selection.source,
        "entity_type": selection.entity_type,
        "entity_id": selection.entity_id,
        "cause": selection.cause,
        "since": None if selection.since is None else time_text(selection.since),
    }
    if _which(act, selection) == "ended or dead":
        del given["cause"]  # whoever names one means the dead alone
    return given


_Which = Literal["dead", "ended or dead", "not begun", "blocked"]


def _which(act: Act, selection: Selection) -> _Which:
    if act == "cancel":
        return "not begun"
    if act == "unblock":
        return "blocked"
    return "dead" if selection.dead_only else "ended or dead"


def _meant(sql: Sql, which: _Which) -> str:
    if which == "ended or dead":
        return f"""SELECT * FROM delivery
WHERE {_conditions(sql, "received_at")} AND route IS NOT NULL
  AND state NOT IN ('received', 'waiting', 'ready', 'in_flight')"""
    if which == "dead":
        return f"SELECT * FROM dead_letter WHERE {_conditions(sql, 'died_at')} AND {sql.optional('cause', 'text')}"
    return _open(sql, ("received", "waiting", "ready", "blocked", "dead") if which == "not begun" else ("blocked",))


def _conditions(sql: Sql, since: str) -> str:
    texts = " AND ".join(sql.optional(column, "text") for column in ("route", "source", "entity_type", "entity_id"))
    return f"{texts} AND {sql.optional('seq', 'bigint')} AND {sql.optional(since, 'time', parameter='since', operator='>=')}"


def _open(sql: Sql, states: Sequence[str]) -> str:
    listed = ", ".join(f"'{state}'" for state in states)
    texts = " AND ".join(
        sql.optional(f"i.{column}", "text", parameter=column) for column in ("source", "entity_type", "entity_id")
    )
    return f"""SELECT o.seq, o.route, o.lane, o.state, o.attempt AS attempts, i.source, i.entity_type, i.entity_id, i.event_type,
       i.received_at, l.detail ->> 'cause' AS cause
FROM open_delivery o
JOIN inbox i ON i.seq = o.seq
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = o.seq AND f.route = o.route AND f.kind = 'dead')
WHERE o.state IN ({listed}) AND {texts}
  AND {sql.optional("o.route", "text", parameter="route")} AND {sql.optional("o.seq", "bigint", parameter="seq")}
  AND {sql.optional("l.detail ->> 'cause'", "text", parameter="cause")}
  AND {sql.optional("i.received_at", "time", parameter="since", operator=">=")}"""


@cache
def _counted(sql: Sql, which: _Which) -> TextClause:
    return text(f"SELECT count(*) AS count FROM ({_meant(sql, which)}) meant")


@cache
def _page(sql: Sql, which: _Which) -> TextClause:
    return text(f"SELECT * FROM ({_meant(sql, which)}) meant WHERE seq > :after ORDER BY seq, route LIMIT :most")


@cache
def _among(sql: Sql, which: _Which) -> TextClause:
    wanted = sql.rows("wanted", seq="bigint")
    return text(f"SELECT seq, route FROM ({_meant(sql, which)}) meant WHERE seq IN (SELECT wanted.seq FROM {wanted})")
