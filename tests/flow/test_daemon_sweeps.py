"""Sweeps that are due run by themselves in the daemon, and delay nothing; `sweeper` is one that looks when it is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Literal

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from inbox.clock import SystemClock
from inbox.events.event import Event
from relay.delivery.gates import Gate
from relay.delivery.policy import policies
from relay.operations.asks import OneSource
from relay.steps import Steps
from relay.store.gates import read_hold_seconds
from relay.store.operator import commands, execution
from relay.store.sweeps import Listed
from relay.sweep import run as sweep_run
from relay.sweep import scheduler
from relay.sweep.run import CompiledSweep
from relay.sweep.scheduler import Sweeper, compile_sweeps
from tests.helpers.daemon import Rig, make_config
from tests.helpers.directory import TABLE, Directory
from tests.helpers.relaying import work_of
from tests.helpers.scripted import serving
from tests.helpers.tables import count, rows
from tests.helpers.waiting import until

OFTEN = 'every = "50ms"\n'


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(sweep_run, "FIRST_WAIT_SECONDS", 0)


@pytest.fixture
def directory() -> Directory:
    return Directory({f"u{n}": f"2026-01-01T00:00:0{n}Z" for n in range(4)})


@pytest.fixture
def table(directory: Directory) -> Iterator[str]:
    with serving(directory) as server:
        yield TABLE.format(url=server.url, count=2)
        directory.let_go.set()


@pytest.fixture
def sweeper(rig: Rig, table: str) -> Sweeper:
    """One that looks when it is told."""
    turns = compile_sweeps(
        make_config("http://127.0.0.1:9/", more=table.replace("[[sources", 'rate = "1000/s"\n[[sources') + OFTEN)
    )
    stop, now = threading.Event(), SystemClock().now
    steps = Steps(rig.observer)
    return Sweeper(work_of(rig.database), turns, stop=stop, now=now, observer=rig.observer, steps=steps)


def alerts_of(engine: Engine) -> list[tuple[str, bool]]:
    found = rows(engine, "SELECT kind, subject, firing FROM alert ORDER BY id")
    assert {row["subject"] for row in found} <= {"trivore USER"}
    return [(row["kind"], bool(row["firing"])) for row in found]


def watermark(engine: Engine) -> dict[str, Any]:
    found = rows(engine, "SELECT * FROM sweep_watermark")
    return found[0] if found else {}


def test_a_missed_change_is_found_and_delivered(
    rig: Rig, directory: Directory, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory.users = {"u0": "2026-01-01T00:00:00Z"}
    rig.arrive("u0")
    with caplog.at_level(logging.INFO, "relay"), rig.relay(more=table + OFTEN):
        until(lambda: watermark(rig.engine).get("swept_at"), "it has been swept")
        assert (watermark(rig.engine)["last_compared"], watermark(rig.engine)["missed"]) == (1, 0)
        directory.users["u2"] = "2026-01-02T00:00:00Z"
        until(lambda: count(rig.engine, "inbox") == 2 and not rig.left, "it is added, and delivered")
        until(lambda: len(alerts_of(rig.engine)) == 2, "the next one finds nothing")
    assert alerts_of(rig.engine) == [("webhooks_missed", True), ("webhooks_missed", False)]
    assert "swept trivore USER compared=2 missed=1 added=1" in caplog.messages
    assert rig.observer.counts["sweep_missed"] == 1
    assert watermark(rig.engine)["lease_until"] is None


def test_a_source_that_hangs_delays_no_delivery_and_no_stop(rig: Rig, directory: Directory, table: str) -> None:
    directory.let_go.clear()
    with rig.relay(more=table + OFTEN):
        until(lambda: directory.pages == 1, "it hangs")
        rig.arrive("u9")
        rig.until_left()
        assert watermark(rig.engine)["lease_until"] is not None
    left = watermark(rig.engine)
    assert (left["lease_until"], left["swept_at"], left["error"]) == (None, None, None), "another may begin at once"
    assert alerts_of(rig.engine) == []


def test_a_page_that_asks_for_a_hold_holds_its_api_alone(rig: Rig, directory: Directory, table: str) -> None:
    directory.headers = [{"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "3000"}]
    with serving(groups := Directory({"g1": "2026-01-01T00:00:00Z"})) as other:
        more = TABLE.format(url=other.url, count=2).replace("identity", "groups").replace("USER", "GROUP")
        with rig.relay(more=f"{table}{OFTEN}{more}{OFTEN}"):
            until(lambda: read_hold_seconds(rig.database, ("api", "identity")) > 1000, "it is held")
            groups.users["g2"] = "2026-01-01T00:00:01Z"
            until(lambda: count(rig.engine, "inbox WHERE entity_id = 'g2'"), "the other is swept meanwhile")
            assert directory.pages == 1
            commands.ask(rig.database, "resume", Gate(api="identity"), who="kim", why="their limit was raised")
            until(lambda: count(rig.engine, "inbox WHERE entity_id = 'u3'"), "it goes on")


def test_a_command_runs_a_sweep_and_answers_with_its_result(rig: Rig, directory: Directory, table: str) -> None:
    def answer_to(source: str, kind: str) -> tuple[str, str]:
        asks = OneSource(source=source, entity_type=kind)
        number = commands.ask(rig.database, "sweep", asks, who="kim", why="some were lost")
        until(
            lambda: count(rig.engine, f"relay_command WHERE id = {number} AND finished_at IS NOT NULL"), "it has ended"
        )
        (row,) = rows(rig.engine, "SELECT state, answer FROM relay_command WHERE id = :id", id=number)
        return row["state"], row["answer"]

    with rig.relay(more=table):
        assert answer_to("trivore", "USER") == ("done", "USER: 4 compared, 4 missed, 4 added")
        for source, kind in (("trivor", "USER"), ("trivore", "USR")):
            state, answered = answer_to(source, kind)
            assert (state, "did you mean" in answered) == ("refused", True)
        directory.statuses = [404] * 20
        state, answered = answer_to("trivore", "USER")
        assert (state, "404" in answered) == ("failed", True)


# --- one turn


def test_a_source_that_can_not_be_asked_is_told_once_and_once_when_it_can_again(
    rig: Rig, directory: Directory, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.store.sweeps.is_due", lambda *_: True)
    monkeypatch.setattr("relay.store.sweeps.take", lambda *_: True)
    directory.users = {}
    directory.statuses = [404] * 2
    for _ in range(4):
        sweeper.run_due()
    assert alerts_of(rig.engine) == [("sweep_failed", True), ("sweep_failed", False)]
    assert watermark(rig.engine)["error"] is None


def test_its_pages_count_against_the_rate_of_the_api(rig: Rig, sweeper: Sweeper) -> None:
    sweeper.run_due()
    (gate,) = rows(rig.engine, "SELECT name, rate_used_until FROM gate WHERE kind = 'api'")
    assert (gate["name"], gate["rate_used_until"] is not None) == ("identity", True)


def test_a_pause_of_api_or_source_pauses_a_sweep(rig: Rig, directory: Directory, table: str, sweeper: Sweeper) -> None:
    config = make_config("http://127.0.0.1:9/", more=table + OFTEN)

    def work(act: Literal["pause", "resume"], gate: Gate) -> None:
        number = commands.ask(rig.database, act, gate, who="me", why="seen")
        execution.work_on(work_of(rig.database, policies(config), config=config), number)

    for gate in (Gate(api="identity"), Gate(source="trivore")):
        work("pause", gate)
        sweeper.run_due()
        assert directory.pages == 0
        work("resume", gate)
    sweeper.run_due()
    assert directory.pages > 0


def broken(*_: object) -> None:
    raise OperationalError("SELECT", {}, ValueError("gone"))


@pytest.mark.parametrize(
    "trouble",
    [
        ("relay.sweep.run.CompiledSweep.run", lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
        ("relay.store.sweeps.find_missing", broken, "the database: ValueError: gone"),
        ("relay.store.sweeps.is_due", lambda *_: 1 / 0, None),
    ],
    ids=["a bug", "the database", "a bug outside of a sweep"],
)
def test_an_error_that_ends_a_sweep_or_keeps_it_from_beginning_is_told(
    rig: Rig, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch, trouble: tuple[str, Callable[..., object], str | None]
) -> None:
    where, bug, error = trouble
    monkeypatch.setattr(where, bug)
    sweeper.run_due()
    left = watermark(rig.engine)
    assert (left.get("error"), left.get("lease_until")) == (error, None)
    if bug is broken:
        assert alerts_of(rig.engine) == [("sweep_failed", True)]
    else:
        assert rig.observer.counts["step_failed"] == 1


def test_additions_of_a_sweep_that_broke_off_are_told(rig: Rig, directory: Directory, sweeper: Sweeper) -> None:
    directory.statuses = [200, 404]
    sweeper.run_due()
    assert (watermark(rig.engine)["missed"], watermark(rig.engine)["compared_until"]) == (2, None)
    assert {kind for kind, firing in alerts_of(rig.engine) if firing} == {"webhooks_missed", "sweep_failed"}
    assert (rig.observer.counts["sweep_missed"], rig.observer.counts["swept"]) == (2, 0)


def test_an_entity_that_can_not_be_taken_in_keeps_no_other_from_it_and_the_next_sweep_begins_there_again(
    rig: Rig, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_of = CompiledSweep._event

    def failing(sweeping: CompiledSweep, listed: Listed, item: object, now: datetime) -> Event:
        if listed.id == "u2":
            raise ValueError("year 10000 is out of range")
        return event_of(sweeping, listed, item, now)

    monkeypatch.setattr(CompiledSweep, "_event", failing)
    sweeper.run_due()
    found = rows(rig.engine, "SELECT entity_id FROM inbox ORDER BY seq")
    assert [row["entity_id"] for row in found] == ["u0", "u1", "u3"]
    left = watermark(rig.engine)
    assert left["compared_until"] is None
    assert "id='u2'" in left["error"]
    assert ("sweep_failed", True) in alerts_of(rig.engine)


def test_a_relay_parses_one_page_at_a_time(rig: Rig, directory: Directory, table: str) -> None:
    with sweep_run.ONE_PAGE, rig.relay(more=table + OFTEN):
        until(lambda: directory.pages > 0, "a page is fetched")
        assert count(rig.engine, "inbox") == 0, "another one is compared"
        sweep_run.ONE_PAGE.release()
        until(lambda: count(rig.engine, "inbox") == 4, "its turn has come")
        until(lambda: sweep_run.ONE_PAGE.acquire(blocking=False), "and ends")
