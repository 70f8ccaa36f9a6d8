"""The search leaves no order out, and says which one failed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from sqlalchemy import Engine, text

from tests.helpers.all_orders import all_orders
from tests.helpers.counting import counted, counting, looking
from tests.helpers.stepping import Stepped, Stepper


def test_all_orders_of_operations_that_do_not_block_each_other_are_their_interleavings(counters: Engine) -> None:
    ends: list[str] = []

    def check(stepper: Stepper) -> None:
        ends.append("".join(sorted(stepper.operations)))
        assert all(stepped.finished and stepped.error is None for stepped in stepper.operations.values())

    def orders_of(*times: int) -> int:
        with Stepper(counters) as stepper:

            def start() -> Stepper:
                for name, looks in zip("abc", times, strict=False):
                    stepper.begin(name, looking(counters, looks))
                return stepper

            return all_orders(start, check)

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


def test_the_search_finds_every_end_there_is(counters: Engine) -> None:
    is_postgres = counters.dialect.name == "postgresql"
    ends: list[int] = []
    with Stepper(counters) as stepper:

        def start() -> Stepper:
            with counters.begin() as connection:
                connection.execute(text("UPDATE counter SET n = 0"))
            for name in "ab":
                stepper.begin(name, reading_and_writing(counters))
            return stepper

        orders = all_orders(start, lambda _: ends.append(counted(counters)["a"]))

    # On SQLite one transaction comes after the other. On Postgres, with R, W and C for the steps: an addition is lost
    # whenever both have read before one has committed.
    assert set(ends) == ({1, 2} if is_postgres else {2})
    assert (orders, len(ends)) == ((14, 14) if is_postgres else (2, 2))


def test_an_order_that_fails_is_told_step_by_step(postgres_counters: Engine) -> None:
    def check(_: Stepper) -> None:
        assert counted(postgres_counters)["a"] == 2

    with Stepper(postgres_counters) as stepper:

        def start() -> Stepper:
            with postgres_counters.begin() as connection:
                connection.execute(text("UPDATE counter SET n = 0"))
            for name in "ab":
                stepper.begin(name, reading_and_writing(postgres_counters))
            return stepper

        with pytest.raises(AssertionError) as failed:
            all_orders(start, check)

    (note,) = failed.value.__notes__
    assert "a: UPDATE counter SET n = " in note
    assert note.endswith("b: COMMIT")


def test_a_search_that_does_not_begin_alike_says_so(counters: Engine) -> None:
    calls = count()
    with Stepper(counters) as stepper:

        def start() -> Stepper:
            stepper.begin("a", looking(counters, 1))
            stepper.begin("b" if next(calls) % 2 else "c", looking(counters, 1))
            return stepper

        with pytest.raises(RuntimeError, match=r"at first .*could move, now"):
            all_orders(start, lambda _: None)


def test_the_search_goes_on_when_the_database_chooses_who_gets_a_lock(counters: Engine) -> None:
    """Of two that wait for a row that a third has changed, Postgres lets now this one go first, now that one."""
    taken: set[tuple[str, ...]] = set()

    def check(stepper: Stepper) -> None:
        assert counted(counters)["a"] == 3
        taken.add(tuple(name for name, _ in stepper.taken))

    with Stepper(counters) as stepper:

        def start() -> Stepper:
            with counters.begin() as connection:
                connection.execute(text("UPDATE counter SET n = 0"))
            for name in "abc":
                stepper.begin(name, counting(counters, "a"))
            return stepper

        assert all_orders(start, check) == len(taken)

    assert {order[0] for order in taken} == set("abc")
    if counters.dialect.name == "postgresql":
        assert {("a", "b", "c", "a", "b", "c"), ("a", "b", "c", "a", "c", "b")} & taken


def test_steps_that_are_pointless_at_a_point_are_made_later(postgres_counters: Engine) -> None:
    with Stepper(postgres_counters) as stepper:

        def start() -> Stepper:
            for name in "ab":
                stepper.begin(name, reading_and_writing(postgres_counters))
            return stepper

        def other_has_begun(stepper: Stepper, stepped: Stepped) -> bool:
            begun = {name for name, _ in stepper.taken}
            return any(name in begun - {stepped.name} and not stepper[name].finished for name in stepper.operations)

        assert all_orders(start, lambda _: None, other_has_begun) == 2
