"""Scenes: states in which relays meet, their concurrent operations, and the required results."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tests.helpers.storing import an_event
from tests.proofs.interleavings.stage import Stage

Prepare = Callable[[Stage], None]


class Scene(msgspec.Struct, frozen=True):
    """A state and the operations in it."""

    prepare: Prepare
    operations: tuple[str, ...]
    triples: tuple[tuple[str, str, str], ...]
    """Relevant combinations of three operations."""
    sometimes: frozenset[str]
    """Results that must occur in some order of two operations, or the scene shows nothing."""


SCENES: list[Scene] = []
_SUCCESS, _FAILURE = "r1 records its success", "r1 records its failure"


def _scene(
    operations: tuple[str, ...], *, sometimes: set[str], triples: tuple[tuple[str, str, str], ...] = ()
) -> Callable[[Prepare], Prepare]:
    def keep(prepare: Prepare) -> Prepare:
        SCENES.append(Scene(prepare, operations, triples, frozenset(sometimes)))
        return prepare

    return keep


@_scene(
    ("r1 sequences", "r1 sequences one", "r1 claims", "r2 claims two"),
    triples=(("r1 sequences", "r1 sequences one", "r2 claims two"),),
    sometimes={"r1 sequences: 2", "r1 sequences: 3", "r1 claims: 1", "r2 claims two: 2, 3"},
)
def arrivals(stage: Stage) -> None:
    """Prepare two lanes of unsequenced events."""
    stage.routes = ("strict",)
    stage.arrive(an_event(2), an_event(1), an_event(3, "u2"))


@_scene(
    (_SUCCESS, _FAILURE, "r1 renews", "r1 gives back", "r2 sequences", "r2 claims", "r2 reaps"),
    triples=(
        (_SUCCESS, "r2 sequences", "r2 claims"),
        (_SUCCESS, "r1 renews", "r2 reaps"),
        ("r1 gives back", "r2 sequences", "r2 claims"),
    ),
    sometimes={"r1 renews: 1", "r1 renews: nothing", "r2 claims: 1", "r2 claims: 2", "r1 gives back: 0"},
)
def a_head_in_flight(stage: Stage) -> None:
    """Prepare one in flight, one waiting, and an arrival between them."""
    _claim_first(stage, "strict", 1, 3)
    stage.arrive(an_event(2))


@_scene(
    ("r1 gives back", "r2 sequences", "r2 claims"),
    triples=(("r1 gives back", "r2 sequences", "r2 claims"),),
    sometimes={"r1 gives back: 1", "r2 claims: 2", "r2 claims: nothing"},
)
def earlier_ones_behind_a_head_in_flight(stage: Stage) -> None:
    """Prepare a head in flight that is not begun, an earlier one behind it, and the earliest as an arrival."""
    _claim_first(stage, "strict", 3)
    _place(stage, 2)
    stage.arrive(an_event(1))


@_scene(
    ("r1 sequences", "r1 claims", "r2 claims two"),
    triples=(("r1 sequences", "r1 claims", "r2 claims two"),),
    sometimes={"r1 claims: 1", "r1 claims: 2", "r1 claims: nothing"},
)
def an_earlier_one(stage: Stage) -> None:
    """Prepare a due head and an earlier arrival."""
    stage.routes = ("strict",)
    _place(stage, 2)
    stage.arrive(an_event(1))


@_scene(
    (_SUCCESS, _FAILURE, "r1 gives back", "r2 sequences", "r2 claims"),
    triples=((_SUCCESS, "r2 sequences", "r2 claims"), ("r1 gives back", "r2 sequences", "r2 claims")),
    sometimes={"r2 claims: 2", f"{_FAILURE}: attempt_failed", "r1 gives back: 1"},
)
def a_newer_one(stage: Stage) -> None:
    """Prepare in `latest` one in flight, one waiting, and a newer arrival that supersedes it."""
    _claim_first(stage, "latest", 1)
    _place(stage, 2)
    stage.arrive(an_event(3, routes=["latest"]))


@_scene(
    ("r1 sequences", "r2 sequences one", "r1 claims"),
    triples=(("r1 sequences", "r2 sequences one", "r1 claims"),),
    sometimes={"r1 claims: 1", "r1 claims: 2", "r1 claims: 3", "r1 claims: nothing"},
)
def a_newer_one_takes_over(stage: Stage) -> None:
    """Prepare in `latest` a due retry and newer arrivals that take it over."""
    _claim_first(stage, "latest", 1)
    stage.do("r1 records its failure")
    stage.world.clock.advance(5)
    stage.arrive(an_event(2, routes=["latest"]), an_event(3, routes=["latest"]))


@_scene(
    (_SUCCESS, "r1 renews", "r1 gives back", "r2 reaps", "r2 claims", "r3 sequences"),
    triples=(
        (_SUCCESS, "r2 reaps", "r2 claims"),
        (_SUCCESS, "r2 reaps", "r3 sequences"),
        ("r1 renews", "r2 reaps", "r3 sequences"),
    ),
    sometimes={f"{_SUCCESS}: delivered", f"{_SUCCESS}: refused", "r1 renews: 1", "r1 renews: nothing"}
    | {"r2 reaps: abandoned", "r2 reaps: nothing", "r2 claims: 1", "r2 claims: 2"},
)
def a_lease_that_ran_out(stage: Stage) -> None:
    """Prepare an expired lease whose relay resumes while others take over."""
    a_head_in_flight(stage)
    stage.lapse()


@_scene(
    (_SUCCESS, "r1 renews", "r1 gives back", "r2 records its failure", "r2 renews", "r3 sequences"),
    triples=((_SUCCESS, "r2 records its failure", "r2 renews"), ("r1 gives back", "r2 renews", "r3 sequences")),
    sometimes={f"{_SUCCESS}: refused", "r1 renews: nothing", "r1 gives back: 0"}
    | {"r2 records its failure: attempt_failed", "r2 renews: 1"},
)
def a_lease_taken_over(stage: Stage) -> None:
    """Prepare an expired lease whose delivery another relay has claimed."""
    a_lease_that_ran_out(stage)
    stage.do("r2 reaps", "r2 claims")


@_scene(
    ("r1 records its death", "r1 renews", "r2 sequences", "r2 claims"),
    triples=(("r1 records its death", "r2 sequences", "r2 claims"),),
    sometimes={"r1 records its death: dead", "r2 claims: nothing"},
)
def a_head_that_blocks(stage: Stage) -> None:
    """Prepare a lane that its head will block."""
    _claim_first(stage, "blocking", 1, 2)
    stage.arrive(an_event(3, routes=["blocking"]))


@_scene(
    ("r1 records", "r1 renews", "r1 renews the first", "r1 gives back", "r2 sequences", "r2 claims two"),
    triples=(("r1 renews the first", "r1 gives back", "r2 sequences"), ("r1 records", "r2 sequences", "r2 claims two")),
    sometimes={"r1 records: delivered, delivered", "r1 records: refused, refused", "r2 claims two: 3, 4"},
)
def two_lanes_at_once(stage: Stage) -> None:
    """Prepare deliveries of two lanes that one relay handles together."""
    stage.routes = ("strict",)
    stage.arrive(an_event(1, "u1"), an_event(2, "u2"), an_event(3, "u1"), an_event(4, "u2"))
    stage.do("r1 sequences", "r1 claims two")
    stage.arrive(an_event(5, "u2"), an_event(6, "u1"))


@_scene(
    ("r1 records", "r1 gives back", "r2 sequences", "r2 claims two"),
    triples=(("r1 records", "r1 gives back", "r2 sequences"),),
    sometimes=set(),
)
def two_routes_at_once(stage: Stage) -> None:
    """Prepare an event in flight on two routes and arrivals on both, so that both locks are needed."""
    stage.routes = ("strict", "latest")
    stage.arrive(an_event(1, routes=stage.routes), an_event(2, routes=stage.routes))
    stage.do("r1 sequences", "r1 claims two")
    stage.arrive(an_event(3, routes=stage.routes))


@_scene(
    ("r3 records its success", "r3 renews", "r4 reaps", "r4 claims", "r5 claims suspects"),
    sometimes={"r4 reaps: dead", "r3 records its success: delivered", "r3 renews: 1", "r4 claims: 2"},
)
def a_lease_that_ran_out_once_too_often(stage: Stage) -> None:
    """Prepare a delivery whose relay died each time, which becomes dead."""
    _claim_first(stage, "strict", 1, 2)
    stage.lapse()
    stage.do("r2 reaps", "r2 claims")
    stage.lapse()
    stage.do("r3 reaps", "r3 claims suspects")
    stage.lapse()


@_scene(
    ("r3 claims suspects", "r4 claims", "r5 sequences"),
    sometimes={"r3 claims suspects: 1", "r3 claims suspects: 2", "r3 claims suspects again: 2", "r4 claims: nothing"},
)
def suspects(stage: Stage) -> None:
    """Prepare two suspects and in `latest` a newer event that takes one over."""
    stage.routes = ("latest",)
    stage.arrive(an_event(1, "u1", routes=["latest"]), an_event(2, "u2", routes=["latest"]))
    stage.do("r1 sequences", "r1 claims two")
    stage.lapse()
    stage.do("r2 reaps", "r2 claims two")
    stage.lapse()
    stage.do("r3 reaps")
    stage.arrive(an_event(3, "u1", routes=["latest"]))


def a_row_of_no_event(stage: Stage) -> None:
    """Prepare a row without an event, for a rebuild to remove in its last chunk."""
    stage.routes = ("strict",)
    _place(stage, 1)
    stage.put(
        "INSERT INTO open_delivery (seq, route, lane, occurred_at, state)"
        " VALUES (1000000, 'strict', 'USER|u9', '2026-01-01 00:00:00.000000Z', 'dead')"
    )
    stage.later = (an_event(2), an_event(3, "u2"))


def _place(stage: Stage, *numbers: int) -> None:
    """Arrive and sequence events of one lane."""
    stage.arrive(*(an_event(number, routes=stage.routes) for number in numbers))
    stage.do("r1 sequences")


def _claim_first(stage: Stage, route: str, *numbers: int) -> None:
    """Place events of one lane and claim the first for r1."""
    stage.routes = (route,)
    _place(stage, *numbers)
    stage.do("r1 claims")
