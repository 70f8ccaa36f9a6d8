"""Conditions and looks that pass over deliveries of paused entities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.parameters import rows_param
from inbox.events.states import SUSPECT_CRASHES
from inbox.events.timestamps import as_time, time_text
from relay.delivery.gates import Entity
from relay.store.scan_positions import PAGE, Cursor, Seen
from relay.store.transaction import Transaction


def paused_param(entities: Sequence[Entity]) -> dict[str, str]:
    """The parameter that `not_paused` has, if there is any."""
    rows = [{"source": source, "type": entity_type, "id": entity_id} for source, entity_type, entity_id in entities]
    return {"paused": rows_param(rows)} if rows else {}


def not_paused(sql: Sql) -> str:
    """A condition on the delivery `o`: its entity is not among those of `paused_param`."""
    return f"AND NOT ({_is_paused(sql, 'o.seq')})"


def _is_paused(sql: Sql, seq: str) -> str:
    """Written so that each event is looked up alone: with EXISTS, Postgres may read all events of the paused entities first."""
    return f"""(
        SELECT 1 FROM inbox i JOIN {sql.rows("paused", source="text", type="text", id="text")}
            ON i.source = paused.source AND i.entity_type = paused.type AND i.entity_id = paused.id
        WHERE i.seq = {seq} LIMIT 1) IS NOT NULL"""


def see(
    transaction: Transaction, route: str, paused: Sequence[Entity], cursor: Cursor, *, pages: int, enough: int
) -> None:
    """Read due heads of a route from this place on, until there are `enough` that are not paused."""
    for _ in range(pages):
        due_at, seq = cursor.begin
        rows = transaction.execute(
            _page(transaction.sql),
            route=route,
            begin=time_text(due_at),
            begin_seq=seq,
            page=PAGE,
            **paused_param(paused),
        )
        cursor.saw([Seen((as_time(row.due_at), row.seq), bool(row.is_paused)) for row in rows])
        if cursor.at_end or sum(not head.paused for head in cursor.seen) >= enough:
            return


@cache
def _page(sql: Sql) -> TextClause:
    """The next due heads; only these are checked for pauses."""
    return text(f"""
SELECT due.seq, due.due_at, {_is_paused(sql, "due.seq")} AS is_paused
FROM (
    SELECT seq, due_at FROM open_delivery
    WHERE state = 'ready' AND route = :route AND due_at <= (SELECT {sql.now}) AND crashes < {SUSPECT_CRASHES}
      AND (due_at, seq) > ({sql.time(":begin")}, :begin_seq)
    ORDER BY due_at, seq
    LIMIT :page) due
ORDER BY due.due_at, due.seq
""")
