"""The search leaves no order out, and says which one failed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from sqlalchemy import Engine, text

from tests.helpers.all_orders import all_orders
from tests.helpers.counting import counted, counting, looking
from tests.helpers.stepping import COMMIT, Stepped, Stepper


def test_all_orders_of_operations_that_do_not_block_each_other_are_their_interleavings(counters: Engine) -> None:
    ends: list[str] = []

    def check(stepper: Stepper) -> None:
        ends.append("".join(sorted(stepper.operations)))
        assert all(stepped.finished and stepped.error is None for stepped in stepper.operations.values())

    def orders_of(*times: int) -> int:
        looks = {name: looking(counters, number) for name, number in zip("abc", times, strict=False)}
        return all_orders(counters, lambda: looks, check)

    assert orders_of(3) == 1
    assert orders_of(3, 2) == 10  # 5 over 2
    assert orders_of(4, 4) == 70  # 8 over 4
    assert orders_of(2, 2, 2) == 90  # 6! / 2!³
    assert len(ends) == 1 + 10 + 70 + 90


def reading_and_writing(engine: Engine) -> Callable[[], None]:
    """Adds one the wrong way: what was read may be old when it is written."""

    def _add() -> None:
        with engine.begin() as connection:
            n = connection.execute(text("SELECT n FROM counter WHERE name = 'a'")).scalar_one()
            connection.execute(text("UPDATE counter SET n = :n WHERE name = 'a'"), {"n": n + 1})

    return _add


def reset(engine: Engine, *operations: Callable[[], object]) -> Callable[[], dict[str, Callable[[], object]]]:
    """Return a start with the counters at 0 and these operations, from "a" on."""

    def start() -> dict[str, Callable[[], object]]:
        with engine.begin() as connection:
            connection.execute(text("UPDATE counter SET n = 0"))
        return dict(zip("abc", operations, strict=False))

    return start


def test_the_search_finds_every_end_there_is(counters: Engine) -> None:
    is_postgres = counters.dialect.name == "postgresql"
    ends: list[int] = []
    start = reset(counters, *[reading_and_writing(counters)] * 2)
    orders = all_orders(counters, start, lambda _: ends.append(counted(counters)["a"]))

    # On SQLite one transaction comes after the other. On Postgres, with R, W and C for the steps: an addition is lost
    # whenever both have read before one has committed.
    assert set(ends) == ({1, 2} if is_postgres else {2})
    assert (orders, len(ends)) == ((14, 14) if is_postgres else (2, 2))


def test_of_orders_that_come_to_the_same_one_is_run(postgres_counters: Engine) -> None:
    ends: list[int] = []
    start = reset(postgres_counters, *[reading_and_writing(postgres_counters)] * 2)
    orders = all_orders(
        postgres_counters,
        start,
        lambda _: ends.append(counted(postgres_counters)["a"]),
        swaps=lambda one, other: COMMIT not in (one, other) and ("SELECT" in one or "SELECT" in other),
    )
    # One before the other; or both read, either is the first to write, and the other writes before or after its COMMIT.
    assert (orders, sorted(ends)) == (6, [1, 1, 1, 1, 2, 2])


def test_an_order_that_fails_is_told_step_by_step(postgres_counters: Engine) -> None:
    def check(_: Stepper) -> None:
        assert counted(postgres_counters)["a"] == 2

    with pytest.raises(AssertionError) as failed:
        all_orders(postgres_counters, reset(postgres_counters, *[reading_and_writing(postgres_counters)] * 2), check)

    (note,) = failed.value.__notes__
    assert "a: UPDATE counter SET n = " in note
    assert note.endswith("b: COMMIT")


def test_a_search_that_does_not_begin_alike_says_so(counters: Engine) -> None:
    calls = count()

    def start() -> dict[str, Callable[[], object]]:
        return dict.fromkeys(("a", "b" if next(calls) % 2 else "c"), looking(counters, 1))

    with pytest.raises(RuntimeError, match=r"at first .*could move, now"):
        all_orders(counters, start, lambda _: None)


def test_the_search_goes_on_when_the_database_chooses_who_gets_a_lock(counters: Engine) -> None:
    """Of two that wait for a row that a third has changed, Postgres lets now this one go first, now that one."""
    taken: set[tuple[str, ...]] = set()

    def check(stepper: Stepper) -> None:
        assert counted(counters)["a"] == 3
        taken.add(tuple(name for name, _ in stepper.taken))

    assert all_orders(counters, reset(counters, *[counting(counters, "a")] * 3), check) == len(taken)
    assert {order[0] for order in taken} == set("abc")
    if counters.dialect.name == "postgresql":
        assert {("a", "b", "c", "a", "b", "c"), ("a", "b", "c", "a", "c", "b")} & taken


def test_steps_that_are_pointless_at_a_point_are_made_later(postgres_counters: Engine) -> None:
    def other_has_begun(stepper: Stepper, stepped: Stepped) -> bool:
        begun = {name for name, _ in stepper.taken}
        return any(name in begun - {stepped.name} and not stepper[name].finished for name in stepper.operations)

    start = reset(postgres_counters, *[reading_and_writing(postgres_counters)] * 2)
    assert all_orders(postgres_counters, start, lambda _: None, pointless=other_has_begun) == 2
