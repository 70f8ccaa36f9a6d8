"""Listing of rejected requests, and readmission after a fix of the configuration: `inbox rejected`, `readmit`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from inbox.events.timestamps import as_time
from inbox.loader.load import read_config
from tests.helpers.processes import Ended, Site
from tests.helpers.receiver import receiving
from tests.helpers.tables import count, rows
from tests.helpers.webhooks import TOKEN, body, config_text

PRESET = 'preset = "trivore"\n'
BROKEN = PRESET + 'dedup = ["timestamp", "version"]\n'
"""No sender says which version: everything is refused."""
REASON = ("readmit", "--all", "--reason", "dedup is mended")
Receives = Callable[..., list[int]]


@pytest.fixture
def receive(place: Site, database_url: str) -> Receives:
    """A function that posts bodies to a receiver with this preset; gives the statuses once all that it keeps is stored."""

    def receives(preset: str, *sent: bytes, **headers: str) -> list[int]:
        place.configure(config_text(database_url).replace(PRESET, preset))
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        async def post() -> list[int]:
            async with receiving(read_config(place.folder / "inbox.toml")) as receiver:
                return [(await receiver.post(each, headers=named)).status_code for each in sent]

        return asyncio.run(post())

    return receives


def inbox(place: Site, *words: str) -> Ended:
    return place.invoke("inbox", *words, LOGNAME="kim")


def planned(place: Site, *words: str) -> list[dict[str, Any]]:
    """Return the requests that a readmission lists, as they are read now."""
    found: list[dict[str, Any]] = json.loads(inbox(place, *words, "--json").stdout)["requests"]
    return found


def test_a_request_that_was_refused_by_mistake_is_stored_as_one_that_never_was(
    place: Site, engine: Engine, receive: Receives
) -> None:
    headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "Webhook-Id": "msg_1"}
    assert receive(BROKEN, body("u1"), b"{}", Cookie="secret=1", **headers) == [422, 422]
    assert receive(PRESET, body("u2"), Cookie="secret=1", **headers) == [200]
    plan = inbox(place, *REASON)
    assert (plan.status, count(engine, "inbox")) == (0, 1)
    assert "1 left out: still rejected: id is missing" in plan.stderr
    assert inbox(place, *REASON, "--yes").status == 1, "one is still refused"

    other, readmitted = rows(engine, "SELECT * FROM inbox JOIN inbox_payload USING (seq) ORDER BY seq")
    of_the_entity = {"seq", "dedup_key", "entity_id", "received_at", "body", "body_sha256"}
    assert {name for name in other if readmitted[name] != other[name]} == of_the_entity
    assert bytes(readmitted["body"]) == body("u1")
    assert readmitted["dedup_key"][:31] == other["dedup_key"][:31]  # the time, and then a digest with the entity in it
    assert TOKEN not in str(readmitted)
    assert count(engine, "open_delivery WHERE state = 'received' AND route = 'everything'") == 2
    refusal, still = rows(engine, "SELECT * FROM rejected_request ORDER BY id")
    assert (refusal["received_at"], refusal["readmitted_seq"]) == (readmitted["received_at"], readmitted["seq"])
    assert (refusal["readmitted_by"], refusal["readmit_reason"]) == ("kim", "dedup is mended")
    assert as_time(refusal["readmitted_at"]) > as_time(refusal["received_at"])
    assert still["readmitted_seq"] is None


def test_the_same_request_is_readmitted_once_and_a_repeat_of_it_is_a_duplicate(
    place: Site, engine: Engine, receive: Receives
) -> None:
    receive(BROKEN, body("before"), body("after"))
    assert receive(PRESET, body("before")) == [200]
    assert [len(planned(place, *REASON, "--yes")) for _ in range(2)] == [2, 0]
    assert inbox(place, *REASON).status == 1, "nothing to readmit"
    assert receive(PRESET, body("after")) == [200]
    assert (count(engine, "inbox"), count(engine, "duplicate_request")) == (2, 2)


def test_a_request_without_proof_of_its_sender_is_listed_and_can_not_be_readmitted(
    place: Site, engine: Engine, receive: Receives
) -> None:
    assert receive(PRESET, body("u1"), X_Webhook_Token="wrong") + receive(PRESET, b"{}") == [401, 422]
    assert [each["cause"] for each in planned(place, *REASON)] == ["invalid_event"]
    listing = inbox(place, "rejected", "--columns", "id,readmit").stdout.splitlines()
    assert [line.split() for line in listing] == [["id", "readmit"], ["2", "yes"], ["1", "no"]]
    newest, stranger = json.loads(inbox(place, "rejected", "--json").stdout)
    assert set(newest) == set(rows(engine, "SELECT * FROM rejected_request")[0])
    assert (newest["body"], stranger["body"], stranger["headers"]) == ("{}", None, None)


def test_a_body_with_several_events_becomes_several_and_the_first_is_noted(
    place: Site, engine: Engine, receive: Receives
) -> None:
    events = [{"specversion": "1.0", "id": f"e{n}", "source": "shop", "type": "order.updated"} for n in range(3)]
    sent = {"Content_Type": "application/cloudevents-batch+json"}
    assert receive(PRESET, json.dumps(events).encode(), b"[]", **sent) == [415, 415]
    receive('preset = "cloudevents"\n')
    batch, empty = planned(place, *REASON, "--yes")
    seqs = [row["seq"] for row in rows(engine, "SELECT seq FROM inbox ORDER BY seq")]
    assert (len(batch["events"]), len(seqs), empty["events"]) == (3, 3, [])
    noted = rows(engine, "SELECT readmitted_seq FROM rejected_request ORDER BY id")
    assert [row["readmitted_seq"] for row in noted] == [seqs[0], None]


def test_the_limits_of_an_events_time_are_those_of_its_arrival(place: Site, engine: Engine, receive: Receives) -> None:
    """An event dated two days ahead is rejected on readmission three days later, too."""
    receive(BROKEN, body("u1"))
    arrived = as_time(rows(engine, "SELECT received_at FROM rejected_request")[0]["received_at"])
    times = [(arrived + timedelta(hours=hours)).isoformat() for hours in (23, 25)]
    receive(BROKEN, *(body("u2", timestamp=time) for time in times))
    receive(PRESET)
    assert [each["rejected"] is None for each in planned(place, *REASON)] == [True, True, False]


def test_a_mistyped_condition_is_wrong_use_and_one_that_nothing_fits_is_1(place: Site, receive: Receives) -> None:
    receive(BROKEN, body("u1"), b"<xml/>", body("u2"))
    receive(PRESET)
    for words, meant in (("--id 3", [3]), ("--cause unreadable", [2]), ("--status 422", [1, 3]), ("--until 1h", [])):
        assert [each["id"] for each in planned(place, "readmit", *words.split())] == meant, words
    assert [inbox(place, *words).status for words in ((*REASON, "--id", "99"), ("rejected", "--id", "99"))] == [1, 1]
    for wrong in ("--all --yes", "--reason x", "--cause invalid_evnt", "--source trivor"):
        assert inbox(place, "readmit", *wrong.split()).status == 2, wrong
