"""Tests that the stepper reports the state of operations correctly."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import is_deadlock
from tests.helpers.counting import counted, counting
from tests.helpers.stepping import COMMIT, Crashed, Stepper


def stepped_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stepped")]


def test_an_operation_stands_before_each_statement_and_before_its_commit(counters: Engine) -> None:
    with Stepper(counters) as stepper:
        a = stepper.begin("a", counting(counters, "a", "b"))
        stands_before = [a.before]
        while not a.finished:
            assert counted(counters) == {"a": 0, "b": 0}
            a.step()
            stands_before.append(a.before)

    first, second, commit, nothing = stands_before
    assert first is not None
    assert first.startswith(("UPDATE", "BEGIN IMMEDIATE"))
    assert second is not None
    assert second.startswith("UPDATE")
    assert (commit, nothing) == (COMMIT, None)
    assert (a.result, a.error) == ("a b", None)
    assert counted(counters) == {"a": 1, "b": 1}


def test_one_that_needs_a_lock_is_blocked_until_it_is_free(counters: Engine) -> None:
    with Stepper(counters) as stepper:
        a = stepper.begin("a", counting(counters, "a"))
        b = stepper.begin("b", counting(counters, "a"))
        a.step()
        b.step()
        assert (a.before, a.blocked, b.before, b.blocked) == (COMMIT, False, None, True)
        with pytest.raises(RuntimeError, match="b can't be stepped: it is blocked"):
            b.step()

        a.step()
        assert (a.finished, b.before, b.blocked) == (True, COMMIT, False)
        b.step()

    assert counted(counters) == {"a": 2, "b": 0}


def test_those_that_wait_for_one_lock_get_it_one_after_the_other(counters: Engine) -> None:
    with Stepper(counters) as stepper:
        a, b, c = (stepper.begin(name, counting(counters, "a")) for name in "abc")
        for one in (a, c, b):
            one.step()
        a.step()
        first, second = (c, b) if c.before == COMMIT else (b, c)  # on Postgres not always who asked first
        assert (first.before, second.blocked) == (COMMIT, True)
        first.step()
        assert second.before == COMMIT
        second.step()

    assert counted(counters) == {"a": 3, "b": 0}


def test_a_statement_that_takes_its_time_is_not_taken_for_one_that_waits(postgres_counters: Engine) -> None:
    def dawdle() -> None:
        with postgres_counters.begin() as connection:
            connection.execute(text("SELECT pg_sleep(0.1)"))

    with Stepper(postgres_counters) as stepper:
        a, slow = stepper.begin("a", counting(postgres_counters, "a")), stepper.begin("slow", dawdle)
        a.step()
        slow.step()
        assert slow.before == COMMIT


def test_a_lock_that_the_test_itself_holds_blocks_too(postgres_counters: Engine) -> None:
    with Stepper(postgres_counters) as stepper:
        a = stepper.begin("a", counting(postgres_counters, "a"))
        with postgres_counters.begin() as connection:
            connection.execute(text("SELECT n FROM counter FOR UPDATE"))
            a.step()
            assert a.blocked
        stepper.settle()
        assert (a.before, a.blocked) == (COMMIT, False)


def test_a_deadlock_is_the_error_of_one_and_lets_the_other_go_on(postgres_counters: Engine) -> None:
    with Stepper(postgres_counters) as stepper:
        ab = stepper.begin("ab", counting(postgres_counters, "a", "b"))
        ba = stepper.begin("ba", counting(postgres_counters, "b", "a"))
        stepper.run(["ab", "ba", "ab", "ba"])

    (error,) = (one.error for one in (ab, ba) if one.error is not None)
    assert isinstance(error, DBAPIError)
    assert is_deadlock(error)
    assert counted(postgres_counters) == {"a": 1, "b": 1}


def test_an_error_is_kept_and_its_locks_are_free(counters: Engine) -> None:
    def divide() -> None:
        with counters.begin() as connection:
            connection.execute(text("UPDATE counter SET n = 1"))
            raise ZeroDivisionError

    with Stepper(counters) as stepper:
        a, b = stepper.begin("a", divide), stepper.begin("b", counting(counters, "a"))
        stepper.run(["a", "b"])

    assert isinstance(a.error, ZeroDivisionError)
    assert b.error is None
    assert counted(counters) == {"a": 1, "b": 0}


def test_what_a_crash_leaves_uncommitted_is_undone_and_its_locks_are_free(counters: Engine) -> None:
    with Stepper(counters) as stepper:
        a, b = (stepper.begin(name, counting(counters, "a")) for name in "ab")
        a.step()
        b.step()
        a.crash()
        assert (a.finished, b.before) == (True, COMMIT)
        stepper.finish(b)

    assert isinstance(a.error, Crashed)
    assert counted(counters) == {"a": 1, "b": 0}


def test_one_that_is_to_crash_while_it_is_blocked_does_so_when_it_gets_its_lock(counters: Engine) -> None:
    with Stepper(counters) as stepper:
        a, b = (stepper.begin(name, counting(counters, "a")) for name in "ab")
        a.step()
        b.step()
        b.crash()
        assert b.blocked
        stepper.finish(a)
        assert isinstance(b.error, Crashed)

    assert counted(counters) == {"a": 1, "b": 0}


def test_a_run_passes_over_what_is_blocked_or_finished_and_finishes_all(counters: Engine) -> None:
    with Stepper(counters) as stepper:
        for name in "ab":
            stepper.begin(name, counting(counters, "a"))
        stepper.run(["a", "b", "b", "b", "a", "a", "a"])
        assert all(stepper[name].finished for name in "ab")

    assert counted(counters) == {"a": 2, "b": 0}


def test_every_thread_ends_when_the_test_fails(counters: Engine) -> None:
    def fail() -> None:
        with Stepper(counters) as stepper:
            a, b, _ = (stepper.begin(name, counting(counters, "a")) for name in "abc")
            a.step()
            b.step()
            raise AssertionError("the test's own")

    with pytest.raises(AssertionError, match="the test's own"):
        fail()

    assert stepped_threads() == []
    assert counted(counters) == {"a": 0, "b": 0}
    counting(counters, "a")()  # nobody holds a lock, and nobody is held up any more


def test_threads_that_wait_for_somebody_elses_lock_end_too(postgres_counters: Engine) -> None:
    with postgres_counters.begin() as connection:
        connection.execute(text("SELECT n FROM counter FOR UPDATE"))
        with Stepper(postgres_counters) as stepper:
            a = stepper.begin("a", counting(postgres_counters, "a"))
            a.step()
    assert isinstance(a.error, DBAPIError)
    assert stepped_threads() == []


def test_an_operation_may_stand_as_long_as_it_likes(postgres_counters: Engine) -> None:
    def patience() -> list[str]:
        with postgres_counters.begin() as connection:
            names = ("lock_timeout", "idle_in_transaction_session_timeout")
            return [str(connection.execute(text(f"SHOW {name}")).scalar()) for name in names]

    with Stepper(postgres_counters) as stepper:
        a = stepper.begin("a", patience)
        stepper.finish(a)

    assert a.result == ["1min", "0"]


def test_statements_that_are_nothing_to_others_go_with_the_one_before(counters: Engine) -> None:
    def write() -> None:
        with counters.begin() as connection:
            for n in (1, 2):
                connection.execute(text("UPDATE counter SET n = :n"), {"n": n})
                connection.execute(text("SELECT 'nothing'"))

    with Stepper(counters, passing=lambda statement: "nothing" in statement) as stepper:
        stepper.finish(stepper.begin("a", write))

    assert ["UPDATE" in statement or statement.startswith("BEGIN") for _, statement in stepper.taken[:-1]] == [True] * 2
    assert stepper.taken[-1] == ("a", COMMIT)
