"""Edited bodies: one run delivers it, the event keeps its own, and both are deleted together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import as_json
from inbox.errors import UnusableCommand
from relay.delivery.outcome import Delivery
from relay.operations.asks import Selection
from relay.store.operator import commands, edits, execution
from relay.store.operator.edits import FieldDifference, list_differences
from relay.store.operator.plan import Bound, plan
from tests.helpers.databases import ON_BOTH, ON_SQLITE
from tests.helpers.planted import ID, PERSON, TRACES, make_personal_event, traces_in
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, Steps, carry_out, erase, prune, work_of
from tests.helpers.storing import an_event
from tests.helpers.tables import count
from tests.helpers.webhooks import body
from tests.store.conftest import differences, mend

OWN, FIXED = b'{"n": 1}', b'{"n": 2, "unit": "EUR"}'


def replay(steps: Steps, edited: bytes | None = None, seq: int = 1, route: str | None = None) -> int:
    number = None if edited is None else edits.add(steps.database, seq, edited)
    chosen = Selection(seq=seq, route=route, edited_body=number)
    return carry_out(steps.database, CONFIG, "replay", chosen, why="wrong unit")


def last_fact(steps: Steps) -> dict[str, Any]:
    (row,) = steps.rows("SELECT detail FROM delivery_log ORDER BY id DESC LIMIT 1")
    detail: dict[str, Any] = row["detail"]
    return detail


@ON_BOTH
def test_an_edited_body_is_delivered_by_its_run_alone(steps: Steps) -> None:
    steps.arrive(an_event(1))
    first = steps.attempt(HOPELESS)
    assert replay(steps, FIXED) == 1
    assert last_fact(steps) == {
        "who": "kim", "why": "wrong unit", "command": 1, "edited_body": 1, "changed": ["/n", "/unit"]
    }  # fmt: skip
    edited = steps.attempt(UNWELL)
    steps.do("DELETE FROM open_delivery")
    assert len(mend(steps.database)) == 1
    steps.advance(60)
    again = steps.attempt(DONE)
    assert (edited.body, again.body, again.attempt) == (FIXED, FIXED, 2), "a retry and a rebuilt row keep it"
    assert again.webhook_id == edited.webhook_id != first.webhook_id, "a receiver that drops repeated ids takes it"
    warned = plan(steps.database, CONFIG, "replay", Selection(seq=1), Bound(listed=0)).warnings
    assert any("sends the original" in each for each in warned)
    assert replay(steps) == 1
    own = steps.attempt(DONE)
    assert (own.body, own.webhook_id, own.run) == (OWN, first.webhook_id, 2)
    assert replay(steps, FIXED) == 1
    assert steps.attempt(DONE).webhook_id not in {first.webhook_id, edited.webhook_id}
    assert differences(steps.database) == []


@ON_BOTH
def test_an_edited_body_goes_with_its_event_by_retention_and_by_erasure(steps: Steps) -> None:
    steps.arrive(make_personal_event(1, "strict"), an_event(2, "u2"))
    steps.record_all(steps.claim_due(), HOPELESS)
    edited = msgspec.json.encode({"id": ID, "email": "maria.meier@example.com", TRACES[2]: 1})
    assert replay(steps, edited) == 1
    with pytest.raises(DBAPIError):
        steps.do("DELETE FROM edited_body")
    steps.attempt(HOPELESS)
    with pytest.raises(DBAPIError):
        steps.do("UPDATE edited_body SET seq = 2")
    assert traces_in(steps.database.engine)
    carry_out(steps.database, CONFIG, "cancel", Selection(seq=1, state="dead"), why="a request")
    assert erase(steps.database.engine, CONFIG, PERSON)[1].state == "done"
    assert (traces_in(steps.database.engine), count(steps.database.engine, "edited_body")) == ([], 0)
    assert steps.rows("SELECT detail FROM delivery_log WHERE kind = 'replayed'")[0]["detail"]["edited_body"] == 1

    assert replay(steps, FIXED, seq=2) == 1
    prune(steps.database.engine, "payloads")
    assert count(steps.database.engine, "edited_body") == 1, "it is still to be delivered"
    assert steps.attempt(HOPELESS).body == FIXED
    carry_out(steps.database, CONFIG, "cancel", Selection(seq=2, state="dead"), why="a request")
    steps.do("DELETE FROM pruning")
    prune(steps.database.engine, "payloads")
    assert count(steps.database.engine, "edited_body") == 0
    with pytest.raises(DBAPIError, match="no payload"):
        replay(steps, FIXED, seq=2)


@ON_SQLITE
def test_the_original_is_never_sent_in_place_of_a_lost_edit(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(HOPELESS)
    replay(steps, FIXED)
    steps.do("DROP TRIGGER edited_body_refuses_delete", "DELETE FROM edited_body")
    assert steps.claim_due() == []
    assert (steps.states(), last_fact(steps)["cause"]) == ([(1, "strict", "dead")], "payload_gone")


def readable(steps: Steps) -> Delivery:
    """Store an event of two routes as the source sends it, both dead."""
    made = msgspec.structs.replace(an_event(1), body=body("u1", field="a"))
    steps.arrive(made, an_event(2, "u2", routes=["strict", "latest"]))
    steps.record_all(steps.claim_due(), HOPELESS)
    return edits.read_editable(steps.database, 1)


@pytest.mark.parametrize(
    ("edited", "says"),
    [
        (body("u1", field="a") + b" ", "has no change"),
        (b'{\n"id": 1,,}', "line 2"),
        (body("u2"), "another entity"),
        (b'{"id": 1}', "no longer an event"),
        (b'"' + b"x" * 300_000 + b'"', "accepts 262,144"),
    ],
)
def test_an_edited_body_that_is_no_other_version_of_its_event_is_refused(
    steps: Steps, edited: bytes, says: str
) -> None:
    event = readable(steps)
    with pytest.raises(UnusableCommand, match=says):
        edits.examine(CONFIG, event, edited)


def test_a_replay_names_an_edited_body_and_one_route(steps: Steps) -> None:
    readable(steps)
    edits.add(steps.database, 2, FIXED)
    answers = {}
    for selection in (
        {"seq": 2, "edited_body": 1},
        {"seq": 1, "edited_body": 1},
        {"seq": 2, "edited_body": 9, "route": "latest"},
        {"seq": 2, "edited_body": 1, "route": "latest"},
    ):
        number = commands.ask(steps.database, "replay", selection, who="kim", why="wrong unit")
        while not (done := commands.read_command(steps.database, number) or pytest.fail("it is there")).has_ended:
            execution.work_on(work_of(steps.database), number)
        answers[number] = (done.state, done.answer)
    assert [state for state, _ in answers.values()] == ["refused", "refused", "refused", "done"]
    steps.do(
        "INSERT INTO relay_command (kind, selection, reason, dry_run)"
        """ VALUES ('replay', '{"seq": 2, "edited_body": 1, "route": "strict"}', 'a look', true)"""
    )
    execution.work_on(work_of(steps.database), 5)
    sample = as_json((commands.read_command(steps.database, 5) or pytest.fail("it is there")).sample)
    assert (sample["count"], sample["differences"]) == (1, []), "viewers read it, and erasures keep it"
    assert steps.attempt(DONE, "latest").body == FIXED


def test_fields_that_differ_are_named_by_pointers() -> None:
    before = {"a/b": [1, {"c": None}], "d": "x" * 999, "e": 1, "same": [True]}
    after = {"a/b": [1.0, {}, 2], "d": "y", "e": True, "same": [True]}
    found = {each.field: (each.before, each.after) for each in list_differences(before, after)}
    long = found.pop("/d")[0] or ""
    assert found == {
        "/a~1b/0": ("1", "1.0"), "/a~1b/1/c": ("null", None), "/a~1b/2": (None, "2"), "/e": ("1", "true")
    }  # fmt: skip
    assert (len(long), long[-1]) == (200, "…")
    assert list(list_differences([1], {"0": 1})) == [FieldDifference("", "[1]", '{"0":1}')]
