"""The views of events: what was given up and why, and all that happened to an entity."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import text

from relay.delivery.outcome import Call, Failed
from tests.helpers.relaying import DONE, HOPELESS, UNWELL, Steps
from tests.helpers.storing import START, a_fact, an_event

BAD_REQUEST = Call("forward", "POST", "https://audit.example.com", "answered", 1.0, status=400)
ANOTHER = Failed((BAD_REQUEST,), "mapping", "name: no value")


def minute(number: int) -> datetime:
    return START + timedelta(minutes=number)


# --- event


BODIES = [
    (b'{"name": "M\xc3\xa4kel\xc3\xa4"}', '{"name": "Mäkelä"}'),
    (b"", ""),
    ("\N{PILE OF POO}".encode(), "\N{PILE OF POO}"),
    (b"caf\xe9", "\\x636166e9"),
    (b"a\x00b", "\\x610062"),
    (b"\xed\xa0\x80", "\\xeda080"),
    (b"\x80", "\\x80"),
]


def test_an_event_has_its_body_as_text_and_in_hex_where_it_is_none(steps: Steps) -> None:
    events = [an_event(n, f"u{n}") for n in range(1, len(BODIES) + 1)]
    steps.receive(*(msgspec.structs.replace(event, body=body) for event, (body, _) in zip(events, BODIES, strict=True)))
    rows = steps.rows("SELECT seq, headers, body, is_pruned, is_erased FROM event ORDER BY seq")
    assert [row["body"] for row in rows] == [shown for _, shown in BODIES]
    assert all(row["headers"] == {"content-type": "application/json"} for row in rows)
    assert not any(row["is_pruned"] or row["is_erased"] for row in rows)


def test_one_body_that_is_no_text_although_its_row_says_so_breaks_no_query(steps: Steps) -> None:
    """A statement by hand, a restore into another encoding or a broken page: the other rows are shown all the same."""
    bodies = (b"caf\xe9", b"a\x00b", b"\xed\xa0\x80", b"\xff" * 1_000_000)
    steps.receive(*(an_event(n, f"u{n}") for n in range(1, len(bodies) + 2)))
    is_postgres = steps.database.sql.is_postgres
    for trigger in ("inbox_payload_is_append_only",) if is_postgres else ():
        steps.do(f"ALTER TABLE inbox_payload DISABLE TRIGGER {trigger}")
    if not is_postgres:
        steps.do("DROP TRIGGER inbox_payload_refuses_update")
    with steps.database.engine.begin() as connection:
        for seq, body in enumerate(bodies, 1):
            connection.execute(
                text("UPDATE inbox_payload SET body = :body WHERE seq = :seq"), {"body": body, "seq": seq}
            )
    assert [row["is_text"] for row in steps.rows("SELECT body_is_text AS is_text FROM inbox")] == [True] * 5
    if not is_postgres:  # which shows the bytes as they are; only a client that decodes them can fail
        as_bytes = "SELECT CAST(body AS blob) AS body FROM event ORDER BY seq LIMIT 4"
        assert [row["body"] for row in steps.rows(as_bytes)] == list(bodies)
        return
    shown = [row["body"] for row in steps.rows("SELECT * FROM event ORDER BY seq")]
    assert shown[:4] == [f"\\x{body.hex()}" for body in bodies]
    assert shown[4] == an_event(5).body.decode()


def test_an_event_is_all_that_the_inbox_has_of_it(steps: Steps) -> None:
    steps.receive(an_event(1))
    (event,), (stored,) = steps.rows("SELECT * FROM event"), steps.rows("SELECT * FROM inbox")
    assert {name: event[name] for name in stored} == stored


def test_an_event_whose_payload_is_gone_is_pruned_and_keeps_its_size(steps: Steps) -> None:
    steps.receive(an_event(1, routes=[]))
    steps.do("DELETE FROM inbox_payload")
    (row,) = steps.rows("SELECT * FROM event")
    assert (row["headers"], row["body"], bool(row["is_pruned"]), row["body_bytes"]) == (None, None, True, 8)


def test_an_event_from_which_a_person_was_erased_says_so(steps: Steps) -> None:
    row = msgspec.structs.asdict(an_event(1, routes=[]))
    columns = ("source", "dedup_key", "entity_type", "event_type", "action", "content_type")
    values = ", ".join(f"'{row[name]}'" for name in columns)
    moment, routes, digest = "'2026-01-01 00:00:00.000000Z'", "'{}'", "decode('00', 'hex')"
    if not steps.database.sql.is_postgres:
        routes, digest = "'[]'", "x'00'"
    steps.do(
        f"INSERT INTO inbox ({', '.join(columns)}, entity_id, occurred_at, received_at, erased_at, routes, body_bytes,"
        f" body_sha256) VALUES ({values}, 'erased:0', {moment}, {moment}, {moment}, {routes}, 8, {digest})"
    )
    (event,) = steps.rows("SELECT entity_id, body, is_pruned, is_erased FROM event")
    assert (event["entity_id"], event["body"], bool(event["is_pruned"]), bool(event["is_erased"])) == (
        *("erased:0", None),
        *(True, True),
    )


# --- dead_letter


def test_a_delivery_that_died_again_has_its_last_death(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(HOPELESS)
    steps.do(a_fact("dead", cause="gone", error="it is gone"))
    (row,) = steps.rows("SELECT cause, error FROM dead_letter")
    assert (row["cause"], row["error"]) == ("gone", "it is gone")


# --- entity_timeline


def timeline(steps: Steps, entity: str = "u1") -> list[tuple[object, ...]]:
    rows = steps.rows(
        "SELECT at, what, seq, route, summary FROM entity_timeline"
        " WHERE source = 'trivore' AND entity_type = 'USER' AND entity_id = :entity ORDER BY at, seq, fact_id, what",
        entity=entity,
    )
    return [((row["at"] - START).total_seconds(), *list(row.values())[1:]) for row in rows]


def test_the_timeline_of_an_entity_has_arrivals_duplicates_attempts_and_outcomes_in_order(steps: Steps) -> None:
    steps.arrive(
        an_event(1, routes=["strict", "latest"]), an_event(2, "u2", routes=["blocking"]), an_event(3, routes=[])
    )
    steps.advance(1)
    steps.attempt(UNWELL)
    steps.advance(6)
    steps.attempt(DONE)
    steps.attempt(HOPELESS, "latest")
    assert timeline(steps) == [
        (0.0, "arrived", 1, None, "UPDATE, for strict, latest"),
        (0.0, "arrived", 3, None, "UPDATE, for no route"),
        (1.0, "attempt_failed", 1, "strict", "forward answered 503"),
        (7.0, "delivered", 1, "strict", "forwarded"),
        (7.0, "dead", 1, "latest", "email: no value"),
    ]


def test_the_timeline_counts_duplicates_and_tells_a_different_body(steps: Steps) -> None:
    event = an_event(1)
    steps.arrive(event)
    steps.intake.repeat(event)
    steps.do("UPDATE duplicate_request SET times = 3, error = 'it is odd'")
    assert timeline(steps)[-1] == (0.0, "duplicate", 1, None, "3 requests: not judged: it is odd")


def test_a_fact_is_summed_up_by_its_error_its_person_and_reason_or_what_was_done(steps: Steps) -> None:
    steps.arrive(an_event(1))
    details: dict[str, dict[str, Any]] = {
        "dead": {"cause": "mapping", "error": "no value"},
        "skipped": {"why": "the entity is gone"},
        "cancelled": {"who": "kim", "why": "a test"},
        "delivered": {"did": "updated"},
        "superseded": {"by": 7, "because": "healed"},
        "abandoned": {},
    }
    for kind, detail in details.items():
        steps.do(a_fact(kind, 1, "strict", 1, **detail))
    assert [row[1:] for row in timeline(steps)[1:]] == [
        (kind, 1, "strict", said)
        for kind, said in zip(
            details, ("no value", "the entity is gone", "kim: a test", "updated", "healed", ""), strict=True
        )
    ]
