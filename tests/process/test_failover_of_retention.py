"""The primary dies in the middle of retention or an erasure: the standby has no half of it, and the relay goes on where it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest
from sqlalchemy import Engine, text

from tests.helpers.failover import DATABASE, Pair, at_work, engine_of
from tests.helpers.killable_postgres import KillablePostgres
from tests.helpers.person import BODY, ID, PERSON, live, of_person, traces_in
from tests.helpers.reading import count, rows
from tests.helpers.relaying import Steps
from tests.helpers.waiting import until

pytestmark = pytest.mark.long

DEAD, PAUSED = {10, 750, 1400, 100_020, 108_500}, {20, 760, 100_030, 108_600}
"""Deliveries of old events that stay open: the service refuses some for good, the entity of the others is paused."""
HOLD = 4711
"""Advisory lock that the held transaction waits for."""


class Moment(msgspec.Struct, frozen=True):
    """The moment at which the primary dies."""

    held: str
    """The trigger that holds the transaction up there."""
    is_committing: bool = False
    """True: the transaction then goes on until the primary has committed it, and the standby has not answered."""


TRUNCATED = "BEFORE INSERT ON inbox_payload_100001 FOR EACH ROW"
MOMENTS = {
    "row by row": Moment("BEFORE DELETE ON inbox_payload_1 FOR EACH ROW WHEN (OLD.seq = 700)"),
    "a truncated leaf without its survivors": Moment(TRUNCATED),
    "a truncated leaf that is being committed": Moment(TRUNCATED, is_committing=True),
}

_OLD = """
INSERT INTO inbox (seq, source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,
                   content_type, body_bytes, body_sha256)
SELECT n, 'trivore', 'old ' || n, 'USER', 'old' || n, 'UPDATE', 'update', now() - interval '{age}', now() - interval '{age}',
       CASE WHEN n IN ({open}) THEN CAST('{{everything}}' AS text[]) ELSE '{{}}' END, 'application/json',
       length({body}), sha256({body})
FROM generate_series({first}, {last}) AS n;
INSERT INTO inbox_payload (seq, headers, body) SELECT n, '{{}}', {body} FROM generate_series({first}, {last}) AS n;
"""
_BODY = """convert_to(
    jsonb_build_object('id', 'old' || n, 'timestamp', now(), 'note', repeat(md5(CAST(n AS text)), 5)) #>> '{}', 'UTF8')
"""
_OPEN = """
INSERT INTO open_delivery (seq, route, lane, occurred_at, state)
SELECT seq, 'everything', 'USER|' || entity_id, occurred_at, 'received' FROM inbox WHERE seq IN ({open});
INSERT INTO gate (kind, name, paused_at, paused_by, breaker)
SELECT 'entity', 'trivore|USER|old' || n, now(), 'kim', 'closed' FROM unnest(CAST('{{{paused}}}' AS bigint[])) AS n;
"""
_HOLD = f"""
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WHILE NOT pg_try_advisory_xact_lock_shared({HOLD}) LOOP PERFORM pg_sleep(0.01); END LOOP;
    IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
    RETURN NEW;
END $$;
"""
_NO_ROUND_YET = "UPDATE pruner SET ran_at = now();"
_NEXT_ROUND = "UPDATE pruner SET ran_at = NULL WHERE held_by IS NULL"
_ROUND = "UPDATE pruner SET ran_at = NULL, held_by = NULL, lease_until = NULL"
GONE = """inbox i WHERE i.received_at < now() - interval '30 days'
    AND NOT EXISTS (SELECT FROM open_delivery o WHERE o.seq = i.seq)"""
HALF_DONE = f"""
SELECT i.seq FROM inbox i LEFT JOIN inbox_payload p ON p.seq = i.seq
WHERE (p.seq IS NULL) <> (
    i.seq <= coalesce((SELECT r.position FROM pruning r WHERE r.kind = 'payloads'), 0)
    AND i.seq IN (SELECT i.seq FROM {GONE}))
   OR sha256(p.body) <> i.body_sha256
"""
"""Events whose payload is missing too early, is there too late, or has changed."""


def run(engine: Engine, statements: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statements)


def fill_old(engine: Engine) -> None:
    """A leaf that is pruned row by row, as it has young events too, and two that are truncated."""
    for first in (100_001, 110_001):
        run(engine, f"SELECT inbox_payload_add_leaf({first}, {first + 10_000})")
    kept = ", ".join(map(str, sorted(DEAD | PAUSED)))
    for first, last, age in (
        (1, 1500, "60 days"),
        (1501, 1550, "1 hour"),
        (100_001, 109_000, "50 days"),
        (110_001, 115_000, "45 days"),
    ):
        run(engine, _OLD.format(first=first, last=last, age=age, open=kept, body=_BODY))
    paused = ", ".join(map(str, sorted(PAUSED)))
    run(engine, _OPEN.format(open=kept, paused=paused) + "SELECT setval('inbox_seq_seq', 120100);" + _NO_ROUND_YET)


def position(server: KillablePostgres) -> int:
    """The place of the pruner, as the standby knows it."""
    return int(
        rows(engine_of(server), "SELECT coalesce(max(position), 0) AS n FROM pruning WHERE kind = 'payloads'")[0]["n"]
    )


@contextlib.contextmanager
def held(server: KillablePostgres, trigger: str) -> Iterator[psycopg.Connection]:
    """Transactions that come to the trigger wait there, until this session ends or gives its lock back."""
    run(engine_of(server), f"{_HOLD} CREATE TRIGGER held {trigger} EXECUTE FUNCTION hold()")
    session = psycopg.connect(host=str(server.sockets), user="postgres", dbname=DATABASE, autocommit=True)
    try:
        session.execute("SELECT pg_advisory_lock(%s)", [HOLD])
        yield session
    finally:
        session.close()


def wait_until_held(server: KillablePostgres) -> None:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    until(lambda: server.run(waiting), "the transaction is held up")


def wait_until_committing(server: KillablePostgres) -> None:
    """Until the truncation waits for the standby's answer to its commit."""
    committing = (
        "SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.mode = 'AccessExclusiveLock' AND l.granted AND l.relation IS NOT NULL AND a.wait_event = 'SyncRep'"
    )
    until(lambda: server.run(committing), "the primary has committed it")


def go_on(pair: Pair) -> Engine:
    """The standby takes over, and webhooks are taken in."""
    pair.standby.promote()
    pair.send_some()
    return engine_of(pair.standby)


def end(pair: Pair) -> None:
    """All that was sent is stored and delivered, and the log agrees with the tables."""
    engine = engine_of(pair.standby)
    pair.sender.enough()
    until(lambda: pair.sender.is_done, "the last is acknowledged")
    until(
        lambda: count(engine, "open_delivery WHERE seq > 120100") == 0 and count(engine, "lane") > 0,
        "everything is delivered",
    )
    acknowledged = {line["seq"] for line in pair.sender.sends.lines() if line["outcome"] == "ok"}
    assert acknowledged <= {row["seq"] for row in rows(engine, "SELECT seq FROM inbox JOIN inbox_payload USING (seq)")}
    verified = pair.place.invoke("relay", "verify")
    assert verified.status == 0, verified.stdout + verified.stderr
    assert all(program.runs for program in pair.programs)


@pytest.mark.parametrize("name", MOMENTS)
def test_a_primary_that_dies_while_payloads_are_pruned_leaves_no_half_of_it(tmp_path: Path, name: str) -> None:
    """Fifteen seconds each."""
    moment = MOMENTS[name]

    def answered(seq: int, _attempt: int) -> int:
        return 422 if seq in DEAD else 200

    with at_work(tmp_path, synchronous=True, filled=fill_old, script=answered) as pair:
        gone = count(engine_of(pair.primary), GONE)
        with held(pair.primary, moment.held) as session:
            run(engine_of(pair.primary), _ROUND)
            wait_until_held(pair.primary)
            before = until(lambda: position(pair.standby), "the standby has applied the steps before")
            pair.send_some()
            with pair.standby.frozen() if moment.is_committing else contextlib.nullcontext():
                if moment.is_committing:
                    session.execute("SELECT pg_advisory_unlock(%s)", [HOLD])
                    wait_until_committing(pair.primary)
                pair.primary.kill()
        engine = go_on(pair)
        assert position(pair.standby) >= before
        assert rows(engine, HALF_DONE) == []
        run(engine, _ROUND)
        pruned = f"{GONE} AND EXISTS (SELECT FROM inbox_payload p WHERE p.seq = i.seq)"

        def is_pruned() -> bool:
            """Have rounds until it is: one that began beside the end of the primary may pass over what failed."""
            run(engine, _NEXT_ROUND)
            return count(engine, pruned) == 0

        until(is_pruned, "the pruner goes on", poll=0.5)
        assert rows(engine, HALF_DONE) == []
        assert rows(engine, "SELECT rows FROM pruning WHERE kind = 'payloads'") == [{"rows": gone}]
        assert {
            row["seq"] for row in rows(engine, "SELECT seq FROM open_delivery WHERE seq <= 120100")
        } == DEAD | PAUSED
        end(pair)


PERSONS = 550
HELD_EVENT = 400


def fill_person(engine: Engine) -> None:
    """A person in every table, and with so many more events."""
    live(Steps(engine))
    plain = of_person(9)
    events = text("""
INSERT INTO inbox (seq, source, dedup_key, entity_type, entity_id, event_type, action, event_id, occurred_at, received_at,
                   routes, content_type, body_bytes, body_sha256, traceparent)
SELECT n, :source, 'bulk ' || n, :entity_type, :entity_id, 'UPDATE', 'update', :event_id, now(), now(), '{}',
       'application/json', length(:body), :sha, :traceparent
FROM generate_series(9, :last) AS n
""")
    payloads = text(
        "INSERT INTO inbox_payload (seq, headers, body) SELECT n, '{}', :body FROM generate_series(9, :last) AS n"
    )
    shared = {"body": BODY, "last": PERSONS}
    with engine.begin() as connection:
        connection.execute(
            events,
            {
                **shared,
                "source": plain.source,
                "entity_type": plain.entity_type,
                "entity_id": ID,
                "event_id": plain.event_id,
                "sha": plain.body_sha256,
                "traceparent": plain.traceparent,
            },
        )
        connection.execute(payloads, shared)
    run(engine, f"SELECT setval('inbox_seq_seq', 120100); {_NO_ROUND_YET}")


def test_a_primary_that_dies_during_an_erasure_leaves_nothing_of_the_person(tmp_path: Path) -> None:
    """Fifteen seconds."""
    asked = f"""
INSERT INTO relay_command (kind, selection, reason)
VALUES ('erase', '{{"source": "trivore", "entity_type": "USER", "entity_id": "{ID}"}}', 'request 2026-17')
"""
    with at_work(tmp_path, synchronous=True, filled=fill_person) as pair:
        erased = "inbox WHERE erased_at IS NOT NULL"
        persons = count(engine_of(pair.primary), "inbox WHERE entity_id = :id", id=ID)
        assert persons > PERSONS - 10
        with held(pair.primary, f"BEFORE DELETE ON inbox_payload_1 FOR EACH ROW WHEN (OLD.seq = {HELD_EVENT})"):
            run(engine_of(pair.primary), asked)
            wait_until_held(pair.primary)
            before = until(lambda: count(engine_of(pair.standby), erased), "the standby has applied the steps before")
            assert before < persons
            pair.send_some()
            pair.primary.kill()
        engine = go_on(pair)
        assert count(engine, erased) >= before
        done = "relay_command WHERE kind = 'erase' AND state = 'done' AND affected = :persons"
        until(lambda: count(engine, done, persons=persons), "the erasure goes on")
        assert traces_in(engine) == []
        assert count(engine, f"{erased} AND entity_id = :pseudonym", pseudonym=PERSON.pseudonym) == persons
        end(pair)
