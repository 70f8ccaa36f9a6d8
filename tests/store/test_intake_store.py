"""The receiver's SQL stores its input byte for byte and in the order of arrival."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from inbox.clock import SystemClock
from inbox.db import intake as intakes
from inbox.db.dialect import as_json, is_data_error
from inbox.db.intake import Rejected
from inbox.db.reads import Row, plain
from inbox.events.event import Enrolment, Event
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.receiver import a_link
from tests.helpers.storing import START, Intake, an_event

ODD_BYTES = b"\x00\xff\xfe{'\"\\}\r\n\t\x00" + bytes(range(256))
ODD_TEXT = "Ünï \N{SNOWMAN} 'quoted\" \\back|slash {brace},comma \N{PILE OF POO}"


@pytest.fixture
def intake(database_url: str) -> Intake:
    return Intake(database_url)


def with_body(event: Event, body: bytes) -> Event:
    return msgspec.structs.replace(event, body=body, body_sha256=hashlib.sha256(body).digest())


def rows(engine: Engine, statement: str) -> list[Row]:
    with engine.connect() as connection:
        return [plain(row) for row in connection.execute(text(statement)).mappings()]


def column(engine: Engine, name: str, table: str) -> list[Any]:
    return [row[name] for row in rows(engine, f"SELECT {name} FROM {table}")]


# --- append


def test_seq_ascends_in_the_order_of_arrival_not_of_keys(intake: Intake, engine: Engine) -> None:
    assert intake.append(an_event(3), an_event(1), an_event(2)) == [1, 2, 3]
    assert intake.append(an_event(9), an_event(8)) == [4, 5]
    keys = [f"{number:08d}|u1" for number in (3, 1, 2, 9, 8)]
    assert column(engine, "dedup_key", "inbox ORDER BY seq") == keys


def test_an_event_is_stored_as_it_is(intake: Intake, engine: Engine) -> None:
    changes = {
        "dedup_key": f"2026|{ODD_TEXT}",
        "event_type": ODD_TEXT,
        "entity_type": "ÜSER",
        "entity_id": "0012",
        "action": "delete",
        "event_id": "1e5",
        "content_type": "application/vnd.odd+json",
        "headers": {"content-type": "application/json; charset=utf-8", "x-odd": ODD_TEXT},
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "occurred_at": START + timedelta(microseconds=123457),
        "received_at": START + timedelta(microseconds=1),
    }
    event = msgspec.structs.replace(an_event(1), **changes)
    assert intake.append(event) == [1]
    (row,) = rows(engine, "SELECT * FROM inbox JOIN inbox_payload USING (seq)")
    expected = {name: getattr(event, name) for name in Event.__struct_fields__ if name not in {"enrolments", "ahead"}}
    assert {**row, "headers": dict(row["headers"])} == {
        **expected,
        "seq": 1,
        "routes": ["strict"],
        "body_bytes": len(event.body),
        "body_is_text": True,
        "erased_at": None,
        "body_sha256": event.body_sha256.hex(),
    }


def test_a_body_arrives_byte_for_byte(intake: Intake, engine: Engine) -> None:
    """Empty, a NUL, invalid UTF-8, every byte, a byte order mark, and 600 kB."""
    bodies = [b"", b"\x00", b"\xff", ODD_BYTES, b'{"n": "\xc3\x28"}', b"\xef\xbb\xbf{}", b"\x00\xff" * 300_000]
    intake.append(*(with_body(an_event(number), body) for number, body in enumerate(bodies)))
    found = rows(engine, "SELECT body, body_sha256 FROM inbox JOIN inbox_payload USING (seq) ORDER BY seq")
    assert [(bytes(row["body"]), row["body_sha256"]) for row in found] == [
        (body, hashlib.sha256(body).hexdigest()) for body in bodies
    ]


def test_a_field_that_an_event_lacks_stays_empty(intake: Intake, engine: Engine) -> None:
    intake.append(msgspec.structs.replace(an_event(1), entity_type=None, entity_id=None, headers={}))
    columns = "entity_type, entity_id, event_id, traceparent, headers"
    (row,) = rows(engine, f"SELECT {columns} FROM inbox JOIN inbox_payload USING (seq)")
    assert row == {"entity_type": None, "entity_id": None, "event_id": None, "traceparent": None, "headers": {}}


def test_each_route_gets_its_delivery_and_lane(intake: Intake, engine: Engine) -> None:
    several = (Enrolment("to-crm", "USER|u1"), Enrolment("all_2", "*"), Enrolment("Own", f"|{ODD_TEXT}"))
    first = msgspec.structs.replace(an_event(5), enrolments=several)
    assert intake.append(first, an_event(2, routes=[]), an_event(3, "u3")) == [1, 2, 3]
    assert column(engine, "routes", "inbox ORDER BY seq") == [["to-crm", "all_2", "Own"], [], ["strict"]]
    deliveries = rows(engine, "SELECT * FROM open_delivery")
    made = {(row["seq"], Enrolment(row["route"], row["lane"])) for row in deliveries}
    assert made == {*((1, each) for each in several), (3, Enrolment("strict", "USER|u3"))}
    assert len(deliveries) == 4
    assert {row["occurred_at"] for row in deliveries if row["seq"] == 1} == {START + timedelta(seconds=5)}
    assert {(row["state"], row["attempt"], row["run"]) for row in deliveries} == {("received", 0, 0)}
    assert intake.append(an_event(6, routes=[]), an_event(7, routes=[])) == [4, 5]
    assert len(rows(engine, "SELECT * FROM open_delivery")) == 4, "a batch may take no route at all"


def test_a_time_too_far_ahead_counts_as_the_second_of_its_arrival(intake: Intake, engine: Engine) -> None:
    """By the database's clock, as hosts of receivers have clocks of their own."""
    began = SystemClock().now()
    within, ahead = began + timedelta(seconds=3), began + timedelta(hours=3)
    intake.append(*(msgspec.structs.replace(an_event(n), occurred_at=at) for n, at in enumerate((within, ahead))))
    stored, counted = column(engine, "occurred_at", "inbox ORDER BY seq")
    assert stored == within
    assert began.replace(microsecond=0) <= counted <= SystemClock().now()
    assert counted.microsecond == 0, "what comes after it in this second is not older"
    assert column(engine, "occurred_at", "open_delivery ORDER BY seq") == [stored, counted]


def test_events_without_a_time_are_in_the_order_in_which_they_are_stored(intake: Intake, engine: Engine) -> None:
    """Two receivers whose clocks differ by 8 s take them in turn."""
    now = SystemClock().now()
    for number in range(4):
        told = now + timedelta(seconds=8 * (number % 2))
        intake.append(msgspec.structs.replace(an_event(number), occurred_at=told, received_at=told, ahead=None))
    assert column(engine, "seq", "open_delivery ORDER BY occurred_at, seq") == [1, 2, 3, 4]


def test_of_equal_keys_in_one_batch_the_first_is_stored(intake: Intake, engine: Engine) -> None:
    first, second = an_event(1), with_body(an_event(1), b"other")
    seqs = intake.append(an_event(7), first, second, an_event(2), first)
    assert (seqs[:3], seqs[4]) == ([1, 2, None], None)
    assert seqs[3] in {3, 4}  # a number may stay unused
    (kept,) = rows(engine, "SELECT body FROM inbox JOIN inbox_payload USING (seq) WHERE dedup_key LIKE '%1|u1'")
    assert bytes(kept["body"]) == first.body
    assert len(rows(engine, "SELECT * FROM open_delivery")) == 3


def test_a_key_that_is_there_is_not_stored_again(intake: Intake, engine: Engine) -> None:
    assert intake.append(an_event(1)) == [1]
    first, second, third = intake.append(with_body(an_event(1), b"other"), an_event(2), an_event(1))
    assert (first, third, (second or 0) > 1) == (None, None, True)
    bodies = column(engine, "body", "inbox_payload ORDER BY seq")
    assert [bytes(body) for body in bodies] == [an_event(1).body, an_event(2).body]
    assert len(rows(engine, "SELECT * FROM open_delivery")) == 2


def test_the_same_key_of_another_source_is_another_event(intake: Intake) -> None:
    assert intake.append(an_event(1), msgspec.structs.replace(an_event(1), source="github")) == [1, 2]


def test_a_row_that_the_database_refuses_takes_its_whole_batch_with_it(intake: Intake, engine: Engine) -> None:
    bad = an_event(2)
    msgspec.structs.force_setattr(bad, "action", "explode")
    with pytest.raises(DBAPIError) as refused:
        intake.append(an_event(1), bad, an_event(3))
    assert is_data_error(refused.value)
    assert [row for name in ("inbox", "inbox_payload", "open_delivery") for row in column(engine, "seq", name)] == []
    assert len(intake.append(an_event(1), an_event(3))) == 2


@ON_POSTGRES
def test_a_row_that_is_too_large_for_an_index_is_itself_at_fault(intake: Intake) -> None:
    noise = "".join(chr(0x4E00 + byte) for n in range(300) for byte in hashlib.sha256(b"%d" % n).digest())
    with pytest.raises(DBAPIError, match="index row") as refused:
        intake.append(msgspec.structs.replace(an_event(1), dedup_key=noise))
    assert is_data_error(refused.value)


def test_a_text_like_a_nul_is_stored_and_a_nul_in_a_header_is_not(intake: Intake, engine: Engine) -> None:
    looks = "\\u0000 \\\\u0000 \\x00"
    event = msgspec.structs.replace(an_event(1), entity_id=looks, headers={"user-agent": looks})
    assert intake.append(event) == [1]
    (row,) = rows(engine, "SELECT entity_id, headers FROM inbox JOIN inbox_payload USING (seq)")
    assert (row["entity_id"], as_json(row["headers"])) == (looks, {"user-agent": looks})
    for headers in ({"user-agent": "\x00"}, {"user\x00agent": "it"}):
        with pytest.raises((ValueError, DBAPIError)):
            intake.append(msgspec.structs.replace(an_event(2), headers=headers))
    assert column(engine, "seq", "inbox") == [1]


# --- repeat


def test_a_repeat_is_noted_with_the_first_seq(intake: Intake, engine: Engine) -> None:
    intake.append(an_event(1), an_event(2))
    later = msgspec.structs.replace(an_event(2), received_at=START + timedelta(seconds=90))
    assert intake.repeat(later, an_event(1), later) == [2, 1, 2]
    noted = rows(engine, "SELECT * FROM duplicate_request ORDER BY id")
    told = [(2, later.received_at), (1, START), (2, later.received_at)]
    assert [(row["seq"], row["received_at"]) for row in noted] == told
    assert {(row["body"], row["handled_at"]) for row in noted} == {(None, None)}
    assert noted[0]["body_sha256"] == later.body_sha256.hex()


def test_a_repeat_of_an_event_without_payload_is_compared_by_its_hash(intake: Intake, engine: Engine) -> None:
    intake.append(an_event(1))
    with engine.begin() as connection:
        for table in ("open_delivery", "inbox_payload"):
            connection.execute(text(f"DELETE FROM {table}"))
    assert intake.repeat(an_event(1)) == [1]
    assert column(engine, "body", "duplicate_request") == [None]


def test_a_repeat_of_nothing_notes_nothing(intake: Intake, engine: Engine) -> None:
    intake.append(an_event(1))
    of_another = msgspec.structs.replace(an_event(1), source="github")
    assert intake.repeat(an_event(9), an_event(1), of_another) == [None, 1, None]
    assert column(engine, "seq", "duplicate_request") == [1]


def kept(engine: Engine) -> list[tuple[int, int]]:
    """Seq and count of each row, in their order."""
    found = rows(engine, "SELECT seq, times FROM duplicate_request ORDER BY id")
    return [(row["seq"], row["times"]) for row in found]


def receive_after(event: Event, second: int) -> Event:
    return msgspec.structs.replace(event, received_at=START + timedelta(seconds=second))


def test_the_first_duplicates_are_rows_and_the_last_counts_the_rest(intake: Intake, engine: Engine) -> None:
    intake.append(an_event(1), an_event(2))
    assert intake.repeat(*(receive_after(an_event(1), n) for n in range(18)), an_event(2)) == [1] * 18 + [2]
    assert intake.repeat(*(receive_after(an_event(1), n) for n in range(18, 25))) == [1] * 7
    assert [times for seq, times in kept(engine) if seq == 1] == [1] * 19 + [6]

    assert intake.repeat(
        receive_after(an_event(1), 40), receive_after(an_event(2), 50), receive_after(an_event(1), 30)
    ) == [1, 2, 1]

    assert [times for seq, times in kept(engine) if seq == 1] == [1] * 19 + [8]
    assert [times for seq, times in kept(engine) if seq == 2] == [1, 1]
    (row,) = rows(engine, "SELECT received_at, last_received_at FROM duplicate_request WHERE times > 1")
    assert row == {"received_at": START + timedelta(seconds=19), "last_received_at": START + timedelta(seconds=40)}


def test_a_repeat_that_is_counted_is_to_be_judged_again(intake: Intake, engine: Engine) -> None:
    intake.append(an_event(1))
    intake.repeat(*[an_event(1)] * 25)
    with engine.begin() as connection:
        connection.execute(text("UPDATE duplicate_request SET handled_at = received_at, error = 'odd'"))
    intake.repeat(an_event(1))
    (row,) = rows(engine, "SELECT times, error FROM duplicate_request WHERE handled_at IS NULL")
    assert row == {"times": 7, "error": None}


def test_the_bodies_of_the_first_repeats_are_kept(intake: Intake, engine: Engine) -> None:
    intake.append(an_event(1))
    others = [with_body(an_event(1), b"%d" % n + ODD_BYTES) for n in range(30)]
    assert intake.repeat(*others) == [1] * 30
    found = rows(engine, "SELECT body, body_sha256 FROM duplicate_request ORDER BY id")
    assert [(bytes(row["body"]), row["body_sha256"]) for row in found] == [
        (other.body, other.body_sha256.hex()) for other in others[:20]
    ]


def test_duplicates_in_different_orders_lose_no_count(database_url: str, engine: Engine, intake: Intake) -> None:
    """None waits for another: two that took rows in their own order would wait for each other."""
    events = [an_event(n) for n in range(8)]
    intake.append(*events)
    intake.repeat(*events * 20)

    async def receiver(order: Sequence[Event]) -> None:
        link = a_link(database_url)
        await link.open()
        for _ in range(40):
            await link.write(intakes.note_duplicates, order)
        await link.drop()

    async def run_all() -> None:
        await asyncio.gather(*(receiver(order) for order in (events, events[::-1], events[4:] + events[:4])))

    asyncio.run(run_all())
    assert (sum(times for _, times in kept(engine)), {seq for seq, _ in kept(engine)}) == (1120, {*range(1, 9)})
    assert len(kept(engine)) < 8 * 30


@ON_POSTGRES
def test_a_receiver_that_has_not_committed_yet_holds_no_other_up(intake: Intake, engine: Engine) -> None:
    """It may be frozen, or wait for a standby. On SQLite one writes at a time."""
    intake.append(an_event(1))
    intake.repeat(*[an_event(1)] * 20)
    with engine.connect() as connection:
        connection.execute(text("UPDATE duplicate_request SET times = times + 1, handled_at = NULL"))
        assert intake.repeat(an_event(1), an_event(1)) == [1, 1]
        connection.commit()
    assert kept(engine) == [(1, 2)] * 21


# --- reject and probe


REJECTED = """
SELECT received_at, source, status, cause, reason, field, remote_address, body_sha256, headers, body, readmitted_seq
FROM rejected_request ORDER BY id
"""


def test_refusals_are_kept_as_they_are(intake: Intake, engine: Engine) -> None:
    at, headers, hashed = START + timedelta(microseconds=5), {"x-odd": ODD_TEXT}, hashlib.sha256(ODD_BYTES).digest()
    of = ("trivore", 422, "invalid_field", ODD_TEXT, "timestamp", "2001:db8::1")
    whole = Rejected(at, *of, hashed, headers, ODD_BYTES)
    anonymous = msgspec.structs.replace(whole, status=401, field=None, remote_address=None, headers=None, body=None)
    intake.reject(whole, anonymous)
    for row, given in zip(rows(engine, REJECTED), (whole, anonymous), strict=True):
        assert row == {**msgspec.structs.asdict(given), "body_sha256": hashed.hex(), "readmitted_seq": None}
    assert column(engine, "id", "rejected_request WHERE headers IS NULL AND body IS NULL") == [2]


def test_a_probe_writes(intake: Intake, engine: Engine) -> None:
    for seconds in (1, 2):
        intake.probe(START + timedelta(seconds=seconds))
        (row,) = rows(engine, "SELECT id, probed_at AS at FROM write_probe")
        assert row == {"id": 1, "at": START + timedelta(seconds=seconds)}
