"""Selections that name several events, or one state: exactly those are planned and changed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from relay.operations.asks import Selection
from relay.store.operator import selection
from relay.store.operator.plan import Bound, preview
from relay.store.operator.selection import Act, Choice
from tests.helpers.commanding import carry_out
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, Steps
from tests.helpers.storing import an_event

ROUTES = ["strict", "blocking"]


@pytest.fixture
def some(steps: Steps) -> Steps:
    """Events 1 to 4 are dead on `strict` and blocking on `blocking`; 5 waits for a retry, 6 is delivered, 7 not begun."""
    steps.arrive(*(an_event(n, f"u{n}", routes=ROUTES) for n in range(1, 5)))
    for route in ROUTES:
        steps.record_all(steps.claim_due(10, route), HOPELESS)
    steps.arrive(an_event(5, "u5"))
    steps.record_all(steps.claim_due(10), UNWELL)
    steps.arrive(an_event(6, "u6"))
    steps.record_all(steps.claim_due(10), DONE)
    steps.arrive(an_event(7, "u7"))
    return steps


def planned(steps: Steps, act: Act, chosen: Selection) -> list[tuple[int, str]]:
    """The deliveries of both kinds of plan, which agree."""
    choice = Choice(act, chosen, CONFIG)
    assert choice.mistake is None
    whole = preview(steps.database, choice, Bound(listed=100))
    part = preview(steps.database, choice, Bound(100, listed=100))
    assert part == whole
    assert whole.count == len(whole.deliveries)
    keys = [(row["seq"], row["route"]) for row in whole.deliveries]
    assert keys == [(row["seq"], row["route"]) for row in part.deliveries]
    return keys


def both(*seqs: int) -> list[tuple[int, str]]:
    return [(seq, route) for seq in seqs for route in sorted(ROUTES)]


STRICT = [(seq, "strict") for seq in range(1, 8)]
CASES: list[tuple[Act, dict[str, Any], list[tuple[int, str]]]] = [
    ("replay", {"seqs": (4, 2, 99)}, both(2, 4)),
    ("replay", {"seqs": (2, 6)}, [*both(2), (6, "strict")]),
    ("replay", {"seqs": (2, 4, 6), "route": "strict"}, [STRICT[1], STRICT[3], STRICT[5]]),
    ("replay", {"seqs": (2, 6), "cause": "mapping"}, both(2)),
    ("replay", {"seqs": (2, 6), "state": "delivered"}, [(6, "strict")]),
    ("replay", {"seqs": (1, 6), "route": "strict", "backfill": True, "force": True}, [(1, "strict"), (6, "strict")]),
    ("replay", {"state": "dead"}, STRICT[:4]),
    ("replay", {"state": "blocked"}, [(seq, "blocking") for seq in range(1, 5)]),
    ("cancel", {"seqs": (1, 5, 6, 7)}, [*both(1), (5, "strict"), (7, "strict")]),
    ("cancel", {"state": "dead"}, STRICT[:4]),
    ("cancel", {"state": "dead", "seqs": (2, 5)}, [(2, "strict")]),
    ("cancel", {"state": "dead", "cause": "mapping", "error": "email"}, STRICT[:4]),
    ("cancel", {"state": "blocked", "destination": "audit"}, [(seq, "blocking") for seq in range(1, 5)]),
    ("cancel", {"state": "retrying"}, [(5, "strict")]),
    ("cancel", {"state": "ready"}, [(5, "strict"), (7, "strict")]),
    ("retry", {"seqs": (1, 5, 7)}, [(5, "strict")]),
    ("unblock", {"seqs": (3,)}, [(3, "blocking")]),
    ("replay", {"deliveries": ("6/strict", "2/blocking", "4/strict", "2/none")}, [(2, "blocking"), *STRICT[3:6:2]]),
    ("cancel", {"deliveries": ("1/blocking", "5/strict", "2/strict")}, [(1, "blocking"), *STRICT[1:5:3]]),
    ("replay", {"deliveries": ("2/strict", "2/blocking", "4/strict"), "seqs": (2, 3)}, both(2)),
    (
        "replay",
        {"deliveries": ("1/strict", "6/strict", "2/blocking"), "route": "strict", "backfill": True},
        STRICT[:6:5],
    ),
    ("retry", {"deliveries": ("1/strict", "5/strict")}, [(5, "strict")]),
]


@pytest.mark.usefixtures("some")
def test_exactly_those_are_planned(steps: Steps) -> None:
    for act, given, expected in CASES:
        assert planned(steps, act, Selection(**given)) == expected, (act, given)


@pytest.mark.parametrize("case", [0, 4, 9, 11, 13, 15, 17, 18])
def test_exactly_those_are_changed(some: Steps, case: int) -> None:
    act, given, expected = CASES[case]
    before = {(seq, route): state for seq, route, state in some.states()}
    assert carry_out(some.database, CONFIG, act, Selection(**given), why="chosen") == len(expected)
    kinds = {"replay": "replayed", "cancel": "cancelled", "retry": "rescheduled"}
    facts = some.rows(f"SELECT seq, route FROM delivery_log WHERE kind = '{kinds[act]}' ORDER BY seq, route")
    assert [tuple(row.values()) for row in facts] == expected
    after = {(seq, route): state for seq, route, state in some.states()}
    assert {key: state for key, state in before.items() if key not in expected} == {
        key: state for key, state in after.items() if key not in expected
    }


ENDED_AGAIN: list[dict[str, Any]] = [
    {"seqs": (2, 4, 6), "route": "strict"},
    {"deliveries": ("2/strict", "4/strict", "6/strict")},
    {"entity_type": "USER", "entity_id": "u6"},
    {"route": "strict", "seqs": (2, 4, 6), "backfill": True, "force": True},
    {"state": "dead"},
]


def newest_fact(steps: Steps) -> int:
    return int(steps.rows("SELECT max(id) AS id FROM delivery_log")[0]["id"])


@pytest.mark.parametrize("given", ENDED_AGAIN, ids=[" ".join(given) for given in ENDED_AGAIN])
def test_what_has_ended_again_since_the_plan_is_left_alone(some: Steps, given: dict[str, Any]) -> None:
    """Two plan the same before a relay takes up the first command, which ends again all that it takes up."""
    chosen = Selection(**given, until_fact=newest_fact(some))
    assert carry_out(some.database, CONFIG, "replay", chosen, why="the first") > 0
    for _ in range(2):
        some.record_all(some.claim_due(10), HOPELESS)
    assert carry_out(some.database, CONFIG, "replay", chosen, why="the second") == 0
    assert planned(some, "replay", chosen) == []


def test_what_ends_again_while_a_command_reads_its_batch_is_left_alone(
    some: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Selection(seqs=(6,), until_fact=newest_fact(some))
    real = selection.page

    def overtaken(*given: Any, **named: Any) -> Any:  # noqa: ANN401  # handed through
        page = real(*given, **named)
        monkeypatch.undo()
        assert carry_out(some.database, CONFIG, "replay", chosen, why="the first") == 1
        some.record_all(some.claim_due(10), DONE)
        return page

    monkeypatch.setattr(selection, "page", overtaken)
    assert carry_out(some.database, CONFIG, "replay", chosen, why="the second") == 0


def test_what_somebody_has_unblocked_since_the_plan_is_replayed(some: Steps) -> None:
    chosen = Selection(seqs=(2,), route="blocking", until_fact=newest_fact(some))
    assert carry_out(some.database, CONFIG, "unblock", Selection(seq=2), why="the others go on") == 1
    assert carry_out(some.database, CONFIG, "replay", chosen, why="fixed") == 1


def test_a_backfill_takes_no_event_of_another_source(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1", routes=[]), msgspec.structs.replace(an_event(2, "u1", routes=[]), source="other"))
    for named in ({"entity_type": "USER", "entity_id": "u1"}, {"seqs": (1, 2)}):
        chosen = Selection(route="strict", backfill=True, **named)
        assert planned(steps, "replay", chosen) == [(1, "strict")]
