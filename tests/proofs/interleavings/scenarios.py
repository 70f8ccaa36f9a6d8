"""Scenes: operations that meet in a state, and the results that they must have."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tests.proofs.interleavings import scenes
from tests.proofs.interleavings.scenes import Operations
from tests.proofs.interleavings.stage import Stage


class Scene(msgspec.Struct, frozen=True):
    """A state, and what has to happen in it."""

    prepare: Callable[[Stage], Operations]
    triples: tuple[tuple[str, str, str], ...]
    """Three operations at once, where their meeting means something."""
    sometimes: frozenset[str]
    """Results that operations get in some order of two; without them the scene would show nothing."""


SCENES = (
    Scene(
        scenes.arrivals,
        (("r1 sequences", "r1 sequences one", "r2 claims"),),
        frozenset({"r1 sequences: 2", "r1 sequences: 3", "r1 claims: 1", "r2 claims: 2, 3"}),
    ),
    Scene(
        scenes.a_head_in_flight,
        (
            ("r1 records its success", "r2 sequences", "r2 claims"),
            ("r1 records its success", "r1 renews", "r2 reaps"),
            ("r1 gives back", "r2 sequences", "r2 claims"),
        ),
        frozenset({"r1 renews: 1", "r1 renews: nothing", "r2 claims: 1", "r2 claims: 2", "r1 gives back: 0"}),
    ),
    Scene(
        scenes.earlier_ones_behind_a_head_in_flight,
        (("r1 gives back", "r2 sequences", "r2 claims"),),
        frozenset({"r1 gives back: 1", "r2 claims: 2", "r2 claims: nothing"}),
    ),
    Scene(
        scenes.an_earlier_one,
        (("r1 sequences", "r1 claims", "r2 claims"),),
        frozenset({"r1 claims: 1", "r1 claims: 2", "r1 claims: nothing"}),
    ),
    Scene(
        scenes.a_newer_one,
        (("r1 records its success", "r2 sequences", "r2 claims"), ("r1 gives back", "r2 sequences", "r2 claims")),
        frozenset({"r2 claims: 2", "r1 records its failure: attempt_failed", "r1 gives back: 1"}),
    ),
    Scene(
        scenes.a_newer_one_takes_over,
        (("r1 sequences", "r2 sequences one", "r1 claims"),),
        frozenset({"r1 claims: 1", "r1 claims: 2", "r1 claims: 3", "r1 claims: nothing"}),
    ),
    Scene(
        scenes.a_lease_that_ran_out,
        (
            ("r1 records its success", "r2 reaps", "r2 claims"),
            ("r1 records its success", "r2 reaps", "r3 sequences"),
            ("r1 renews", "r2 reaps", "r3 sequences"),
        ),
        frozenset(
            {
                "r1 records its success: delivered",
                "r1 records its success: refused",
                "r1 renews: 1",
                "r1 renews: nothing",
                "r2 reaps: abandoned",
                "r2 reaps: nothing",
                "r2 claims: 1",
                "r2 claims: 2",
            }
        ),
    ),
    Scene(
        scenes.a_lease_taken_over,
        (
            ("r1 records its success", "r2 records its failure", "r2 renews"),
            ("r1 gives back", "r2 renews", "r3 sequences"),
        ),
        frozenset(
            {
                "r1 records its success: refused",
                "r1 renews: nothing",
                "r1 gives back: 0",
                "r2 records its failure: attempt_failed",
                "r2 renews: 1",
            }
        ),
    ),
    Scene(
        scenes.a_head_that_blocks,
        (("r1 records its death", "r2 sequences", "r2 claims"),),
        frozenset({"r1 records its death: dead", "r2 claims: nothing"}),
    ),
    Scene(
        scenes.two_lanes_at_once,
        (("r1 renews the first", "r1 gives back", "r2 sequences"), ("r1 records", "r2 sequences", "r2 claims")),
        frozenset({"r1 records: delivered, delivered", "r1 records: refused, refused", "r2 claims: 3, 4"}),
    ),
    Scene(
        scenes.a_lease_that_ran_out_once_too_often,
        (),
        frozenset({"r4 reaps: dead", "r3 records its success: delivered", "r3 renews: 1", "r4 claims: 2"}),
    ),
    Scene(
        scenes.suspects,
        (),
        frozenset(
            {"r3 claims suspects: 1", "r3 claims suspects: 2", "r3 claims suspects again: 2", "r4 claims: nothing"}
        ),
    ),
)
