"""Listing of rejected requests, and readmission after a fix of the configuration: `inbox rejected`, `readmit`."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from inbox.events.timestamps import as_time
from inbox.loader.load import read_config
from tests.helpers.processes import invoke
from tests.helpers.receiver import Receiver, receiving
from tests.helpers.tables import Row, count, rows
from tests.helpers.webhooks import TOKEN, body, config_text

PRESET = 'preset = "trivore"\n'
BROKEN = PRESET + 'dedup = ["timestamp", "version"]\n'
"""No sender says which version: everything is refused."""
REASON = ("--all", "--reason", "dedup is mended")


class Place:
    """A folder with an inbox.toml, the receiver that it describes, and the command."""

    def __init__(self, folder: Path, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self._file = folder / "inbox.toml"
        self._text = config_text(database_url)
        monkeypatch.setenv("INBOX_CONFIG", str(self._file))
        monkeypatch.setenv("LOGNAME", "kim")

    def configure(self, preset: str) -> None:
        self._file.write_text(self._text.replace(PRESET, preset), encoding="utf-8")

    def receive(self, *sent: bytes, **headers: str) -> list[int]:
        """Post each body; return the statuses once the receiver has stored everything that it keeps of them."""

        async def post() -> list[int]:
            async with receiving(read_config()) as receiver:
                return [await _status(receiver, each, headers) for each in sent]

        return asyncio.run(post())

    def inbox(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of the command."""
        ran = invoke("inbox", *arguments, COLUMNS="300")
        return ran.status, ran.stdout + ran.stderr

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the items that the command lists with --json, whatever its exit status."""
        found: list[dict[str, Any]] = json.loads(invoke("inbox", *arguments, "--json").stdout)
        return found

    def planned(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the requests that the plan of `inbox readmit` lists, as they are read now."""
        found: list[dict[str, Any]] = json.loads(invoke("inbox", "readmit", *arguments, "--json").stdout)["requests"]
        return found

    def refusals(self) -> list[Row]:
        return rows(self.engine, "SELECT * FROM rejected_request ORDER BY id")


async def _status(receiver: Receiver, sent: bytes, headers: dict[str, str]) -> int:
    answer = await receiver.post(sent, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return int(answer.status_code)


@pytest.fixture
def place(tmp_path: Path, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, database_url, engine, monkeypatch)


def test_what_was_refused_for_a_mistake_in_the_configuration_is_taken_in_when_it_is_mended(place: Place) -> None:
    place.configure(BROKEN)
    assert place.receive(body("u1"), body("u2"), X_Request_Id="r-1") == [422, 422]

    place.configure(PRESET)
    status, plan = place.inbox("readmit", *REASON)
    assert (status, count(place.engine, "inbox")) == (0, 0)
    assert "UPDATE USER/u2 → everything" in plan
    assert "2 requests would be readmitted; --yes does it" in plan

    status, done = place.inbox("readmit", *REASON, "--yes")
    assert status == 0
    assert "2 requests readmitted" in done
    stored = rows(place.engine, "SELECT * FROM inbox JOIN inbox_payload USING (seq) ORDER BY seq")
    assert [(row["entity_id"], bytes(row["body"])) for row in stored] == [("u1", body("u1")), ("u2", body("u2"))]
    assert "r-1" in str(stored[0]["headers"])
    assert count(place.engine, "open_delivery WHERE state = 'received' AND route = 'everything'") == 2
    for refusal, event in zip(place.refusals(), stored, strict=True):
        assert refusal["received_at"] == event["received_at"]
        assert refusal["readmitted_seq"] == event["seq"]
        assert (refusal["readmitted_by"], refusal["readmit_reason"]) == ("kim", "dedup is mended")
        assert as_time(refusal["readmitted_at"]) > as_time(refusal["received_at"])


def test_it_is_stored_as_one_that_was_never_refused(place: Place) -> None:
    headers = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "Webhook-Id": "msg_1",
        "Cookie": "secret=1",
    }
    place.configure(BROKEN)
    place.receive(body("u1"), **headers)
    place.configure(PRESET)
    place.inbox("readmit", *REASON, "--yes")
    place.receive(body("u2"), **headers)

    readmitted, other = rows(place.engine, "SELECT * FROM inbox JOIN inbox_payload USING (seq) ORDER BY seq")
    of_the_entity = {"seq", "dedup_key", "entity_id", "received_at", "body", "body_sha256"}
    assert {name for name in other if readmitted[name] != other[name]} == of_the_entity
    assert readmitted["dedup_key"][:31] == other["dedup_key"][:31]  # the time, and then a digest with the entity in it
    assert TOKEN not in str(readmitted)


def test_the_same_request_is_readmitted_once_and_what_comes_again_is_a_repeat(place: Place) -> None:
    place.configure(BROKEN)
    place.receive(body("before"), body("after"))
    place.configure(PRESET)
    assert place.receive(body("before")) == [200]

    assert len(place.planned(*REASON, "--yes")) == 2
    assert place.planned(*REASON, "--yes") == []
    status, said = place.inbox("readmit", *REASON)
    assert (status, "nothing to readmit: no rejected request matches" in said) == (1, True)
    assert place.receive(body("after")) == [200]

    first, second = (row["readmitted_seq"] for row in place.refusals())
    assert (first, second > 1) == (1, True)
    assert count(place.engine, "inbox") == 2
    assert count(place.engine, "duplicate_request") == 2


def test_what_is_still_refused_is_told_with_its_reason_and_what_can_be_read_is_taken_in(place: Place) -> None:
    place.configure(BROKEN)
    place.receive(body("u1"), b"{}", body("u2"))
    place.configure(PRESET)

    status, plan = place.inbox("readmit", *REASON)
    assert (status, "1 left out: still rejected: id is missing" in plan) == (0, True)
    status, done = place.inbox("readmit", *REASON, "--yes")
    assert (status, "rejected request 2: id is missing" in done) == (1, True)
    assert [row["readmitted_seq"] is None for row in place.refusals()] == [False, True, False]


def test_what_did_not_prove_who_sent_it_is_listed_and_can_not_be_readmitted(place: Place) -> None:
    place.configure(PRESET)
    assert place.receive(body("u1"), X_Webhook_Token="wrong") == [401]
    assert place.receive(b"{}") == [422]

    assert place.planned(*REASON)[0]["cause"] == "invalid_event"
    listing = place.inbox("rejected", "--columns", "id,readmit")[1].splitlines()
    assert [line.split() for line in listing] == [["id", "readmit"], ["2", "yes"], ["1", "no"]]
    (newest, stranger) = place.listed("rejected")
    assert set(newest) == set(place.refusals()[0])
    assert (newest["body"], stranger["body"], stranger["headers"]) == ("{}", None, None)
    assert [row["cause"] for row in place.listed("rejected", "--before", str(newest["id"]))] == ["not_authenticated"]
    assert len(place.listed("rejected", "--limit", "1", "--source", "trivore", "--since", "2000-01-01")) == 1
    assert place.listed("rejected", "--cause", "too_large") == []


def test_a_body_with_several_events_becomes_several_and_the_first_is_noted(place: Place) -> None:
    events = [{"specversion": "1.0", "id": f"e{n}", "source": "shop", "type": "order.updated"} for n in range(3)]
    sent = {"Content_Type": "application/cloudevents-batch+json"}
    place.configure(PRESET)
    assert place.receive(json.dumps(events).encode(), b"[]", **sent) == [415, 415]

    place.configure('preset = "cloudevents"\n')
    status, plan = place.inbox("readmit", *REASON)
    assert (status, "order.updated → everything, and 2 more" in plan) == (0, True)
    assert "still rejected: there is no event in it" in plan
    (batch, empty) = place.planned(*REASON, "--yes")
    seqs = [row["seq"] for row in rows(place.engine, "SELECT seq FROM inbox ORDER BY seq")]
    assert len(batch["events"]) == len(seqs) == 3
    assert [row["readmitted_seq"] for row in place.refusals()] == [seqs[0], None]
    assert empty["events"] == []


def test_the_limits_of_an_events_time_are_those_of_its_arrival(place: Place) -> None:
    """Rejects an event dated two days ahead on readmission three days later, too."""
    place.configure(BROKEN)
    place.receive(body("u1"))
    (refusal,) = place.refusals()
    arrived = as_time(refusal["received_at"])
    place.receive(body("u2", timestamp=(arrived + timedelta(hours=23)).isoformat()))
    place.receive(body("u3", timestamp=(arrived + timedelta(hours=25)).isoformat()))
    place.configure(PRESET)
    refused = [each["rejected"] for each in place.planned(*REASON)]
    assert [reason is None for reason in refused] == [True, True, False]


def test_each_condition_narrows_what_is_meant_and_a_mistyped_one_is_wrong_use(place: Place) -> None:
    place.configure(BROKEN)
    place.receive(body("u1"), b"<xml/>", body("u2"))
    place.configure(PRESET)
    for arguments, meant in (
        (("--all",), [1, 2, 3]),
        (("--id", "3"), [3]),
        (("--cause", "unreadable"), [2]),
        (("--source", "unrouted"), []),
        (("--status", "422"), [1, 3]),
        (("--error", "DEDUP"), [1, 3]),
        (("--error", "%"), []),
        (("--since", "2999-01-01"), []),
        (("--until", "1h"), []),
    ):
        assert [each["id"] for each in place.planned(*arguments)] == meant, arguments
    assert place.inbox("readmit", *REASON, "--id", "99")[0] == 1
    assert place.inbox("rejected", "--id", "99") == (1, "there is no rejected request 99\n")
    for wrong in (("--all", "--yes"), REASON[1:], ("--cause", "invalid_evnt"), ("--source", "trivor")):
        assert place.inbox("readmit", *wrong)[0] == 2, wrong
