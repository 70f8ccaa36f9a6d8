"""Reads of one entity: its events with all that happened to them, its lanes, and the gates that may hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from sqlalchemy import Engine, text

from inbox.db.dialect import Sql, rows_param
from inbox.db.engine import reading
from inbox.db.reads import EVENT_GATES, Row, plain
from inbox.events.event import escape
from inbox.events.states import HEADS

MOST_LINES = 1000
"""The most lines of a page: an event may have thousands of facts, which its own page lists."""
MOST_COUNTED = 500


class EntityRead(msgspec.Struct, frozen=True):
    """A page of an entity's events, and what holds for it now."""

    events: list[Row]
    """`seq`, `event_type`, `action`, `occurred_at`, `received_at`; the newest first."""
    lines: Mapping[int, list[Row]]
    """By seq, rows of the view `entity_timeline`, the oldest first."""
    is_cut: bool
    """There are more lines than `MOST_LINES`; the last events lack some."""
    before: int | None
    """The seq that the next page lies below; None: there is no more."""
    lanes: Mapping[str, Row]
    """By route: `head_seq` and `head_state`, `waiting` and `dead` counted up to `MOST_COUNTED` + 1, `delivered_seq`."""
    gates: list[Row]


def entity(
    engine: Engine, name: tuple[str, str, str], lanes: Iterable[tuple[str, str]], *, before: int | None, limit: int
) -> EntityRead:
    """Read an entity by its source, type and id. `lanes` has route and lane of each of its lanes."""
    source, entity_type, entity_id = name
    of_entity = {"source": source, "entity_type": entity_type, "entity_id": entity_id}
    sql = Sql(engine.dialect.name)
    with engine.connect() as connection, reading(connection).begin():

        def rows(statement: str, **values: object) -> list[Row]:
            return [plain(row) for row in connection.execute(text(statement), values).mappings()]

        found = rows(_EVENTS, **of_entity, below=_ABOVE_ALL if before is None else before, most=limit + 1)
        events = found[:limit]
        lines: dict[int, list[Row]] = {event["seq"]: [] for event in events}
        told: list[Row] = []
        if events:
            bounds = {"lowest": events[-1]["seq"], "highest": events[0]["seq"]}
            told = rows(_LINES, **of_entity, **bounds, most=MOST_LINES + 1)
            for line in told[:MOST_LINES]:
                lines[line["seq"]].append(line)
        wanted = rows_param({"route": route, "lane": lane} for route, lane in lanes)
        listed = sql.rows("wanted", route="text", lane="text")
        return EntityRead(
            events=events,
            lines=lines,
            is_cut=len(told) > MOST_LINES,
            before=events[-1]["seq"] if len(found) > limit else None,
            lanes={
                row["route"]: row for row in rows(_LANES.format(wanted=listed), wanted=wanted, most=MOST_COUNTED + 1)
            },
            gates=[
                plain(row)
                for row in connection.execute(EVENT_GATES, {"entity": "|".join(map(escape, name))}).mappings()
            ],
        )


_ABOVE_ALL = 2**63 - 1
_OF_ENTITY = "source = :source AND entity_type = :entity_type AND entity_id = :entity_id"
_EVENTS = f"""
SELECT seq, event_type, action, occurred_at, received_at FROM inbox
WHERE {_OF_ENTITY} AND seq < :below ORDER BY seq DESC LIMIT :most
"""
_LINES = f"""
SELECT at, what, seq, route, summary, fact_id FROM entity_timeline
WHERE {_OF_ENTITY} AND seq >= :lowest AND seq <= :highest
ORDER BY seq DESC, at, fact_id, what LIMIT :most
"""
_OF_LANE = "d.route = wanted.route AND d.lane = wanted.lane"
_IS_HEAD = ", ".join(f"'{state}'" for state in HEADS)
_HEAD = f"SELECT {{}} FROM open_delivery d WHERE {_OF_LANE} AND d.state IN ({_IS_HEAD}) LIMIT 1"
_COUNT = (
    f"SELECT count(*) FROM (SELECT 1 FROM open_delivery d WHERE {_OF_LANE} AND d.state = '{{}}' LIMIT :most) counted"
)
_LANES = f"""
SELECT wanted.route, wanted.lane, ({_HEAD.format("d.seq")}) AS head_seq, ({_HEAD.format("d.state")}) AS head_state,
       ({_COUNT.format("waiting")}) AS waiting, ({_COUNT.format("dead")}) AS dead,
       (SELECT d.seq FROM lane d WHERE {_OF_LANE}) AS delivered_seq
FROM {{wanted}}
ORDER BY wanted.route
"""
