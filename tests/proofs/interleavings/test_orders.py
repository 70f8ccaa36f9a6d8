"""Every order of the statements of two relays, and of three: whatever it is, every promise is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import combinations_with_replacement
from math import factorial

import pytest

from tests.proofs.interleavings import scenes
from tests.proofs.interleavings.scenes import SCENES, Scene
from tests.proofs.interleavings.stage import ALL, Order, Stage, kept, told

SHORT_ON_POSTGRES = (scenes.arrivals, scenes.an_earlier_one, scenes.a_head_that_blocks)
THREE_ON_POSTGRES = (scenes.a_head_that_blocks,)
"""The scene with the fewest orders of three; ORDERS=all has those of all scenes."""


def each(
    scenes: Collection[Scene],
    *,
    short: Collection[Callable[[Stage], None]] = (),
    leaves_out: Collection[Callable[[Stage], None]] = (),
) -> pytest.MarkDecorator:
    """On SQLite, which has few orders, each of these; on Postgres those that are `short`, and the others at length."""
    return pytest.mark.parametrize(
        ("database_url", "scene"),
        [
            pytest.param(
                kind,
                scene,
                marks=pytest.mark.long if kind == "postgres" and scene.prepare not in short else (),
                id=f"{kind}-{scene.prepare.__name__}",
            )
            for kind in ("sqlite", "postgres")
            for scene in scenes
            if kind == "sqlite" or scene.prepare not in leaves_out
        ],
        indirect=["database_url"],
    )


@each(SCENES, short=SHORT_ON_POSTGRES)
def test_in_every_order_of_two_every_promise_is_kept(stage: Stage, scene: Scene) -> None:
    scene.prepare(stage)
    stage.keep()
    seen: set[str] = set()

    def check(order: Order) -> None:
        kept(order)
        seen.update(told(order))

    steps = {name: steps_alone(stage, name) for name in scene.operations}
    for one, other in pairs(scene):
        orders = stage.all_orders([one, other], check)
        assert orders >= fewest(stage, steps[one], steps[other.removesuffix(" again")]), (one, other)

    assert scene.sometimes <= seen


def pairs(scene: Scene) -> list[tuple[str, str]]:
    return [
        (one, other if other != one else f"{one} again")
        for one, other in combinations_with_replacement(scene.operations, 2)
    ]


@each(
    [scene for scene in SCENES if scene.triples],
    leaves_out=() if ALL else {s.prepare for s in SCENES} - {*THREE_ON_POSTGRES},
)
def test_in_every_order_of_three_every_promise_is_kept(stage: Stage, scene: Scene) -> None:
    scene.prepare(stage)
    stage.keep()
    for names in scene.triples:
        orders = stage.all_orders(names, kept, coarse=True)
        assert orders >= factorial(3), names


def test_wherever_a_receiver_takes_in_during_a_rebuild_every_promise_is_kept(stage: Stage) -> None:
    scenes.a_row_of_no_event(stage)
    stage.keep()
    seen: set[str] = set()

    def check(order: Order) -> None:
        kept(order)
        seen.update(told(order))

    alone = steps_alone(stage, "ann rebuilds")
    orders = stage.all_orders(["ann rebuilds", "a receiver takes in"], check, swaps=False)
    assert orders >= (alone + 1 if stage.engine.dialect.name == "postgresql" else 2)
    assert seen == {"ann rebuilds: no_event", "a receiver takes in: stored, stored"}


def steps_alone(stage: Stage, name: str) -> int:
    found: list[int] = []

    def check(order: Order) -> None:
        kept(order)
        found.append(len(order.steps))

    assert stage.all_orders([name], check) == 1
    return found[0]


def fewest(stage: Stage, one: int, other: int) -> int:
    """Each may begin after any step of the other, or else before and after it. On SQLite a transaction is one step."""
    return one + other if ALL and stage.engine.dialect.name == "postgresql" else 2
