"""Every promise is kept in every order of the statements of two or three relays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement
from math import factorial

import pytest

from tests.proofs.interleavings import scenes
from tests.proofs.interleavings.scenes import SCENES, Prepare, Scene
from tests.proofs.interleavings.stage import ALL, Order, Stage, kept, told

SHORT_ON_POSTGRES = (scenes.arrivals, scenes.an_earlier_one, scenes.a_head_that_blocks)
THREE = [scene for scene in SCENES if scene.triples]


def each(some: list[Scene], on_postgres: list[Scene], short: tuple[Prepare, ...] = ()) -> pytest.MarkDecorator:
    """Parametrize scenes: all of `some` on SQLite, which has few orders; on Postgres, those not `short` are long tests."""
    at_length = (
        pytest.param("postgres", scene, marks=() if scene.prepare in short else pytest.mark.long)
        for scene in on_postgres
    )
    return pytest.mark.parametrize(
        ("database_url", "scene"),
        [*(("sqlite", scene) for scene in some), *at_length],
        indirect=["database_url"],
        ids=lambda value: value.prepare.__name__ if isinstance(value, Scene) else value,
    )


def keeping(seen: set[str]) -> Callable[[Order], None]:
    """Return a check of every promise that also collects the results."""

    def check(order: Order) -> None:
        kept(order)
        seen.update(told(order))

    return check


@each(SCENES, SCENES, SHORT_ON_POSTGRES)
def test_in_every_order_of_two_every_promise_is_kept(stage: Stage, scene: Scene) -> None:
    scene.prepare(stage)
    stage.keep()
    seen: set[str] = set()
    for one, other in combinations_with_replacement(scene.operations, 2):
        names = [one, other if other != one else f"{one} again"]
        assert stage.all_orders(names, keeping(seen)) >= 2, names
    assert scene.sometimes <= seen


@each(THREE, [scene for scene in THREE if ALL or scene.prepare is scenes.a_head_that_blocks])
def test_in_every_order_of_three_every_promise_is_kept(stage: Stage, scene: Scene) -> None:
    """On Postgres only in the scene with the fewest orders, unless ORDERS=all."""
    scene.prepare(stage)
    stage.keep()
    for names in scene.triples:
        assert stage.all_orders(names, kept, coarse=True) >= factorial(3), names


def test_wherever_a_receiver_takes_in_during_a_rebuild_every_promise_is_kept(stage: Stage) -> None:
    scenes.a_row_of_no_event(stage)
    stage.keep()
    seen: set[str] = set()
    alone: set[int] = set()
    stage.all_orders(["ann rebuilds"], lambda order: alone.add(len(order.steps)))
    orders = stage.all_orders(["ann rebuilds", "a receiver takes in"], keeping(seen), swaps=False)
    assert orders >= (min(alone) + 1 if stage.engine.dialect.name == "postgresql" else 2)
    assert seen == {"ann rebuilds: no_event", "a receiver takes in: stored, stored"}
