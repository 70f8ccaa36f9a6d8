"""Retries of a step that failed, the alerts about it, and the point at which a relay gives up."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

from relay import steps
from relay.observe import Observer
from relay.steps import CRITICAL, LASTS_SECONDS, LONGEST_URGENT_WAIT_SECONDS, Step


class World:
    """A clock that is moved by hand, and a database that is well or not."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.is_healthy = True
        self.alerts: list[tuple[str, str]] = []
        self.observer = Observer()
        self.steps = steps.Steps(
            self.observer,
            alert=self.alert,
            is_healthy=lambda: self.is_healthy,
            monotonic=lambda: self.now,
        )

    def alert(self, name: str, error: str) -> bool:
        if self.is_healthy:
            self.alerts.append((name, error))
        return self.is_healthy

    def fail(self, step: Step, error: Exception | None = None, *, subject: str = "") -> str:
        def work() -> str:
            raise error or ValueError("year 10000 is out of range")

        return self.steps.run(step, work, "otherwise", subject=subject)


@pytest.fixture
def world() -> World:
    return World()


def sqlite_error(code: int) -> OperationalError:
    error = sqlite3.OperationalError("it is so")
    error.sqlite_errorcode = code
    return OperationalError("SELECT", {}, error)


LOCKED = sqlite_error(sqlite3.SQLITE_BUSY)
GONE = sqlite_error(sqlite3.SQLITE_CANTOPEN)


@pytest.mark.parametrize("step", ["judge_duplicates", "record"])
def test_a_step_that_has_failed_waits_twice_as_long_each_time_and_not_for_ever(world: World, step: Step) -> None:
    longest = LONGEST_URGENT_WAIT_SECONDS if step in steps.URGENT else steps.LONGEST_WAIT_SECONDS
    world.is_healthy = False
    for times in range(1100):  # 2.0 ** 1024 is more than a float holds
        assert world.fail(step) == "otherwise"
        wait = min(steps.FIRST_WAIT_SECONDS * 2 ** min(times, 10), longest)
        world.now += wait * 0.99
        assert world.steps.run(step, lambda: "too soon", "otherwise") == "otherwise"
        world.now += wait * 0.02


def test_a_step_that_fails_is_alerted_once_and_counted_each_time_until_it_works_again(world: World) -> None:
    for _ in range(3):
        world.fail("rescue")
        world.now += LONGEST_URGENT_WAIT_SECONDS
    assert world.alerts == [("rescue", "ValueError: year 10000 is out of range")]
    assert world.steps.failing == dict(world.alerts)
    assert world.observer.counts["step_failed"] == 3
    assert world.steps.run("rescue", lambda: 7, 0) == 7
    assert world.steps.failing == {}


def test_a_step_that_fails_on_is_alerted_each_minute_as_another_relay_may_have_ended_the_alert(world: World) -> None:
    for _ in range(13):
        world.fail("rescue")
        world.now += LASTS_SECONDS / 4
    assert len(world.alerts) == 4


def test_a_subject_of_a_step_waits_alone(world: World) -> None:
    world.fail("sweep", subject="trivore USER")
    assert world.steps.run("sweep", lambda: "swept", "otherwise", subject="trivore GROUP") == "swept"
    assert list(world.steps.failing) == ["sweep trivore USER"]


def test_one_that_is_only_kept_busy_is_alerted_when_that_lasts(world: World) -> None:
    world.fail("rescue", LOCKED)
    assert world.alerts == []
    assert world.observer.counts["database_trouble"] == 1
    world.now += LASTS_SECONDS
    world.fail("rescue", LOCKED)
    assert [name for name, _ in world.alerts] == ["rescue"]
    assert world.observer.counts["step_failed"] == 0


def test_an_unreachable_database_is_not_the_steps_to_wait_for(world: World) -> None:
    world.is_healthy = False
    with pytest.raises(OperationalError):
        world.fail("rescue", GONE)
    assert world.steps.failing == {}


@pytest.mark.parametrize("trouble", [LOCKED, GONE], ids=["busy", "unreachable to it"])
def test_a_step_that_the_database_holds_up_is_awaited_until_it_works_again(world: World, trouble: Exception) -> None:
    world.fail("sequence")
    assert not world.steps.is_awaited("sequence"), "its items are at fault, and the others are done by then"
    world.now += steps.FIRST_WAIT_SECONDS
    world.fail("sequence", trouble)
    assert world.steps.is_awaited("sequence")
    world.now += LONGEST_URGENT_WAIT_SECONDS
    world.steps.run("sequence", lambda: 0, 0)
    assert not world.steps.is_awaited("sequence")


def test_a_step_that_the_database_holds_up_is_awaited_no_longer_than_a_lease(world: World) -> None:
    world.fail("sequence", LOCKED)
    world.now += steps.AWAITED_SECONDS - 0.1
    world.fail("sequence", LOCKED)
    assert world.steps.is_awaited("sequence")
    world.now += 0.1
    assert not world.steps.is_awaited("sequence")


def test_an_alert_that_could_not_be_stored_is_tried_again_with_the_step(world: World) -> None:
    world.is_healthy = False
    world.fail("rescue")
    assert world.alerts == []
    world.is_healthy = True
    for _ in range(2):
        world.now += LONGEST_URGENT_WAIT_SECONDS
        world.fail("rescue")
    assert len(world.alerts) == 1


@pytest.mark.parametrize("step", sorted(steps.AWAITED))
def test_a_step_is_tried_again_often_as_long_as_it_is_awaited(world: World, step: Step) -> None:
    tries = 1
    world.fail(step, LOCKED)
    while world.steps.is_awaited(step):
        world.now += steps.AWAITED_AGAIN_SECONDS
        world.fail(step, LOCKED)
        tries += 1
        assert world.observer.counts["database_trouble"] == tries


@pytest.mark.parametrize("step", sorted(CRITICAL))
def test_the_relay_gives_up_when_a_critical_step_fails_for_a_minute(world: World, step: Step) -> None:
    world.fail(step)
    world.now += LASTS_SECONDS - 1
    world.fail(step)
    world.now += LONGEST_URGENT_WAIT_SECONDS
    with pytest.raises(ValueError, match="year 10000"):
        world.fail(step)


def test_it_does_not_when_the_database_takes_no_writes_or_is_busy_or_another_step_fails(world: World) -> None:
    world.is_healthy = False
    for step in ("record", "claim"):
        world.fail(step)
    world.fail("sequence")
    world.now += 10 * LASTS_SECONDS
    world.fail("record")
    world.is_healthy = True
    world.fail("claim", LOCKED)
    world.fail("sequence")


def test_a_success_in_between_begins_the_minute_anew(world: World) -> None:
    world.fail("record")
    world.now += LASTS_SECONDS - 1
    world.steps.run("record", lambda: 1, 0)
    world.fail("record")
    world.now += LASTS_SECONDS - 1
    world.fail("record")
