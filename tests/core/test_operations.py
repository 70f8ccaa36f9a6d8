"""The table of operations: one parser for every row, and messages that name the valid input."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from inbox.db.erasure import ErasureSubject
from inbox.errors import UnusableCommand
from inbox.events.states import COMMAND_KINDS, COMMAND_STATES
from relay.operations.asks import Selection
from relay.operations.table import OF_DELIVERIES, OPERATIONS, parse
from relay.store.operator import commands, tasks
from relay.store.operator.selection import Act


def test_the_schema_and_the_executors_know_the_kinds_of_the_table() -> None:
    assert tuple(OPERATIONS) == COMMAND_KINDS
    assert set(OF_DELIVERIES) == set(get_args(Act))
    assert OPERATIONS.keys() == tasks.TASKS.keys()
    assert set(COMMAND_STATES) == set(get_args(commands.CommandState))


WRONG: list[tuple[str, object, str]] = [
    ("replay", {"rout": "strict"}, "a replay has no key 'rout' in its selection; did you mean 'route'?"),
    ("unblock", {"backfill": True}, "an unblock has no key 'backfill'"),
    ("cancel", {"route": "strict", "force": True}, "a cancel has no key 'force'"),
    ("retry", {"state": "retrying"}, "a retry has no key 'state'"),
    ("pause", {"route": "strict", "cause": "mapping"}, "a pause has no key 'cause'"),
    ("replay", {"since": "2026-01-02T00:00:00Z", "until": "2026-01-02T01:00:00+02:00"}, "swap the two"),
    ("readmit", {"since": "2026-01-02T00:00:00Z", "until": "2026-01-02T00:00:00Z"}, "swap the two"),
    *((kind, {}, f"{kind} without a condition would change everything") for kind in (*OF_DELIVERIES, "readmit")),
    *(("replay", {flag: True}, "without a condition") for flag in ("force", "backfill")),
    ("replay", {"until_fact": 812}, "without a condition"),
    ("replay", {"everything": False}, "without a condition"),
    ("sweep", {"entity_type": "USER"}, "source is missing"),
    ("erase", {"source": "trivore", "entity_id": "u1"}, "entity_type is missing"),
    ("stop", {}, "command is missing"),
    ("continue", {"command": "7"}, "command: expected a whole number, got text"),
    ("replay", {"seqs": "7"}, "seqs: expected a list, got text"),
    ("replay", [], "selection is a JSON object"),
    ("replay", "a text", "selection is a JSON object"),
    ("replay", None, "selection is a JSON object"),
    *(("replay", {"route": wrong}, "route") for wrong in (7, "", None, ["strict"])),
    *(("replay", {"seq": wrong}, "seq") for wrong in ("seven", "7", 7.5, 10**20, 2**63, -1, None)),
    *(
        ("replay", {"seqs": wrong}, "seqs")
        for wrong in (7, [], ["7"], [7.5], [-1], [2**63], [None], [[7]], {"7": 7}, None, [1] * 201)
    ),
    *(
        ("cancel", {"deliveries": wrong}, "deliveries")
        for wrong in ("7/strict", [7], [], ["7"], ["strict/7"], ["7/"], ["-1/strict"], ["7/a,8/b"], ["7/strict"] * 201)
    ),
    *(("replay", {"status": wrong}, "status") for wrong in (7, 600, "503")),
    *(("replay", {"everything": wrong}, "everything") for wrong in (1, "true")),
    *(("prune", {"kinds": wrong}, "kinds") for wrong in ("payloads", ["payloads", 7])),
    *(
        ("replay", {"since": wrong}, "since")
        for wrong in ("2026-01-01T00:00:00", "yesterday", "2026-01-01", 7, "2026-02-30T10:00:00Z")
    ),
]


@pytest.mark.parametrize(("kind", "selection", "says"), WRONG)
def test_a_selection_that_makes_no_sense_is_refused_with_a_sentence(kind: str, selection: object, says: str) -> None:
    with pytest.raises(UnusableCommand) as refused:
        parse(kind, selection)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "selection"),
    [
        ("replay", {"seq": 2**63 - 1, "route": "strict", "force": True}),
        ("replay", {"seqs": [2**63 - 1, 0, 7], "state": "delivered"}),
        ("replay", {"since": "2026-01-31T10:00:00Z", "until": "2026-01-31t10:00:00.123456789-05:30"}),
        ("cancel", {"deliveries": ["12/strict", "7/audit"], "state": "dead"}),
        ("retry", {"status": 503, "error": "no route \u2028 \" ' % : to host"}),
        ("resume", {"source": "trivore", "entity_type": "USER", "entity_id": "u1"}),
        ("sweep", {"source": "trivore", "entity_type": "USER"}),
        ("erase", {"source": "trivore", "entity_type": "USER", "entity_id": "u1"}),
        ("prune", {"kinds": ["payloads", "attempts"]}),
    ],
)
def test_a_selection_that_makes_sense_is_read(kind: str, selection: dict[str, object]) -> None:
    assert isinstance(parse(kind, selection), OPERATIONS[kind].asks)


@pytest.mark.parametrize(
    ("conditions", "is_dead_only"),
    [
        ({"route": "strict"}, True),
        ({"seq": 1}, False),
        ({"seq": 1, "state": "delivered"}, False),
        ({"seq": 1, "state": "dead"}, True),
        ({"seq": 1, "cause": "mapping"}, True),
        ({"seq": 1, "status": 503}, True),
        ({"seq": 1, "error": "no value"}, True),
        ({"seq": 1, "error_sha256": "0" * 64}, True),
    ],
)
def test_a_replay_of_named_events_takes_only_dead_ones_by_a_state_or_failure(
    conditions: dict[str, Any], is_dead_only: bool
) -> None:
    assert Selection(**conditions).dead_only is is_dead_only


# --- The entity to erase: a reason that names it, and its pseudonym


def subject(entity_id: str) -> ErasureSubject:
    return ErasureSubject("trivore", "USER", entity_id)


@pytest.mark.parametrize(
    "text",
    [
        "IDNUMBER1234",
        '{"id": "IDNUMBER1234"}',
        "GET /user/IDNUMBER1234?x=1 answered 404",
        "user_IDNUMBER1234",
        "USER|IDNUMBER1234",
    ],
)
def test_an_id_is_found_wherever_it_stands_alone(text: str) -> None:
    assert subject("IDNUMBER1234").is_named_in(text)


@pytest.mark.parametrize("text", ["", "IDNUMBER12345", "AIDNUMBER1234", "idnumber1234", "IDNUMBER 1234"])
def test_another_id_is_left_alone(text: str) -> None:
    assert not subject("IDNUMBER1234").is_named_in(text)


def test_a_pseudonym_is_the_same_for_an_entity_and_another_at_another_source() -> None:
    assert subject("u1").pseudonym == subject("u1").pseudonym
    entities = (("trivore", "u1"), ("trivore", "u2"), ("other", "u1"), ("a|USER", "b"), ("a", "USER|b"))
    assert len({ErasureSubject(source, "USER", entity_id).pseudonym for source, entity_id in entities}) == len(entities)
    assert len(subject("u1").pseudonym) == len("erased:") + 64
