"""The hot statements find their rows through an index, on tables of a size at which that begins to matter."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, TextClause, text
from sqlalchemy.dialects import postgresql

from inbox.db import engine as engines
from inbox.db import listing
from inbox.db.dialect import POSTGRES, SQLITE, Sql, rows_param
from inbox.db.following import Follower
from inbox.db.listing import EventFilter
from inbox.events.timestamps import time_text
from relay import findings
from relay.store import (
    alert_conditions,
    audit,
    claim,
    deliveries,
    duplicates,
    events,
    leases,
    overview,
    rebuild,
    reopen,
    route_states,
    sequence,
    sweeps,
)
from relay.store.operator import changes, commands, selection
from relay.store.reads import OUTCOMES
from relay.store.statement import Statement
from relay.web.screens import lists
from tests.docs import cookbook
from tests.helpers.storing import START
from tests.helpers.tables import Node, explain, plan_nodes

pytestmark = pytest.mark.long

EVENTS = 50_000
BIG = {"inbox", "open_delivery", "delivery_log", "duplicate_request", "throughput_minute"}
NOW = time_text(START)

STATE = """CASE WHEN n % 400 = 0 THEN 'in_flight' WHEN n % 10 = 0 THEN 'ready' WHEN n % 4000 = 11 THEN 'dead'
                WHEN n > 48000 THEN 'received' ELSE 'waiting' END"""
"""Lanes of ten, each with a head; most are due, a few are worked on; a few deliveries are dead, the last have just arrived."""

FILL = (
    """
INSERT INTO inbox (source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,
                   content_type, body_bytes, body_sha256)
SELECT 'trivore', 'key ' || n, 'USER', 'u' || (n / 10), 'UPDATE', 'update', {now}, {now}, {routes}, 'application/json',
       1, {body}
FROM {numbers}
""",
    "INSERT INTO inbox_payload (seq, headers, body) SELECT n, '{{}}', {body} FROM {numbers}",
    f"""
INSERT INTO open_delivery (seq, route, lane, occurred_at, state, due_at, lease_until, lease_token, relay_node)
SELECT n, 'crm', 'USER|u' || (n / 10), {{now}}, state, CASE WHEN state = 'ready' THEN {{now}} END,
       CASE WHEN state = 'in_flight' THEN {{now}} END, CASE WHEN state = 'in_flight' THEN 1 END,
       CASE WHEN state = 'in_flight' THEN 'r1' END
FROM (SELECT n, {STATE} AS state FROM {{numbers}}) AS made
""",
    """
INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)
SELECT {now}, n, 'crm', CASE WHEN n % 4000 = 11 THEN 'dead' WHEN n % 4000 = 12 THEN 'replayed' ELSE 'attempt_failed' END,
       CASE WHEN n % 4000 = 11 THEN 'dead' WHEN n % 4000 = 12 THEN 'received' ELSE 'ready' END, 1,
       '{{"cause": "mapping", "error": "email: no value"}}'
FROM {numbers}
""",
    """
INSERT INTO duplicate_request (seq, received_at, body_sha256, handled_at)
SELECT n / 3, {now}, {body}, CASE WHEN n % 50 = 0 THEN NULL ELSE {now} END FROM {numbers}
""",
    """
INSERT INTO throughput_minute (kind, name, outcome, minute, count)
SELECT CASE WHEN n % 2 = 0 THEN 'source' ELSE 'route' END, 'name ' || n % 5, CASE WHEN n % 2 = 0 THEN 'stored' ELSE 'delivered' END,
       {minute}, 1
FROM {numbers}
""",
    "ANALYZE",
)
FRAGMENTS = {
    "postgresql": {
        "now": f"CAST('{NOW}' AS timestamptz)",
        "numbers": f"generate_series(1, {EVENTS}) AS n",
        "routes": "ARRAY['crm']",
        "body": "CAST(repeat(md5(CAST(n AS text)), 32) AS bytea)",  # as large as most: Postgres would read a tiny table whole
        "minute": "timestamptz '2020-01-01 00:00:00Z' + make_interval(mins => n)",
    },
    "sqlite": {
        "now": f"'{NOW}'",
        "numbers": f"(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {EVENTS}) SELECT n FROM c)",
        "routes": "'[\"crm\"]'",
        "body": "x'00'",
        "minute": "strftime('%Y-%m-%d %H:%M:00.000000Z', '2020-01-01', n || ' minutes')",
    },
}

ONE = rows_param([{
    **dict.fromkeys(("seq", "token", "times"), 1010), **dict.fromkeys(("attempt", "run", "n", "placed"), 0),
    **dict.fromkeys(("due_at", "modified", "last_received_at"), START), **dict.fromkeys(("key", "dedup_key"), "key 1010"),
    "route": "crm", "lane": "USER|u101", "state": "ready", "source": "trivore", "type": "USER", "id": "u101",
}])  # fmt: skip
"""A row with every column that a statement could ask its rows for."""

ROWS = (
    "lanes latest strict claimed held returned strays done ended moved replayed wanted late asked listed decided counted keys"
    " resting known_routes known ahead due looked_to trusted deliveries"
)
PARAMETERS: dict[str, Any] = {
    "command": 1,
    **dict.fromkeys(("now", "begin", "at", "later", "until", "furthest", "due_since"), NOW),
    **dict.fromkeys(("most", "sampled", "page", "token", "lease", "batch", "rows", "kept", "status"), 100),
    **dict.fromkeys(("seq", "after", "first", "lowest"), 1000),
    **dict.fromkeys(("before", "last", "below"), 1500),
    **dict.fromkeys(("since", "slack", "ago"), -15),
    **dict.fromkeys(("entity_types", "event_types", "actions"), "[]"),
    **dict.fromkeys(("source", "of_source"), "trivore"),
    **dict.fromkeys(("entity_id", "after_id"), "u101"),
    **dict.fromkeys(ROWS.split(), ONE),
    "begin_seq": 0,
    "until_fact": 10_000,
    "node": "r1",
    "entity_type": "USER",
    "event_type": "UPDATE",
    "route": "crm",
    "former": "crm",
    "lane": "USER|u10",
    "state": "dead",
    "cause": "mapping",
    "sender_id": "id 1010",
    "error": "value",
    "error_sha256": "0" * 64,
    "routes": '[{"value": "crm"}]',
    "seqs": '[{"value": 1010}, {"value": 1020}]',
}

OF_AN_ENTITY = "source = :source AND entity_type = :entity_type AND entity_id = :entity_id"
VIEWS = {
    "delivery by seq": "delivery WHERE seq = :seq",
    "delivery by entity": f"delivery WHERE {OF_AN_ENTITY}",
    "facts by seq": "delivery_log WHERE seq = :seq ORDER BY id",
    "dead letters of a route": "dead_letter WHERE route = :route",
    "event with its body": "event WHERE seq = :seq",
    "events of an entity with their bodies": f"event WHERE {OF_AN_ENTITY}",
    "timeline of an entity": f"entity_timeline WHERE {OF_AN_ENTITY}",
    "timeline of an event": "entity_timeline WHERE seq = :seq",
    "figures of the last minutes": "throughput_minute WHERE minute > :now",
    "figures of a route": "throughput_minute WHERE kind = 'route' AND name = :route",
    "sources": "source_health",
    "one source": "source_health WHERE source = :source",
    "destinations": "destination_health",
    "one destination": "destination_health WHERE kind = 'route' AND name = :route",
}


def _constant(statement: TextClause, _: Sql) -> TextClause:
    return statement


def _candidates(wanted: EventFilter, sql: Sql) -> TextClause:
    return text(listing.candidates(sql, wanted)[0])


def _page_on_sqlite() -> TextClause:
    return text(listing._OF_LISTED.text.replace(":seqs", "(1010, 1020)"))


def written(statement: Statement) -> Callable[[Sql], TextClause]:
    """Write a statement of the store's for a dialect."""
    return lambda sql: statement.compile_for(sql).text


STATEMENTS: dict[str, Callable[[Sql], TextClause]] = {
    "due heads": written(claim._DUE),
    "due routes": written(claim._DUE_ROUTES),
    "due suspect": written(claim._SUSPECT),
    "any suspect": written(claim._ANY_SUSPECT),
    "lease": written(claim._LEASE),
    "events of claimed": written(events._EVENTS),
    "renew": written(leases._RENEW),
    "give back": written(leases._GIVE_BACK),
    "expired leases": written(leases._EXPIRED),
    "given deliveries": written(deliveries._OF_KEYS["wait"]),
    "received keys": written(sequence._RECEIVED),
    "samples of a route": written(route_states._SAMPLES),
    "samples that a route has taken": written(route_states._TAKEN),
    "events open on a former route": written(selection._OPEN_ON),
    "left on a former route": written(selection._UNMOVED),
    "oldest of a route": lambda _: alert_conditions._OLDEST,
    "heads": written(sequence._HEADS),
    "first waiting": written(sequence._FIRST_WAITING),
    "end": written(deliveries.DELETE_ROWS),
    "move": written(deliveries.UPDATE_ROWS),
    "due on a route": written(changes._DUE),
    "last facts of wanted": written(reopen._LAST_FACTS),
    "newest repeat": lambda _: duplicates._NEWEST,
    "page of repeats": lambda _: duplicates._PAGE,
    "repeats of some events": written(duplicates._UNHANDLED),
    "repeats that are handled": written(duplicates._HANDLE),
    "dead of a lane": written(sequence._DEAD),
    "last delivered of lanes": written(sequence._LAST_DELIVERED),
    "events that come late": written(sequence._EVENTS),
    "sweeps' events of the same change": written(sequence._SWEPT),
    "listed that are missing": written(sweeps._MISSING),
    "next seqs": lambda _: audit._NEXT_SEQS,
    "events of a span": written(audit._EVENTS),
    "rows of a span": written(audit._ROWS[True]),
    "facts of a span": written(audit._FACTS),
    "rows without an event": written(rebuild._REMOVE),
    "routes with something open": lambda _: route_states._KNOWN,
    "received on routes": lambda _: route_states._RECEIVED,
    "in flight on routes": lambda _: route_states._IN_FLIGHT,
    "open of a route": written(route_states._COUNTS),
    "arrival of some": written(route_states._ARRIVAL),
    "rows of a tail": lambda sql: Follower(sql, OUTCOMES, 0, (), None)._rows,
    "listed events of an entity": partial(_candidates, EventFilter(entity_type="USER", entity_id="u101")),
    "listed events by the sender's id": partial(_candidates, EventFilter(sender_id="id 1010", state="dead")),
    "listed events that are dead": partial(_candidates, EventFilter(state="dead", before=1500)),
    "listed events with an error": partial(_candidates, EventFilter(error="value", before=1500)),
    "deliveries of a page of events": lambda sql: listing._OF_MANY if sql.is_postgres else _page_on_sqlite(),
    **{name: partial(_constant, text(f"SELECT * FROM {query}")) for name, query in VIEWS.items()},
    "events of an entity that a command names": written(selection.OF_ONE_ENTITY[False]),
    "next events of a source": lambda _: selection.NEXT_OF_SOURCE,
    "next dead events": written(selection.next_open(("blocked", "dead"), is_later=False, on_routes=True)),
    "next events that are due later": written(selection.next_open(("ready",), is_later=True, on_routes=True)),
    **{f"deliveries of {which}": written(statement) for which, statement in selection.DELIVERIES.items()},
    "figures of the last hour": written(route_states._FIGURES[True]),
    "figures of the last week": written(route_states._FIGURES[False]),
    "payloads of listed": written(lists._STORED),
    "outcome of a command": written(commands._STATES),
}
WINDOWS = (EventFilter(source="trivore", state="delivered"), EventFilter(routes=["crm"], status=503))
"""Filters of searches that look through all events, a window of them at a time."""


@pytest.fixture(scope="module")
def big_postgres(module_engine: Engine) -> Engine:
    """A Postgres database with many rows."""
    _fill(module_engine)
    return module_engine


@pytest.fixture(scope="module")
def big_sqlite(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A SQLite file with many rows."""
    path = tmp_path_factory.mktemp("plans") / "inbox.db"
    shutil.copy(sqlite_template, path)
    engine = engines.connect(f"sqlite:///{path}", application="tests")
    _fill(engine)
    yield engine
    engine.dispose()


def _fill(engine: Engine) -> None:
    with engine.begin() as connection:
        for statement in FILL:
            connection.execute(text(statement.format(**FRAGMENTS[engine.dialect.name])))


def parameters_of(statement: TextClause) -> dict[str, Any]:
    given = statement._bindparams
    known = {**PARAMETERS, "since": NOW} if "until" in given else PARAMETERS  # elsewhere it is a number of seconds
    return {name: known[name] for name in given}


def custom_plan(connection: Connection, statement: TextClause) -> list[Node]:
    """Return the nodes of the plan for these parameters."""
    return explain(connection, statement.text, parameters_of(statement))


def generic_plan(connection: Connection, statement: TextClause) -> list[Node]:
    """Return the nodes of the generic plan, which a prepared statement gets after a few runs."""
    dialect = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]  # SQLAlchemy has no types here
    numbered = str(statement.compile(dialect=dialect))
    return list(plan_nodes(connection.exec_driver_sql(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {numbered}").scalar_one()))


Planned = Callable[[TextClause], list[Node]]


@pytest.fixture(params=[custom_plan, generic_plan])
def planned(request: pytest.FixtureRequest, big_postgres: Engine) -> Iterator[Planned]:
    """The plan of a statement on Postgres, for its parameters and for any."""
    with big_postgres.connect() as connection:
        yield lambda statement: request.param(connection, statement)


@pytest.fixture(params=["analyzed", "empty"])
def sqlite_steps(
    request: pytest.FixtureRequest, big_sqlite: Engine, sqlite_database_url: str
) -> Iterator[Callable[[TextClause], list[str]]]:
    """The plan of a statement on SQLite: with the statistics of ANALYZE, and without any, as most files are."""
    engine = big_sqlite if request.param == "analyzed" else engines.connect(sqlite_database_url, application="tests")

    def steps(statement: TextClause) -> list[str]:
        found = connection.execute(text(f"EXPLAIN QUERY PLAN {statement.text}"), parameters_of(statement))
        return [str(row.detail) for row in found]

    with engine.connect() as connection:
        yield steps
    if engine is not big_sqlite:
        engine.dispose()


def whole_tables(found: list[Node]) -> set[str]:
    """Big tables that the plan reads from end to end."""
    return {node["Relation Name"] for node in found if node["Node Type"] == "Seq Scan"} & BIG


def test_on_postgres_no_statement_reads_a_big_table_from_end_to_end(planned: Planned) -> None:
    for name, statement in STATEMENTS.items():
        found = planned(statement(Sql(POSTGRES)))
        assert whole_tables(found) == set(), (name, found)
    for newest in (alert_conditions._DEATHS_OVER, overview.NEWEST_TIMES):  # a few rows from the end of a table
        assert whole_tables(planned(newest)) == set()


def test_no_query_of_the_page_for_dbas_reads_events_payloads_or_facts_whole(big_postgres: Engine) -> None:
    with big_postgres.connect() as connection:
        for question in cookbook.questions(POSTGRES):
            found = explain(connection, question.statement.replace(":", "\\:"), {})
            whole = {node["Relation Name"] for node in found if node["Node Type"].endswith("Seq Scan")}
            assert not {"inbox", "inbox_payload_1", "delivery_log"} & whole, question.text


PARTIAL = tuple(
    f"ix_{name}"
    for name in (
        *("duplicate_request_open", "open_delivery_received", "open_delivery_in_flight"),
        *("open_delivery_dead", "open_delivery_blocked"),
    )
)
"""Indexes of only the rows asked for: a scan of one is not a scan of its table."""
RESULTS = (
    *("due", "firsts", "found", "mine", "ready", "delivery", "w", "arrived", "opened", "logged", "stored", "known"),
    *(
        "replayed",
        "moving",
        "entity_timeline",
        "gone",
        "subject",
        "sized",
        "known_rows",
        "closed_lanes",
        "k",
        "recorded",
        "failure",
    ),
    "failure USING COVERING INDEX sqlite_autoindex_route_failure_1",
)
"""Of common table expressions, subqueries, of the views and of the small `route_failure`, by name."""


def _scans_a_table(step: str) -> bool:
    """Return whether a step of SQLite's plan scans anything but the rows handed in, a partial index, or a result."""
    others = "VIRTUAL TABLE" in step or step.endswith(("CONSTANT ROW", *PARTIAL))
    return step.startswith("SCAN ") and not others and step.removeprefix("SCAN ") not in RESULTS


def test_on_sqlite_no_statement_reads_a_big_table_whole(sqlite_steps: Callable[[TextClause], list[str]]) -> None:
    for name, statement in STATEMENTS.items():
        plan = sqlite_steps(statement(Sql(SQLITE)))
        assert [step for step in plan if _scans_a_table(step)] == [], (name, plan)


STUCK = text("SELECT * FROM stuck")


def test_on_postgres_stuck_reads_facts_by_delivery_or_the_newest_alone(planned: Planned) -> None:
    found = planned(STUCK)
    assert not {"inbox", "delivery_log"} & whole_tables(found), found
    looks = {node["Index Name"] for node in found if "delivery_log" in node.get("Index Name", "")}
    assert looks - {"ix_delivery_log_attempt"} == {"ix_delivery_log_delivery", "pk_delivery_log"}, found
    assert "delivery_log" not in whole_tables(planned(findings._select_branches(("unordered", "stuck", "failing"))))


def test_on_postgres_a_search_reads_its_window_alone_and_looks_an_entity_up_by_each_source(planned: Planned) -> None:
    for wanted in WINDOWS:
        assert "inbox" not in whole_tables(planned(_candidates(wanted, Sql(POSTGRES))))
    for source in (None, "trivore"):
        wanted = EventFilter(source=source, entity_type="USER", entity_id="u1", routes=["crm"])
        found = planned(_candidates(wanted, Sql(POSTGRES)))
        (look,) = [node for node in found if node.get("Index Name") == "ix_inbox_entity"]
        assert all(f"({name} = " in look["Index Cond"] for name in ("source", "entity_type", "entity_id")), look
        assert "inbox" not in whole_tables(found), found


def test_on_postgres_a_claim_and_the_first_of_a_lane_are_index_ranges_and_sort_nothing(planned: Planned) -> None:
    due = planned(claim._DUE.compile_for(Sql(POSTGRES)).text)
    assert "ix_open_delivery_ready" in {node.get("Index Name") for node in due}
    first = planned(sequence._FIRST_WAITING.compile_for(Sql(POSTGRES)).text)
    assert [node["Index Name"] for node in first if node.get("Alias") == "o"] == ["ix_open_delivery_waiting"]
    assert "Sort" not in {node["Node Type"] for node in (*due, *first)}


def test_on_postgres_a_claim_reads_the_facts_of_its_deliveries_alone(planned: Planned) -> None:
    """Each access to the log is by seq and route, and none walks along another index."""
    found, names = planned(events._EVENTS.compile_for(Sql(POSTGRES)).text), ("Relation Name", "Index Name")
    looks = [node for node in found if any("delivery_log" in node.get(name, "") for name in names)]
    conditions = [node["Index Cond"] if "Index Cond" in node else node.get("Recheck Cond", "") for node in looks]
    assert looks
    assert all("seq = " in condition and "route = " in condition for condition in conditions), found
