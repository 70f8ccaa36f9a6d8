"""Commands of an operator: plans, reasons, listings, interruptions; and readmission of rejected requests."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from inbox.db import erasure
from inbox.db.erasure import StepDone
from inbox.events.timestamps import as_time
from inbox.loader.load import read_config
from tests.docs.pages import the_block
from tests.helpers.databases import is_postgres
from tests.helpers.planted import ID, live, traces_in
from tests.helpers.processes import Ended, Site
from tests.helpers.receiver import receiving
from tests.helpers.relaying import Steps, fail_once, give_up
from tests.helpers.scripted import answer, serving
from tests.helpers.tables import count, facts, open_states, rows
from tests.helpers.webhooks import TOKEN, body, config_text, moment

MAINTENANCE = ("--reason", "maintenance", "--yes")
BECAUSE = ("--reason", "the service is back")
PERSON = ("erase", "--source", "trivore", "--entity", f"USER/{ID}")


def invoke(place: Site, *words: str, side: str = "relay") -> Ended:
    return place.invoke(side, *words, LOGNAME="kim")


def test_a_replay_shows_its_plan_and_executes_it_with_yes(place: Site, database_url: str, engine: Engine) -> None:
    give_up(engine, database_url, [(f"u{n}", moment(n)) for n in range(7)])
    plan = invoke(place, "replay", "--cause", "mapping", "--reason", "fixed")
    assert (plan.status, "7 deliveries would be replayed, 5 of them shown" in plan.stderr) == (0, True)
    groups, sample = plan.stdout.split("\n\n")
    assert groups.splitlines()[1].split() == ["7", "everything", "dead", "mapping"]
    assert len(sample.splitlines()) == 1 + 5
    document = json.loads(invoke(place, "replay", "--all", "--reason", "fixed", "--json").stdout)
    assert (document["count"], len(document["deliveries"]), document["skipped"]) == (7, 7, [])
    assert document["groups"][0]["cause"] == "mapping"
    assert open_states(engine) == {"dead": 7}

    done = invoke(place, "replay", "--cause", "mapping", "--reason", "fixed", "--yes")
    assert (done.status, "7 deliveries replayed" in done.stderr.splitlines()) == (0, True)
    assert open_states(engine) == {"ready": 7}
    replayed = [fact["detail"] for fact in facts(engine) if fact["kind"] == "replayed"]
    assert [(detail["who"], detail["why"]) for detail in replayed] == [("kim", "fixed")] * 7


def test_a_relay_delivers_a_body_that_was_edited(
    place: Site, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """The commands and statements of docs/how-to/edit-and-replay.md."""
    page = "docs/how-to/edit-and-replay.md"
    dialect = "postgres" if is_postgres(database_url) else "sqlite"
    store, ask = (the_block(page, kind).replace("42", "1") for kind in (f"sql {dialect}", "sql"))
    by_editor, by_file = (
        shlex.split(the_block(page, "text", part).replace("42", "1")) for part in ("--edit", "--body-file")
    )
    with serving(*(answer(200) for _ in range(3))) as crm:
        place.configure(config_text(database_url, crm.url))
        give_up(engine, database_url, [("u1", moment(1))])
        own = body("u1", moment(1))
        (tmp_path / "fixed.json").write_bytes(body("u1", moment(1), currency="EUR"))
        by_file[by_file.index("fixed.json")] = str(tmp_path / "fixed.json")
        plan = invoke(place, *(word for word in by_file[1:] if word != "--yes"))
        assert (plan.status, plan.stdout.split("\n")[1].split()) == (0, ["/currency", '"EUR"'])
        assert count(engine, "edited_body") == 0
        assert invoke(place, *by_file[1:]).status == 0
        assert place.relay("--drain").ends() == 0

        editor = f"sed -i s/{moment(1)[:4]}/2001/"
        for changed, status in (("true", 1), (f"{editor};s/u1/u2/", 2)):
            ended = place.invoke("relay", *by_editor[1:], "--yes", *BECAUSE, EDITOR=changed, VISUAL="")
            assert (ended.status, ended.stdout) == (status, ""), ended.stderr
        ended = place.invoke("relay", *by_editor[1:], "--yes", *BECAUSE, EDITOR=editor, VISUAL="")
        assert (ended.status, "keeps its occurred_at" in ended.stderr) == (0, True), ended.stderr
        assert place.relay("--drain").ends() == 0

        with engine.begin() as connection:
            for statement in (store.replace('"id": 7', own.decode().strip("{}")), ask):
                connection.exec_driver_sql(statement)
        for _ in range(2):
            assert place.relay("--drain").ends() == 0
    sent = [json.loads(seen.body) for seen in crm.seen]
    assert [(each.get("currency"), "2001" in str(each)) for each in sent] == [
        ("EUR", False),
        (None, True),
        ("EUR", False),
    ]
    assert len({seen.headers["webhook-id"] for seen in crm.seen}) == 3


def test_a_command_without_a_match_ends_with_1(sqlite_place: Site) -> None:
    for command in (
        "replay --all",
        "replay --all --yes",
        "cancel --seq 1",
        "unblock --all",
        "retry --seq 9",
        "retry --all --yes",
    ):
        ended = invoke(sqlite_place, *command.split(), *BECAUSE)
        assert (ended.status, ended.stdout) == (1, ""), ended.stderr
    empty = invoke(sqlite_place, "replay", "--all", *BECAUSE, "--json")
    assert (empty.status, json.loads(empty.stdout)["count"]) == (1, 0)


@pytest.mark.parametrize(
    ("side", "command"),
    [
        *(("relay", f"cancel --route everything {reason} --yes") for reason in ("", "--reason ''", "--reason …")),
        ("relay", "cancel --reason x --yes"),
        ("relay", "replay --reason x --backfill --all"),
        ("relay", "replay --reason x --entity USER"),
        ("relay", "retry --reason x --api x"),
        ("relay", "retry --reason x --route everythin"),
        ("relay", "replay --reason x --since someday"),
        ("relay", "pause --reason x"),
        ("relay", "continue --command 9"),
        ("inbox", "erase --source trivor --entity USER/u1"),
        ("inbox", "erase --source trivore --entity USER"),
        ("inbox", f"{shlex.join(PERSON)} --reason … --yes"),
        ("inbox", f"{shlex.join(PERSON)} --reason {shlex.quote(f'{ID} asked')} --yes"),
        ("inbox", "show 1 --at 2999-01-01"),
    ],
)
def test_wrong_use_is_status_2_and_changes_nothing(
    sqlite_place: Site, sqlite_engine: Engine, side: str, command: str
) -> None:
    ended = invoke(sqlite_place, *shlex.split(command), side=side)
    assert (ended.status, ended.stdout, bool(ended.stderr)) == (2, "", True)
    assert count(sqlite_engine, "relay_command") == 0


def test_a_pause_is_listed_with_actor_and_reason_until_it_ends(sqlite_place: Site, sqlite_engine: Engine) -> None:
    place, of_audit = sqlite_place, ("--destination", "audit")
    of_one = ("--source", "trivore", "--entity", "USER/u|1")
    assert invoke(place, "pause", *of_audit)[:2] == (0, "open deliveries behind it: 0\n")
    assert count(sqlite_engine, "gate") == 0
    assert invoke(place, "pause", *of_audit, *MAINTENANCE).stderr == "paused\n"
    invoke(place, "pause", *of_one, "--reason", "odd", "--yes")
    listed = json.loads(invoke(place, "status", "--json").stdout)["gates"]
    assert [(row["kind"], row["name"], row["state"], row["by"], row["why"]) for row in listed] == [
        ("destination", "audit", "paused", "kim", "maintenance"),
        ("entity", "trivore|USER|u\\|1", "paused", "kim", "odd"),
    ]
    again = invoke(place, "pause", *of_audit, *MAINTENANCE)
    assert (again.status, again.stderr.splitlines()[0]) == (0, "it is paused already")
    for gate in (of_audit, of_one):
        assert invoke(place, "resume", *gate, *MAINTENANCE).stderr.splitlines()[-1] == "resumed"
    assert count(sqlite_engine, "gate") == 0


def test_a_repair_is_followed_by_a_retry(place: Site, database_url: str, engine: Engine) -> None:
    """A retry makes waiting attempts due; other commands and the end of a pause suggest it."""
    fail_once(engine, database_url, [(f"u{n}", moment(n)) for n in range(7)])
    for other in (("replay", "--all"), ("unblock", "--route", "everything")):
        assert "`relay retry` with the same conditions" in invoke(place, *other, *BECAUSE).stderr

    invoke(place, "pause", "--destination", "audit", *MAINTENANCE)
    plan = invoke(place, "retry", "--status", "503", *BECAUSE)
    assert (plan.status, "7 deliveries would be retried" in plan.stderr) == (0, True)
    assert "`relay resume --destination audit` ends that" in plan.stderr
    resumed = invoke(place, "resume", "--destination", "audit", *MAINTENANCE)
    assert resumed.stdout == "open deliveries behind it: 7\n"
    assert "relay retry --destination audit --reason '…'" in resumed.stderr

    done = json.loads(invoke(place, "retry", "--seq", "1", *BECAUSE, "--yes", "--json").stdout)
    assert (done["count"], done["state"], done["affected"], done["failed"]) == (1, "done", 1, 0)
    assert invoke(place, "retry", "--destination", "audit", *BECAUSE, "--yes").status == 0
    asked = [fact["detail"] for fact in facts(engine) if fact["kind"] == "rescheduled"]
    assert [(detail["who"], detail["why"]) for detail in asked] == [("kim", "the service is back")] * 7


def test_commands_are_listed_with_actor_reason_and_answer(sqlite_place: Site, sqlite_engine: Engine) -> None:
    invoke(sqlite_place, "pause", "--destination", "audit", *MAINTENANCE)
    with sqlite_engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO relay_command (kind, selection, reason, dry_run)"
            """ VALUES ('replay', '{"route": "everything"}', 'only a look', true)"""
        )
    asked, done = json.loads(invoke(sqlite_place, "commands", "--json", side="inbox").stdout)
    assert (asked["id"], asked["kind"], asked["state"], asked["dry_run"]) == (2, "replay", "asked", True)
    assert asked["selection"] == {"route": "everything"}
    assert (done["asked_by"], done["reason"], done["answer"]) == ("kim", "maintenance", "paused")
    assert "maintenance" not in invoke(sqlite_place, "commands", "--state", "asked", side="inbox").stdout
    assert json.loads(invoke(sqlite_place, "commands", "1", "--json", side="inbox").stdout)["kind"] == "pause"
    assert invoke(sqlite_place, "commands", "9", side="inbox").status == 1


def test_an_event_is_shown_as_it_was_at_an_earlier_time(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine
) -> None:
    give_up(sqlite_engine, sqlite_database_url, [("u1", moment(0))])
    ((arrived, died),) = (
        row.values() for row in rows(sqlite_engine, "SELECT received_at, at FROM inbox JOIN delivery_log USING (seq)")
    )
    for at, state, number in ((arrived, "open", 0), (died, "dead", 1)):
        ended = invoke(sqlite_place, "show", "1", "--at", str(at).replace(" ", "T"), "--json", side="inbox")
        event = json.loads(ended.stdout)
        assert [(row["state"], row["attempts"]) for row in event["deliveries"]] == [(state, number)]
        assert (len(event["facts"]), event["removed"], "gates" in event) == (number, [], False)
    before = invoke(sqlite_place, "show", "1", "--at", "2020-01-01", side="inbox")
    assert (before.status, before.stdout) == (1, "")


# --- erasure


def test_a_person_is_erased_after_the_plan_and_once(place: Site, engine: Engine) -> None:
    live(Steps(engine))
    document = json.loads(invoke(place, *PERSON, "--json", side="inbox").stdout)
    figures = {each["name"]: each["count"] for each in document["figures"]}
    assert (document["count"], figures["payloads"]) == (5, 5)
    assert traces_in(engine)
    done = invoke(place, *PERSON, "--reason", "request 2026-17", "--yes", side="inbox")
    assert (done.status, done.stderr.splitlines()[-1]) == (0, "5 events erased")
    assert traces_in(engine) == []
    (command,) = rows(engine, "SELECT asked_by, state, affected FROM relay_command WHERE kind = 'erase'")
    assert command == {"asked_by": "kim", "state": "done", "affected": 5}
    again = invoke(place, *PERSON, "--reason", "request 2026-17", "--yes", side="inbox")
    assert (again.status, again.stderr) == (1, "nothing to erase: it is erased already\n5 skipped: erased before\n")


def test_open_deliveries_prevent_an_erasure_until_the_suggested_command_ends_them(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine
) -> None:
    give_up(sqlite_engine, sqlite_database_url, [("u1", moment(1))])
    erasing = ("erase", "--source", "trivore", "--entity", "USER/u1", "--reason", "asked", "--yes")
    refused = invoke(sqlite_place, *erasing, side="inbox")
    assert (refused.status, count(sqlite_engine, "relay_command")) == (1, 0)
    command = shlex.split(refused.stderr.split("`")[1])[1:]
    assert invoke(sqlite_place, *command).status == 2, "the reason is still to be written"
    command[command.index("…")] = "asked"
    assert invoke(sqlite_place, *command).status == 0
    assert invoke(sqlite_place, *erasing, side="inbox").status == 0


def test_an_interrupted_command_ends_with_1_and_can_be_continued(
    sqlite_place: Site, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(Steps(sqlite_engine))
    monkeypatch.setattr(erasure, "EVENTS_OF_A_STEP", 2)
    act, acts = erasure.erase_step, iter([False, True])

    def interrupt(*arguments: object, **named: object) -> StepDone:
        if next(acts, False):
            raise KeyboardInterrupt
        return act(*arguments, **named)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(erasure, "erase_step", interrupt)
    stopped = invoke(sqlite_place, *PERSON, "--reason", "asked", "--yes", side="inbox")
    assert (stopped.status, stopped.stderr.splitlines()[-1]) == (
        1,
        "stopped after 2; continue with `relay continue --command 2`",
    )
    assert rows(sqlite_engine, "SELECT state FROM relay_command WHERE kind = 'erase'") == [{"state": "cancelled"}]
    resumed = invoke(sqlite_place, "continue", "--command", "2", "--reason", "asked", "--yes")
    assert (resumed.status, traces_in(sqlite_engine)) == (0, [])


# --- `inbox rejected` and `inbox readmit`


PRESET = 'preset = "trivore"\n'
BROKEN = PRESET + 'dedup = ["timestamp", "version"]\n'
"""No sender has the field `version`, so every request is rejected."""
REASON = ("readmit", "--all", "--reason", "dedup is fixed")
Receives = Callable[..., list[int]]


@pytest.fixture
def receive(place: Site, database_url: str) -> Receives:
    """A function that posts bodies to a receiver with this preset; returns the statuses once the receiver has stopped."""

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


def plan_readmission(place: Site, *words: str) -> list[dict[str, Any]]:
    """Return the requests of a readmission's plan, as they are read now."""
    found: list[dict[str, Any]] = json.loads(inbox(place, *words, "--json").stdout)["requests"]
    return found


def test_a_readmitted_request_is_stored_like_any_other(place: Site, engine: Engine, receive: Receives) -> None:
    headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "Webhook-Id": "msg_1"}
    assert receive(BROKEN, body("u1"), b"{}", Cookie="secret=1", **headers) == [422, 422]
    assert receive(PRESET, body("u2"), Cookie="secret=1", **headers) == [200]
    plan = inbox(place, *REASON)
    assert (plan.status, count(engine, "inbox")) == (0, 1)
    assert "1 skipped: still rejected: id is missing" in plan.stderr
    assert inbox(place, *REASON, "--yes").status == 1, "one is still refused"

    other, readmitted = rows(engine, "SELECT * FROM inbox JOIN inbox_payload USING (seq) ORDER BY seq")
    of_the_entity = {"seq", "dedup_key", "entity_id", "received_at", "body", "body_sha256"}
    assert {name for name in other if readmitted[name] != other[name]} == of_the_entity
    assert bytes(readmitted["body"]) == body("u1")
    assert readmitted["dedup_key"][:31] == other["dedup_key"][:31]  # the time, before a digest of the entity and others
    assert TOKEN not in str(readmitted)
    assert count(engine, "open_delivery WHERE state = 'received' AND route = 'everything'") == 2
    refusal, still = rows(engine, "SELECT * FROM rejected_request ORDER BY id")
    assert (refusal["received_at"], refusal["readmitted_seq"]) == (readmitted["received_at"], readmitted["seq"])
    assert (refusal["readmitted_by"], refusal["readmit_reason"]) == ("kim", "dedup is fixed")
    assert as_time(refusal["readmitted_at"]) > as_time(refusal["received_at"])
    assert still["readmitted_seq"] is None


def test_a_request_is_readmitted_once_and_its_repetition_is_a_duplicate(
    place: Site, engine: Engine, receive: Receives
) -> None:
    receive(BROKEN, body("before"), body("after"))
    assert receive(PRESET, body("before")) == [200]
    assert [len(plan_readmission(place, *REASON, "--yes")) for _ in range(2)] == [2, 0]
    assert inbox(place, *REASON).status == 1, "nothing to readmit"
    assert receive(PRESET, body("after")) == [200]
    assert (count(engine, "inbox"), count(engine, "duplicate_request")) == (2, 2)


def test_an_unauthenticated_request_is_listed_but_cannot_be_readmitted(
    place: Site, engine: Engine, receive: Receives
) -> None:
    assert receive(PRESET, body("u1"), X_Webhook_Token="wrong") + receive(PRESET, b"{}") == [401, 422]
    assert [each["cause"] for each in plan_readmission(place, *REASON)] == ["invalid_event"]
    listing = inbox(place, "rejected", "--columns", "id,readmit").stdout.splitlines()
    assert [line.split() for line in listing] == [["id", "readmit"], ["2", "yes"], ["1", "no"]]
    newest, stranger = json.loads(inbox(place, "rejected", "--json").stdout)
    assert set(newest) == set(rows(engine, "SELECT * FROM rejected_request")[0])
    assert (newest["body"], stranger["body"], stranger["headers"]) == ("{}", None, None)


def test_a_body_with_several_events_is_readmitted_whole_and_its_first_event_noted(
    place: Site, engine: Engine, receive: Receives
) -> None:
    events = [{"specversion": "1.0", "id": f"e{n}", "source": "shop", "type": "order.updated"} for n in range(3)]
    sent = {"Content_Type": "application/cloudevents-batch+json"}
    assert receive(PRESET, json.dumps(events).encode(), b"[]", **sent) == [415, 415]
    receive('preset = "cloudevents"\n')
    batch, empty = plan_readmission(place, *REASON, "--yes")
    seqs = [row["seq"] for row in rows(engine, "SELECT seq FROM inbox ORDER BY seq")]
    assert (len(batch["events"]), len(seqs), empty["events"]) == (3, 3, [])
    noted = rows(engine, "SELECT readmitted_seq FROM rejected_request ORDER BY id")
    assert [row["readmitted_seq"] for row in noted] == [seqs[0], None]


def test_the_limits_of_an_events_time_count_from_its_arrival(place: Site, engine: Engine, receive: Receives) -> None:
    """An event dated two days ahead is rejected on readmission three days later, too."""
    receive(BROKEN, body("u1"))
    arrived = as_time(rows(engine, "SELECT received_at FROM rejected_request")[0]["received_at"])
    times = [(arrived + timedelta(hours=hours)).isoformat() for hours in (23, 25)]
    receive(BROKEN, *(body("u2", timestamp=time) for time in times))
    receive(PRESET)
    assert [each["rejected"] is None for each in plan_readmission(place, *REASON)] == [True, True, False]


def test_a_mistyped_condition_ends_with_2_and_one_without_a_match_with_1(place: Site, receive: Receives) -> None:
    receive(BROKEN, body("u1"), b"<xml/>", body("u2"))
    receive(PRESET)
    for words, meant in (("--id 3", [3]), ("--cause unreadable", [2]), ("--status 422", [1, 3]), ("--until 1h", [])):
        assert [each["id"] for each in plan_readmission(place, "readmit", *words.split())] == meant, words
    assert [inbox(place, *words).status for words in ((*REASON, "--id", "99"), ("rejected", "--id", "99"))] == [1, 1]
    for wrong in ("--all --yes", "--reason x", "--cause invalid_evnt", "--source trivor"):
        assert inbox(place, "readmit", *wrong.split()).status == 2, wrong
