"""The daemon itself, in a thread: sweeps that are due run by themselves, and delay nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Literal

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from inbox.clock import SystemClock
from inbox.errors import ConfigError
from inbox.events.event import Event
from inbox.events.timestamps import time_text
from relay.daemon.generation import prepare
from relay.delivery.gates import Gate, RateLimit
from relay.delivery.policy import policies
from relay.observe import Observer
from relay.steps import Steps
from relay.store.database import Database
from relay.store.gates import acquire_rate, held_for
from relay.store.operator import commands, execution
from relay.store.sweeps import Listed
from relay.sweep import run as sweep_run
from relay.sweep import scheduler
from relay.sweep.run import CompiledSweep
from relay.sweep.scheduler import Sweeper, scheduled
from tests.helpers.daemon import configured, running
from tests.helpers.directory import TABLE, Directory
from tests.helpers.evidence import open_states
from tests.helpers.filling import fill
from tests.helpers.reading import count, rows
from tests.helpers.relaying import work_of
from tests.helpers.scripted import answer
from tests.helpers.scripted import serving as scripted
from tests.helpers.waiting import until

OFTEN = 'every = "50ms"\n'


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(sweep_run, "FIRST_WAIT_SECONDS", 0)


@pytest.fixture
def directory() -> Directory:
    return Directory({"u1": "2026-01-01T00:00:00Z"})


@pytest.fixture
def table(directory: Directory) -> Iterator[str]:
    with scripted(directory) as server:
        yield TABLE.format(url=server.url, count=2)
        directory.let_go.set()


def alerted(engine: Engine) -> list[tuple[str, str, bool]]:
    return [
        (row["kind"], row["subject"], bool(row["firing"])) for row in rows(engine, "SELECT * FROM alert ORDER BY id")
    ]


def ask_for_sweeps(engine: Engine, *selections: str) -> None:
    with engine.begin() as connection:
        for selection in selections:
            asked = (
                f"INSERT INTO relay_command (kind, selection, reason) VALUES ('sweep', '{selection}', 'some were lost')"
            )
            connection.exec_driver_sql(asked)


def watermark(engine: Engine) -> dict[str, Any]:
    found = rows(engine, "SELECT * FROM sweep_watermark")
    return found[0] if found else {}


def test_what_no_webhook_has_told_is_found_added_delivered_and_told(
    database_url: str, engine: Engine, directory: Directory, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(database_url, [("u1", "2026-01-01T00:00:00Z")])
    with (
        caplog.at_level(logging.INFO, "relay"),
        scripted(answer(204)) as audit,
        running(engine, audit, more=table + OFTEN) as relay,
    ):
        until(lambda: watermark(engine).get("swept_at"), "it has been swept")
        assert (watermark(engine)["last_compared"], watermark(engine)["missed"]) == (1, 0)
        directory.users["u2"] = "2026-01-02T00:00:00Z"
        until(lambda: count(engine, "inbox") == 2 and not open_states(engine), "it is added, and delivered")
        until(lambda: len(alerted(engine)) == 2, "the next one finds nothing")
        assert relay._observer.counts["sweep_missed"] == 1
    assert alerted(engine) == [("webhooks_missed", "trivore USER", True), ("webhooks_missed", "trivore USER", False)]
    assert "swept trivore USER compared=2 missed=1 added=1" in caplog.messages
    assert len(audit.seen) == 2
    assert watermark(engine)["lease_until"] is None


def test_a_source_that_can_not_be_asked_is_told_once_and_once_when_it_can_again(
    engine: Engine, directory: Directory, table: str
) -> None:
    directory.statuses = [503] * 9
    with scripted(answer(204)) as audit, running(engine, audit, more=table + OFTEN):
        until(lambda: ("sweep_failed", "trivore USER", False) in alerted(engine), "it is told that it works again")
    assert [firing for kind, _, firing in alerted(engine) if kind == "sweep_failed"] == [True, False]
    assert watermark(engine)["error"] is None


def test_a_source_that_hangs_delays_no_delivery_and_is_not_waited_for_at_the_end(
    database_url: str, engine: Engine, directory: Directory, table: str
) -> None:
    directory.let_go.clear()
    with scripted(answer(204)) as audit, running(engine, audit, more=table + OFTEN):
        until(lambda: directory.pages == 1, "it hangs")
        fill(database_url, [("u9", "2026-01-01T00:00:00Z")])
        until(lambda: len(audit.seen) == 1 and not open_states(engine), "another is delivered meanwhile")
        assert watermark(engine)["lease_until"] is not None
    left = watermark(engine)
    assert (left["lease_until"], left["swept_at"], left["error"]) == (None, None, None), "another may begin at once"
    assert alerted(engine) == []


def test_its_pages_count_against_the_rate_of_the_api(
    engine: Engine, directory: Directory, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[float] = []

    def acquiring(database: Database, limit: RateLimit) -> float:
        began.append(time.monotonic())
        return acquire_rate(database, limit)

    monkeypatch.setattr(sweep_run, "acquire_rate", acquiring)
    directory.users.update({f"u{n}": "2026-01-01T00:00:00Z" for n in range(2, 10)})
    asked_at: list[float] = []
    directory.before_page = lambda _: asked_at.append(time.monotonic())
    limited = table.replace("[[sources", 'rate = "4/s"\n[[sources')
    with scripted(answer(204)) as audit, running(engine, audit, more=limited + OFTEN):
        until(lambda: watermark(engine).get("swept_at"), "it has been swept")
        (gate,) = rows(engine, "SELECT * FROM gate WHERE kind = 'api'")
    assert asked_at[6] - began[0] >= (7 - 4) / 4 * 0.9, "four may be asked for at once"
    assert (gate["name"], gate["rate_used_until"] is not None) == ("identity", True)


def test_no_page_is_asked_for_while_the_api_is_held(engine: Engine, directory: Directory, table: str) -> None:
    """The hold begins during the sweep: a delivery's fetch was asked for it, say."""
    database = Database(engine)
    directory.users.update({f"u{n}": "2026-01-01T00:00:00Z" for n in range(2, 10)})
    held: list[float] = []

    def asked(_: object) -> None:
        seconds = held_for(database, ("api", "identity"))
        if not held:
            with database.write() as transaction:
                statement = text("INSERT INTO gate (kind, name, held_until) VALUES ('api', 'identity', :until)")
                transaction.execute(statement, until=time_text(SystemClock().now() + timedelta(hours=1)))
        held.append(seconds)

    directory.before_page = asked
    with scripted(answer(204)) as audit, running(engine, audit, more=table + OFTEN):
        until(lambda: held, "it has begun")
        commands.ask(database, "resume", Gate(api="identity"), who="kim", why="their limit was raised")
        until(lambda: watermark(engine).get("swept_at"), "it has been swept")
    assert len(held) > 1
    assert {*held} == {0.0}, "and none was asked for in between"


def test_a_page_whose_answer_asks_for_no_further_call_holds_the_api(
    engine: Engine, directory: Directory, table: str
) -> None:
    directory.users.update({f"u{n}": "2026-01-01T00:00:00Z" for n in range(2, 10)})
    directory.headers = [{"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "3000"}]
    with scripted(answer(204)) as audit, running(engine, audit, more=table + OFTEN):
        until(lambda: held_for(Database(engine), ("api", "identity")) > 1000, "it is held")
        time.sleep(0.3)
        assert directory.pages == 1
        commands.ask(Database(engine), "resume", Gate(api="identity"), who="kim", why="their limit was raised")
        until(lambda: watermark(engine).get("swept_at"), "it goes on, and has been swept")
        assert watermark(engine)["error"] is None
    assert alerted(engine)[0][0] == "webhooks_missed"


def test_a_listing_that_fails_with_such_an_answer_holds_the_api_as_well(
    engine: Engine, directory: Directory, table: str
) -> None:
    directory.statuses = [404]
    directory.headers = [{"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "3000"}]
    with scripted(answer(204)) as audit, running(engine, audit, more=table + OFTEN):
        until(lambda: watermark(engine).get("error"), "it has failed")
        assert held_for(Database(engine), ("api", "identity")) > 1000


def test_an_api_that_is_held_keeps_no_other_waiting(engine: Engine, directory: Directory, table: str) -> None:
    directory.users.update({f"u{n}": "2026-01-01T00:00:00Z" for n in range(2, 10)})
    directory.headers = [{"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "3000"}]
    groups = Directory({"g1": "2026-01-01T00:00:00Z"})
    with scripted(groups) as other, scripted(answer(204)) as audit:
        more = TABLE.format(url=other.url, count=2).replace("identity", "groups").replace("USER", "GROUP")
        with running(engine, audit, more=f"{table}{OFTEN}{more}{OFTEN}"):
            until(lambda: directory.pages == 1, "the first has begun")
            groups.users["g2"] = "2026-01-01T00:00:01Z"
            swept = "SELECT * FROM inbox JOIN inbox_payload USING (seq) WHERE entity_id = 'g2'"
            until(lambda: rows(engine, swept), "the other is swept meanwhile")
            assert directory.pages == 1


def test_a_command_runs_a_sweep_that_no_relay_runs_by_itself_and_answers_with_its_result(
    engine: Engine, directory: Directory, table: str
) -> None:
    with scripted(answer(204)) as audit, running(engine, audit, more=table):
        right, *wrong = (
            f'{{"source": "{source}", "entity_type": "{kind}"}}'
            for source, kind in (("trivore", "USER"), ("trivor", "USER"), ("trivore", "USR"))
        )
        ask_for_sweeps(engine, right, *wrong)
        until(lambda: not rows(engine, "SELECT 1 FROM relay_command WHERE finished_at IS NULL"), "all have ended")
        compared = len(directory.users)
        first, *slips = rows(engine, "SELECT state, answer, affected FROM relay_command ORDER BY id")
        assert first["state"] == "done"
        assert first["answer"] == f"USER: {compared} compared, {first['affected']} missed, {first['affected']} added"
        assert [slip["state"] for slip in slips] == ["refused", "refused"]
        assert slips[0]["answer"] == "there is no source 'trivor'; did you mean 'trivore'?"
        assert slips[1]["answer"] == "source trivore has no sweep of 'USR'; did you mean 'USER'?"
        directory.statuses = [404] * 20
        ask_for_sweeps(engine, '{"source": "trivore"}')
        until(lambda: rows(engine, "SELECT 1 FROM relay_command WHERE state = 'failed'"), "its failure is answered")
        (failed,) = rows(engine, "SELECT answer FROM relay_command WHERE state = 'failed'")
        assert failed["answer"].startswith("USER: ")
        assert "404" in failed["answer"]


def test_another_configuration_says_how_often(engine: Engine, directory: Directory, table: str) -> None:
    with scripted(answer(204)) as audit, running(engine, audit, more=table) as relay:
        changed = configured(audit.url, more=table + OFTEN)
        assert directory.pages == 0, "without `every`, only by hand"
        relay.reload(prepare(changed))
        until(lambda: watermark(engine).get("swept_at"), "it has been swept")


def test_another_configuration_whose_sweep_can_not_be_run_is_refused(
    engine: Engine, directory: Directory, table: str
) -> None:
    wrong = configured("http://127.0.0.1:9/", more=table.replace("{since}", "{sinse}") + OFTEN)
    with scripted(answer(204)) as audit, running(engine, audit, more=table + OFTEN) as relay:
        with pytest.raises(ConfigError, match="sinse"):
            relay.reload(prepare(wrong))
        until(lambda: directory.pages > 2, "the old one is still worked by")


@pytest.fixture
def sweeper(engine: Engine, table: str) -> Sweeper:
    """One that looks when it is told."""
    stop, now, observer = threading.Event(), SystemClock().now, Observer()
    turns = scheduled(configured("http://127.0.0.1:9/", more=table + OFTEN))
    return Sweeper(work_of(Database(engine)), turns, stop=stop, now=now, observer=observer, steps=Steps(observer))


def test_who_pauses_the_api_or_the_source_pauses_its_sweep(
    engine: Engine, directory: Directory, table: str, sweeper: Sweeper
) -> None:
    config, database = configured("http://127.0.0.1:9/", more=table + OFTEN), Database(engine)

    def work(act: Literal["pause", "resume"], gate: Gate) -> None:
        number = commands.ask(database, act, gate, who="me", why="seen")
        execution.work_on(work_of(database, policies(config), config=config), number)

    for gate in (Gate(api="identity"), Gate(source="trivore")):
        work("pause", gate)
        sweeper.run_due()
        assert directory.pages == 0
        work("resume", gate)
    sweeper.run_due()
    assert directory.pages == 2


def broken(*_: object) -> None:
    raise OperationalError("SELECT", {}, ValueError("gone"))


@pytest.mark.parametrize(
    ("where", "bug", "error"),
    [
        ("relay.sweep.run.CompiledSweep.run", lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
        ("relay.store.sweeps.missing", broken, "the database: ValueError: gone"),
        ("relay.store.sweeps.is_due", lambda *_: 1 / 0, None),
    ],
    ids=["a bug", "the database", "a bug outside of a sweep"],
)
def test_what_ends_a_sweep_or_keeps_it_from_beginning_is_told(  # noqa: PLR0917  # fixtures
    engine: Engine,
    sweeper: Sweeper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    bug: Callable[..., object],
    error: str | None,
) -> None:
    monkeypatch.setattr(where, bug)
    sweeper.run_due()
    left = watermark(engine)
    assert (left.get("error"), left.get("lease_until")) == (error, None)
    if bug is broken:
        assert alerted(engine) == [("sweep_failed", "trivore USER", True)]
    else:
        assert any(message.startswith("step_failed step=sweep") for message in caplog.messages)


def test_what_one_has_added_that_broke_off_is_told_though_the_next_one_finds_nothing(
    engine: Engine, directory: Directory, sweeper: Sweeper
) -> None:
    directory.users = {f"u{n}": f"2026-01-01T00:00:0{n}Z" for n in range(4)}
    directory.statuses = [200, 404]
    sweeper.run_due()
    assert (watermark(engine)["missed"], watermark(engine)["compared_until"]) == (2, None)
    assert {kind for kind, _, firing in alerted(engine) if firing} == {"webhooks_missed", "sweep_failed"}
    assert (sweeper._observer.counts["sweep_missed"], sweeper._observer.counts["swept"]) == (2, 0)


def test_an_entity_that_can_not_be_taken_in_keeps_no_other_from_it_and_the_next_sweep_begins_there_again(
    engine: Engine, directory: Directory, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_of = CompiledSweep._event

    def failing(sweeping: CompiledSweep, listed: Listed, item: object, now: datetime) -> Event:
        if listed.id == "u2":
            raise ValueError("year 10000 is out of range")
        return event_of(sweeping, listed, item, now)

    monkeypatch.setattr(CompiledSweep, "_event", failing)
    directory.users = {f"u{n}": f"2026-01-01T00:00:0{n}Z" for n in range(4)}
    sweeper.run_due()
    assert [row["entity_id"] for row in rows(engine, "SELECT entity_id FROM inbox ORDER BY seq")] == ["u0", "u1", "u3"]
    left = watermark(engine)
    assert left["compared_until"] is None
    assert left["error"].startswith("1 entities could not be taken in, the first: id='u2': ValueError: year 10000")
    assert ("sweep_failed", "trivore USER", True) in alerted(engine)


def test_so_it_is_when_the_process_is_to_end(engine: Engine, directory: Directory, sweeper: Sweeper) -> None:
    directory.users = {f"u{n}": f"2026-01-01T00:00:0{n}Z" for n in range(4)}
    directory.before_page = lambda page: sweeper._stop.set() if page == 2 else None
    sweeper.run_due()
    left = watermark(engine)
    assert (left["missed"], left["error"]) == (count(engine, "inbox"), None)
    assert left["missed"] >= 2, "the first page, and the second, where it came before it was cut"
    assert alerted(engine) == [("webhooks_missed", "trivore USER", True)]


def test_a_relay_parses_one_page_at_a_time(engine: Engine, directory: Directory, table: str) -> None:
    with scripted(answer(204)) as audit, sweep_run.ONE_PAGE, running(engine, audit, more=table + OFTEN):
        until(lambda: directory.pages > 0, "a page is fetched")
        assert count(engine, "inbox") == 0, "another one is compared"
        sweep_run.ONE_PAGE.release()
        until(lambda: count(engine, "inbox") == 1, "its turn has come")
        until(lambda: sweep_run.ONE_PAGE.acquire(blocking=False), "and ends")
