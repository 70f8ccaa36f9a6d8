"""Wake-ups: an idle relay that hardly ever polls delivers at once, and a lost wake-up does no harm."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from datetime import timedelta
from itertools import pairwise

import msgspec
import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db import engine as engines
from inbox.db.link import REST_SECONDS, Notifier
from inbox.events.timestamps import time_text
from inbox.receiver.writer import GroupCommit
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.daemon.wake_up import Listener
from relay.observe import Observer
from relay.store.database import Database
from tests.helpers.daemon import Rig, make_config
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, connect_postgres
from tests.helpers.receiver import a_link, post_json, serve_receiver
from tests.helpers.relaying import run_relay
from tests.helpers.storing import START, an_event
from tests.helpers.traffic import never_greeting
from tests.helpers.waiting import until, until_async
from tests.helpers.webhooks import HEADERS, PATH, a_config, body, moment

AN_HOUR = 3600.0


@pytest.fixture
def hardly_ever_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that looks for work once an hour, and else when it is woken."""
    monkeypatch.setattr("relay.daemon.loop.BUSY_POLL_SECONDS", AN_HOUR)
    monkeypatch.setattr("relay.daemon.loop.IDLE_POLL_SECONDS", AN_HOUR)


@ON_BOTH
@pytest.mark.usefixtures("hardly_ever_looking")
def test_an_idle_relay_delivers_new_arrivals_at_once(rig: Rig, database_url: str) -> None:
    with serve_receiver(database_url) as port, rig.relay():
        for n in range(3):
            assert post_json(port, PATH, body("u1", moment(n)), dict(HEADERS)) == 200
            until(lambda: rig.kinds == ["delivered"] * (n + 1), "it is delivered")
        assert rig.observer.counts["hears_nothing"] == 0
    assert not listens()


@ON_POSTGRES
@pytest.mark.usefixtures("hardly_ever_looking")
def test_a_listener_whose_connection_ends_listens_again(rig: Rig, database_url: str) -> None:
    with (
        serve_receiver(database_url) as port,
        rig.relay() as relay,
        contextlib.closing(connect_postgres(database_url)) as hand,
    ):
        for n in range(2):
            until(lambda: relay._listener.wait == 0.0, "it hears")
            end = "SELECT pg_terminate_backend(pid, 5000)"
            until(lambda: listeners(hand, end) == {True}, "the listener's connection is ended")
            rig.until_told("hears_nothing", n + 1)
            assert post_json(port, PATH, body("u1", moment(n)), dict(HEADERS)) == 200
            until(lambda: rig.kinds == ["delivered"] * (n + 1), "it is delivered")


@ON_POSTGRES
@pytest.mark.usefixtures("hardly_ever_looking")
def test_a_listener_without_news_changes_its_connection(
    rig: Rig, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that a firewall has dropped hears nothing, without an error."""
    monkeypatch.setattr("relay.daemon.wake_up.QUIET_SECONDS", 0.3)
    with rig.relay(), contextlib.closing(connect_postgres(database_url)) as hand:
        first = listeners(hand)
        until(lambda: listeners(hand) - first, "another one listens")
        assert rig.observer.counts["hears_nothing"] == 0


def listeners(hand: psycopg.Connection, select: str = "SELECT pid") -> set[int]:
    """Return the pids of connections that listen, or another column of them."""
    found = hand.execute(f"{select} FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'")
    return {value for (value,) in found.fetchall()}


@ON_POSTGRES
@pytest.mark.parametrize("query", [{}, {"pooler": "transaction"}], ids=["switched off", "behind a pooler"])
def test_arrivals_are_found_by_polling(
    rig: Rig, database_url: str, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it sends nothing")

    monkeypatch.setattr("inbox.receiver.app.Notifier", never)
    engine = engines.connect(
        make_url(database_url).update_query_dict(query).render_as_string(hide_password=False), application="tests"
    )
    config = rig.config() if query else without_wake_ups(rig.config())
    relay = Relay(Database(engine), prepare(config), grace_seconds=5)
    with serve_receiver(database_url, without_wake_ups(a_config(database_url))) as port, run_relay(relay):
        assert post_json(port, PATH, body(), dict(HEADERS)) == 200
        until(lambda: rig.kinds == ["delivered"], "it is found by polling")
        assert not listens()
    engine.dispose()


def listens() -> bool:
    """Tell whether a relay of this process has a thread that hears of commits."""
    return any(thread.name == "wake-up" for thread in threading.enumerate())


def without_wake_ups(config: Config) -> Config:
    """The configuration with `wake_up = false`."""
    replace = msgspec.structs.replace
    return replace(config, database=replace(config.database, wake_up=False))


def test_an_idle_relay_does_not_wake_itself(database_url: str, engine: Engine) -> None:
    """Each commit of its own wakes it once: a round that commits though it did nothing would lead to another, for ever."""
    relay = Relay(Database(engine), prepare(make_config("http://127.0.0.1:9/")), grace_seconds=1)
    relay._describe()
    with contextlib.closing(sqlite3.connect(make_url(database_url).database or "")) as watching:
        while relay._cycle():
            pass
        before = watching.execute("PRAGMA data_version").fetchone()
        relay._cycle()
        assert watching.execute("PRAGMA data_version").fetchone() == before
    relay._generations.close()


class Looks(threading.Event):
    """A stop event that counts its waits."""

    times = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.times += 1
        return super().wait(timeout and min(timeout, 0.001))


def test_an_unchanged_file_wakes_no_relay(engine: Engine) -> None:
    stop, woken = Looks(), threading.Event()
    wakes: list[int] = []

    def wake() -> None:
        wakes.append(stop.times)
        woken.set()

    listener = threading.Thread(target=Listener(engine, wake, stop, Observer()).hear)
    listener.start()
    for n in range(3):
        assert woken.wait(60)
        woken.clear()
        until(lambda: stop.times > wakes[-1] + 10, "it looks at the file again and again")
        assert len(wakes) == n + 1
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE write_probe SET probed_at = '{time_text(START + timedelta(seconds=n))}'"))
    stop.set()
    listener.join(10)


@ON_POSTGRES
async def test_a_flood_of_commits_sends_few_notifications(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent_at: list[float] = []

    async def send(_: Notifier) -> float:
        sent_at.append(time.monotonic())
        return REST_SECONDS

    monkeypatch.setattr(Notifier, "_send", send)
    notifier = Notifier(a_link(database_url))
    while len(sent_at) < 6:
        notifier.wake_up()
        await asyncio.sleep(0)
    await notifier.close()
    assert min(later - earlier for earlier, later in pairwise(sent_at)) > 0.9 * REST_SECONDS


@ON_POSTGRES
async def test_intake_waits_for_no_notification(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with never_greeting() as (silent, has_come):
        nowhere = make_url(silent).set(drivername="postgresql+psycopg").render_as_string()
        notifier = Notifier(a_link(nowhere))
        writer = GroupCommit(a_link(database_url), SystemClock(), notifier=notifier)
        assert not (await writer.append([an_event(1)]))[0].duplicate
        await until_async(has_come, "the notifier waits for its server")
        for n in range(2, 50):
            assert not (await writer.append([an_event(n)]))[0].duplicate
        await writer.close()
        await notifier.close()
    assert [message for message in caplog.messages if not message.startswith("relays are not notified")] == []
