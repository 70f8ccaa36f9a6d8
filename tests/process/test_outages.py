"""Frozen processes and servers, failover to a standby, and a restore to an earlier moment."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from inbox.db import engine as engines
from inbox.db import unanswered
from relay.store.database import Database
from tests.docs.pages import the_block
from tests.helpers.agreement import facts_agree
from tests.helpers.daemon import running
from tests.helpers.databases import migrate_database, open_engine
from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM
from tests.helpers.processes import Program, Site, site
from tests.helpers.relaying import fill
from tests.helpers.tables import count, open_states, read_inbox
from tests.helpers.traffic import Change, Downstream, Sender, endless, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import ROUTE, config_text

BESIDE = '[routes.beside]\nsource = "trivore"\ndestination = "audit"\nordering = "strict"\n'
EVENTS = 40
ALSO_BESIDE = """
INSERT INTO open_delivery (seq, route, lane, occurred_at, state)
SELECT seq, 'beside', lane, occurred_at, state FROM open_delivery
"""
HELD_SECONDS = 25
"""The server's timeout for the frozen transaction; long enough to deliver the other route on a busy machine first."""


@pytest.mark.long
def test_a_frozen_relay_delays_only_its_own_route_until_the_server_ends_its_transaction(
    postgres_database_url: str, postgres_engine: Engine, tmp_path: Path
) -> None:
    engine = postgres_engine
    fill(postgres_database_url, events(EVENTS, entities=4))
    with engine.begin() as connection:
        connection.execute(text(ALSO_BESIDE))
    frozen = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.locks", postgres_database_url, ROUTE, str(HELD_SECONDS)]
    )
    try:
        assert os.WIFSTOPPED(os.waitpid(frozen.pid, os.WUNTRACED)[1])
        began = time.monotonic()
        with serving(tmp_path / "arrivals.jsonl") as downstream, running(engine, downstream, more=BESIDE):
            until(lambda: not left(engine, "beside"), "the other route is delivered", within=HELD_SECONDS)
            assert time.monotonic() - began < HELD_SECONDS
            assert left(engine, ROUTE) == EVENTS
            until(lambda: not left(engine, ROUTE), "its route is delivered", within=HELD_SECONDS + 20)
            facts_agree(engine)
    finally:
        frozen.kill()
        frozen.wait()


def left(engine: Engine, route: str) -> int:
    return count(engine, f"open_delivery WHERE route = '{route}'")


# --- Both sides give up a frozen server, but not a slow one


SLOWLY, STATEMENT = 0.3, text("SELECT pg_sleep(1)")
A_BUSY_MACHINE = 30.0
"""Additional seconds that a busy machine may take."""


@pytest.fixture(scope="module")
def server() -> Iterator[KillablePostgres]:
    with tempfile.TemporaryDirectory(prefix="inbox-relay-frozen-", dir=ROOM) as folder:
        Path(folder).chmod(0o755)
        with killable(Path(folder)) as made:
            yield made


@pytest.fixture
def frozen_engine(server: KillablePostgres) -> Iterator[Engine]:
    made = engines.connect(server.url("postgres"), application="tests")
    yield made
    made.dispose()


def test_a_thread_gives_up_a_frozen_server_and_its_pool_reconnects(
    server: KillablePostgres, frozen_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unanswered, "SILENT_SECONDS", SLOWLY)
    with frozen_engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with server.frozen():
            began = time.monotonic()
            with pytest.raises(OperationalError, match="has been silent") as raised:
                connection.execute(text("SELECT 1"))
            assert raised.value.connection_invalidated
            assert time.monotonic() - began < SLOWLY + unanswered.ASKED_SECONDS + A_BUSY_MACHINE
    with frozen_engine.connect() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE t (n int)"))
        with server.frozen(), pytest.raises(OperationalError, match="has been silent"):
            connection.commit()
    monkeypatch.setattr(unanswered, "ASKED_SECONDS", int(A_BUSY_MACHINE))
    with frozen_engine.connect() as connection:
        connection.execute(STATEMENT)  # a slow one


async def test_an_event_loop_gives_up_a_silent_statement(
    server: KillablePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines.connect_async(server.url("postgres"), application="tests")
    async with engine.connect() as connection:
        with monkeypatch.context() as hurry:
            hurry.setattr(unanswered, "SILENT_SECONDS", SLOWLY)
            with pytest.raises(OperationalError, match="has been silent"):
                await connection.execute(STATEMENT)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await engine.dispose()


# --- The primary dies under load; receiver and relay continue with the standby by the URL of the docs


DATABASE = "inbox"
SOME = 100
HOSTS = ("db1.example.com:5432", "db2.example.com:5432")


class Pair(msgspec.Struct):
    """A primary and its standby, with a sender, a receiver, a relay and a downstream."""

    primary: KillablePostgres
    standby: KillablePostgres
    sender: Sender
    downstream: Downstream
    place: Site
    programs: tuple[Program, ...]

    def acknowledgements(self) -> set[Change]:
        return {(line["entity"], line["occurred_at"]) for line in self.sender.sends.lines() if line["outcome"] == "ok"}

    def send_some(self) -> None:
        """Wait until `SOME` more events are acknowledged."""
        enough = self.sender.acknowledged + SOME
        until(lambda: self.sender.acknowledged >= enough, "webhooks are taken in", within=60)

    def read_changes(self) -> list[Change]:
        with open_engine(self.standby.url(DATABASE)) as engine:
            return [(event["entity"], event["occurred_at"]) for event in read_inbox(engine)]


def page_url() -> str:
    """Return the URL of docs/how-to/deploy.md."""
    url: str = tomllib.loads(the_block("docs/how-to/deploy.md", "toml", "target_session_attrs"))["database"]["url"]
    return url


def page_url_of(*servers: KillablePostgres) -> str:
    """Return the page's URL with the hosts and the user of this test."""
    url = page_url()
    for host, server in zip(HOSTS, servers, strict=True):
        assert url.count(host) == 1
        url = url.replace(host, str(server.sockets))
    return url.replace("inbox@/inbox", f"postgres@/{DATABASE}")


@contextlib.contextmanager
def start_pair(folder: Path) -> Iterator[Pair]:
    """Start a primary with a standby, a receiver, a relay and a sender, and wait for the first deliveries."""
    with contextlib.ExitStack() as stack:
        # not below pytest's own folder, see tests/proofs/faults/rig.py
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inbox-relay-pair-", dir=ROOM)))
        for name in ("primary", "standby"):
            (data / name).mkdir()
        primary = stack.enter_context(killable(data / "primary"))
        standby = stack.enter_context(killable(data / "standby", standby_of=primary))
        primary.create_database(DATABASE)
        migrate_database(primary.url(DATABASE))
        primary.wait_for_standby()
        downstream = stack.enter_context(serving(folder / "arrivals.jsonl"))
        config = config_text(page_url_of(primary, standby), downstream.url, schedule=("200ms", "1s"))
        at = stack.enter_context(site(folder, config))
        receiver, port = at.receiver(workers=1)
        relay = at.relay()
        sender = Sender(folder / "sends.jsonl", port, endless(), per_second=200)
        stack.callback(sender.stop)
        pair = Pair(primary, standby, sender, downstream, at, (receiver, relay))
        pair.send_some()
        until(lambda: len(downstream.events) >= SOME, "deliveries are made")
        yield pair


@pytest.mark.long
def test_a_synchronous_standby_loses_no_acknowledged_event_and_both_sides_go_on(tmp_path: Path) -> None:
    """Before the failover, read-only transactions work on the standby."""
    with start_pair(tmp_path) as pair:
        with open_engine(pair.standby.url(DATABASE)) as engine:
            database = Database(engine)
            for way in (database.snapshot, database.read, database.snapshot):
                with way() as transaction:
                    assert [
                        row.standby for row in transaction.execute(text("SELECT pg_is_in_recovery() AS standby"))
                    ] == [True]
        pair.primary.kill()
        pair.standby.promote()
        pair.send_some()
        pair.sender.enough()
        until(lambda: pair.sender.is_done, "the last is acknowledged")
        inbox = Counter(pair.read_changes())
        until(
            lambda: (
                {(line["entity"], line["occurred_at"]) for line in pair.downstream.arrivals.lines()} == inbox.keys()
            ),
            "everything is delivered",
        )
        assert all(program.runs for program in pair.programs)

    assert pair.acknowledgements() - inbox.keys() == set()
    assert max(inbox.values()) == 1


# --- Both sides go on with a database that was restored to an earlier moment


PAGE = "docs/how-to/back-up-and-restore.md"
PATIENCE = 90
EARLIER, LATER = events(30), events(60)[30:]


def engine_of(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool)


@contextlib.contextmanager
def working(folder: Path, url: str, downstream: Downstream) -> Iterator[tuple[Site, int]]:
    """Start both sides on a database; yield the site and the receiver's port."""
    folder.mkdir()
    with site(folder, config_text(url, downstream.url, schedule=("200ms", "1s"))) as place:
        _, port = place.receiver(workers=1)
        place.relay()
        yield place, port


def send(folder: Path, port: int, sent: list[tuple[str, str]], url: str) -> None:
    """Send events, and wait until they are acknowledged and delivered."""
    with Sender(folder / f"sends-{port}-{sent[0][1][-8:-1]}.jsonl", port, sent) as sender:
        until(lambda: sender.is_done, "all is acknowledged", within=PATIENCE)
    until(lambda: not open_states(engine_of(url)), "all is delivered", within=PATIENCE)


def read_changes(url: str) -> set[tuple[str, str]]:
    return {(event["entity"], event["occurred_at"]) for event in read_inbox(engine_of(url))}


@pytest.mark.long
def test_after_a_restore_lost_events_can_be_sent_again_as_new_ones(tmp_path: Path) -> None:
    """The settings are the page's, with the folders of this test."""
    with contextlib.ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inbox-relay-pitr-", dir=ROOM)))
        for folder in ("", "first", "second", "backup", "backup/wal"):
            (data / folder).mkdir(exist_ok=True)
            (data / folder).chmod(0o777)
        archiving, going_back = (
            settings(the_block(PAGE, "text", key), str(data / "backup"))
            for key in ("archive_command", "restore_command")
        )
        first = stack.enter_context(killable(data / "first", more=archiving))
        first.create_database("inbox")
        url = first.url("inbox")
        migrate_database(url)
        downstream = stack.enter_context(serving(tmp_path / "arrivals.jsonl"))
        with working(tmp_path / "before", url, downstream) as (_, port):
            first.base_backup(data / "backup" / "base")
            send(tmp_path, port, EARLIER, url)
            ((moment,),) = first.run("SELECT clock_timestamp()::text")
            send(tmp_path, port, LATER, url)
            ((segment,),) = first.run("SELECT pg_walfile_name(pg_switch_wal())")
            last = f"SELECT 1 FROM pg_stat_archiver WHERE last_archived_wal >= '{segment}'"
            until(lambda: first.run(last), "the log is archived", within=PATIENCE)
        first.stop()

        second = stack.enter_context(
            killable(
                data / "second",
                base=data / "backup" / "base",
                more={**going_back, "recovery_target_time": str(moment), "archive_mode": "off"},
            )
        )
        url = second.url("inbox")
        until(lambda: second.run("SELECT 1 WHERE NOT pg_is_in_recovery()"), "it is promoted", within=PATIENCE)
        assert read_changes(url) == set(EARLIER)
        with working(tmp_path / "after", url, downstream) as (place, port):
            assert place.invoke("relay", "verify").status == 0
            send(tmp_path, port, LATER, url)
            verified = place.invoke("relay", "verify")
            assert verified.status == 0, verified.stdout + verified.stderr
        arrived = Counter((line["entity"], line["occurred_at"]) for line in downstream.arrivals.lines())
    assert {event: arrived[event] for event in LATER} == dict.fromkeys(LATER, 2)
    assert all(arrived[event] >= 1 for event in EARLIER)


def settings(block: str, backup: str) -> dict[str, str]:
    lines = [line.partition(" = ") for line in block.strip().splitlines()]
    return {name: value.strip("'").replace("/backup", backup) for name, _, value in lines}
