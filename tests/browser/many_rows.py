"""Rows for the benchmark of the operator's page: events in every state of a delivery, and all that is listed beside them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec
from sqlalchemy import Engine, text

from inbox.db.dialect import POSTGRES
from inbox.db.engine import checkpoint

_DAYS = 30
"""Time that the events span."""
_BATCH = 100_000
LARGE = 100_000
"""Events of the largest entity."""

ROUTES = """
[sources.billing]
preset = "trivore"
auth = { kind = "header", name = "X-Webhook-Token", secrets = ["benchmark-token-2"] }
[sources.rare]
preset = "trivore"
auth = { kind = "header", name = "X-Webhook-Token", secrets = ["benchmark-token-3"] }
[routes.invoices]
source = "billing"
destination = "downstream"
ordering = "strict"
[routes.mirror]
source = "billing"
destination = "downstream"
[routes.rarely]
source = "rare"
destination = "downstream"
"""
"""Tables of inbox.toml, besides those of every benchmark."""


class Filled(msgspec.Struct, frozen=True):
    """The size of a database, and rows in it that are alone in what they are."""

    events: int
    open: int

    @property
    def only(self) -> int:
        """Seq of the only event of its type."""
        return self.events // 3

    @property
    def failed_alone(self) -> int:
        """Seq of the open delivery whose error no other has."""
        return self.first_open + (self.events - self.first_open) // 3 // 10 * 10

    @property
    def first_open(self) -> int:
        """Seq from which on every event is open; before it, some are dead."""
        return self.events - self.open * 8 // 10

    @property
    def dead_each(self) -> int:
        """Of so many older events, one is dead."""
        return max(self.first_open // max(self.open * 2 // 10, 1), 2)


def fill(engine: Engine, size: Filled, now: datetime) -> None:
    """Fill an empty database, and bring its statistics up to date."""
    words = _Words(engine.dialect.name == POSTGRES, size, f"{now:%Y-%m-%d %H:%M:%S.000000Z}")
    for first in range(1, size.events + 1, _BATCH):
        with engine.begin() as connection:
            for statement in words.events(first, min(first + _BATCH - 1, size.events)):
                connection.exec_driver_sql(statement.replace("%", "%%") if words.is_postgres else statement)
    with engine.begin() as connection:
        for statement in words.others():
            connection.exec_driver_sql(statement.replace("%", "%%") if words.is_postgres else statement)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE" if words.is_postgres else "ANALYZE"))
    if not words.is_postgres:
        checkpoint(engine)


def _call(status: int) -> str:
    sent = f'"sent": "answered", "milliseconds": 20, "status": {status}'
    return f'{{"step": "forward", "method": "POST", "url": "http://127.0.0.1:9/", {sent}}}'


class _Words(msgspec.Struct, frozen=True):
    """Statements in the words of a database."""

    is_postgres: bool
    size: Filled
    at: str

    def numbers(self, first: int, last: int) -> str:
        if self.is_postgres:
            return f"generate_series({first}, {last}) AS n"
        return (
            f"(WITH RECURSIVE c(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM c WHERE n < {last}) SELECT n FROM c)"
        )

    def ago(self, seconds: str) -> str:
        if self.is_postgres:
            return f"CAST('{self.at}' AS timestamptz) - make_interval(secs => {seconds})"
        return f"strftime('%Y-%m-%d %H:%M:%f000Z', '{self.at}', (-({seconds})) || ' seconds')"

    @property
    def received(self) -> str:
        return self.ago(f"({self.size.events} - n) * {_DAYS * 86400 / self.size.events}")

    @property
    def blank(self) -> str:
        return "CAST('00' AS bytea)" if self.is_postgres else "x'00'"

    def names(self, *names: str) -> str:
        listed = ",".join(names)
        return f"'{{{listed}}}'" if self.is_postgres else "'[" + ",".join(f'"{name}"' for name in names) + "]'"

    @property
    def entity(self) -> str:
        return f"CASE WHEN n % {max(self.size.events // LARGE, 5)} = 3 THEN 'large' ELSE 'u' || (n / 10) END"

    @property
    def state(self) -> str:
        """The state of an event that is open. Lanes have ten events each, of which the first is the head."""
        size = self.size
        return f"""CASE WHEN n < {size.first_open} THEN 'dead' WHEN n > {size.events - min(20_000, size.open // 10)} THEN 'received'
            WHEN n % 10 = 0 AND n / 10 % 50 = 1 THEN 'blocked' WHEN n % 10 = 0 AND n / 10 % 5000 = 2 THEN 'in_flight'
            WHEN n % 10 = 0 THEN 'ready' WHEN n % 200 = 11 THEN 'dead' ELSE 'waiting' END"""

    @property
    def error(self) -> str:
        return f"""CASE WHEN n = {self.size.failed_alone} THEN 'the needle' WHEN n % 3 = 0 THEN 'connection refused: ' || n
            ELSE 'HTTP 503 from downstream: kind ' || (n % 40) END"""

    def events(self, first: int, last: int) -> Iterator[str]:
        size, numbers = self.size, self.numbers(first, last)
        is_open = f"(n >= {size.first_open} OR n % {size.dead_each} = 1)"
        source = "CASE WHEN n = 7 THEN 'rare' WHEN n / 10 % 4 = 1 THEN 'billing' ELSE 'trivore' END"
        routes = f"CASE WHEN n / 10 % 4 = 1 THEN {self.names('invoices', 'mirror')} ELSE {self.names('everything')} END"
        route = "CASE WHEN n / 10 % 4 = 1 THEN 'invoices' ELSE 'everything' END"
        made = f"(SELECT n, {self.state} AS state, {route} AS route FROM {numbers}) made"
        array = f"CAST({routes} AS text[])" if self.is_postgres else routes
        yield f"""
INSERT INTO inbox (seq, source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,
                   content_type, body_bytes, body_sha256)
SELECT n, {source}, 'key ' || n, 'USER', {self.entity}, CASE WHEN n = {size.only} THEN 'ONLY' ELSE 'UPDATE' END, 'update',
       {self.received}, {self.received}, {array}, 'application/json', 2, {self.blank} FROM {numbers}"""
        if last > size.events - 200_000:  # payloads of older ones have expired
            yield f"INSERT INTO inbox_payload (seq, headers, body) SELECT n, '{{}}', {self.blank} FROM {numbers}"
        yield f"""
INSERT INTO open_delivery (seq, route, lane, occurred_at, state, attempt, due_at, lease_until, lease_token, relay_node)
SELECT n, route, 'USER|' || {self.entity}, {self.received}, state,
       CASE WHEN state IN ('dead', 'blocked') THEN 2 WHEN state IN ('ready', 'in_flight') AND n % 20 = 0 THEN 1 ELSE 0 END
       + CASE WHEN state = 'in_flight' THEN 1 ELSE 0 END,
       CASE WHEN state = 'ready' THEN {self.ago("CASE WHEN n % 20 = 0 THEN -3600 ELSE 60 END")} END,
       CASE WHEN state = 'in_flight' THEN {self.ago("-10")} END, CASE WHEN state = 'in_flight' THEN 1 END,
       CASE WHEN state = 'in_flight' THEN 'relay' END
FROM {made} WHERE {is_open}"""
        has_died = f"{is_open} AND state IN ('dead', 'blocked')"
        failed = f"(n % 20 = 0 AND state <> 'received') OR ({has_died})"
        yield self._facts("'attempt_failed'", "'ready', 1", made, failed, self.failure)
        yield self._facts("'dead'", "state, 2", made, has_died, self.failure)
        ended = """CASE WHEN n % 100 < 80 THEN 'delivered' WHEN n % 100 < 90 THEN 'unchanged' WHEN n % 100 < 96 THEN 'superseded'
            WHEN n % 100 < 98 THEN 'skipped' ELSE 'cancelled' END"""
        attempts = "CASE WHEN n % 20 = 0 THEN 2 WHEN n % 100 BETWEEN 90 AND 95 OR n % 100 >= 98 THEN 0 ELSE 1 END"
        yield self._facts(ended, f"'ended', {attempts}", made, f"NOT {is_open}", self.success)
        mirrored = f"(SELECT n, 'mirror' AS route FROM {numbers} WHERE n / 10 % 4 = 1) made"
        yield self._facts("'delivered'", "'ended', 1", mirrored, "1 = 1", self.success)

    @property
    def success(self) -> str:
        """Detail of a fact that ends a delivery: it has the fields of every kind, as readers pass over the others."""
        return self.json(f'{{"did": "forwarded", "by": 1, "who": "olga", "why": "benchmark", "calls": [{_call(200)}]}}')

    @property
    def failure(self) -> str:
        cause = '"cause": "server_error", "error_class": "server_error", "due_at": "2026-01-01T00:00:00Z"'
        start, end = f'{{{cause}, "calls": [{_call(503)}], "error": "', '"}'
        return self.json(start, self.error, end)

    def json(self, *parts: str) -> str:
        whole = " || ".join(part if part is self.error or "CASE" in part else f"'{part}'" for part in parts)
        return f"CAST({whole} AS jsonb)" if self.is_postgres else whole

    def _facts(self, kind: str, then: str, made: str, where: str, detail: str) -> str:
        """Facts; `then` is the state that each leads to, and the number of attempts."""
        return f"""
INSERT INTO delivery_log (at, seq, route, kind, state, attempt, relay_node, detail)
SELECT {self.received}, n, route, {kind}, {then}, 'relay', {detail} FROM {made} WHERE {where} ORDER BY n"""

    def others(self) -> Iterator[str]:
        now = self.ago("0")
        false, true = ("false", "true") if self.is_postgres else ("0", "1")
        if self.is_postgres:
            yield f"SELECT setval('inbox_seq_seq', {self.size.events})"
        yield f"""
INSERT INTO rejected_request (received_at, source, status, cause, reason, body_sha256)
SELECT {self.ago("(20000 - n) * 60")}, CASE WHEN n % 9 = 0 THEN 'nobody' ELSE 'trivore' END, 401, 'auth', 'wrong secret ' || n,
       {self.blank} FROM {self.numbers(1, 20_000)}"""
        yield f"""
INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at, state, finished_at)
SELECT 'replay', '{{"route": "everything"}}', 'benchmark ' || n, 'olga', {self.ago("(20000 - n) * 60")}, 'done', {now}
FROM {self.numbers(1, 20_000)}"""
        yield f"""
INSERT INTO alert (at, kind, subject, firing, detail)
SELECT {self.ago("(20000 - n) * 60")}, 'delivery_dead', 'route ' || (n % 100), CASE WHEN n % 200 < 100 THEN {true} ELSE {false} END,
       '{{}}' FROM {self.numbers(1, 20_000)}"""
        yield f"""
INSERT INTO duplicate_request (seq, received_at, body_sha256, handled_at)
SELECT n, {now}, {self.blank}, {now} FROM {self.numbers(1, min(100_000, self.size.events))}"""
        yield f"""
INSERT INTO relay_node (id, host, pid, version, started_at, heartbeat_at) VALUES ('relay', 'host', 1, '1', {now}, {now})"""
        yield f"""
INSERT INTO gate (kind, name, paused_at, paused_by, pause_reason)
SELECT 'entity', 'trivore|USER|u' || n, {now}, 'olga', 'benchmark' FROM {self.numbers(1, 200)}"""
        for kind, name, outcome in _FIGURES:
            minute = (
                f"date_trunc('minute', {self.ago('n * 60')})"
                if self.is_postgres
                else f"strftime('%Y-%m-%d %H:%M:00.000000Z', '{self.at}', (-n) || ' minutes')"
            )
            yield f"""
INSERT INTO throughput_minute (kind, name, outcome, minute, count) SELECT '{kind}', '{name}', '{outcome}', {minute}, n
FROM {self.numbers(0, 7 * 1440)}"""


_FIGURES = (
    *(("source", name, outcome) for name in ("trivore", "billing") for outcome in ("stored", "duplicate", "rejected")),
    *(
        ("route", name, outcome)
        for name in ("everything", "invoices", "mirror")
        for outcome in ("delivered", "attempt_failed", "dead")
    ),
    *(("destination", "downstream", outcome) for outcome in ("delivered", "attempt_failed", "dead")),
)
