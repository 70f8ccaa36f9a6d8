"""The primary dies under load and its standby takes over: receiver and relay go on by themselves, with the URL of the docs."""

from __future__ import annotations

import contextlib
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import text

from inbox.db.engine import connect
from relay.store.database import Database
from tests.docs.pages import the_block
from tests.helpers.databases import migrate_database, open_engine
from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM
from tests.helpers.processes import Program, Site, site
from tests.helpers.tables import read_inbox
from tests.helpers.traffic import Change, Downstream, Sender, endless, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

DATABASE = "inbox"
SOME = 100
HOSTS = ("db1.example.com:5432", "db2.example.com:5432")


class Pair(msgspec.Struct):
    """Two servers, and what works with them."""

    primary: KillablePostgres
    standby: KillablePostgres
    sender: Sender
    downstream: Downstream
    place: Site
    programs: tuple[Program, ...]

    def acknowledged(self) -> set[Change]:
        return {(line["entity"], line["occurred_at"]) for line in self.sender.sends.lines() if line["outcome"] == "ok"}

    def send_some(self) -> None:
        """Until so many more were acknowledged."""
        enough = self.sender.acknowledged + SOME
        until(lambda: self.sender.acknowledged >= enough, "webhooks are taken in", within=60)

    def in_the_inbox(self) -> list[Change]:
        with open_engine(self.standby.url(DATABASE)) as engine:
            return [(event["entity"], event["occurred_at"]) for event in read_inbox(engine)]


def page_url() -> str:
    """The URL that docs/how-to/deploy.md gives."""
    url: str = tomllib.loads(the_block("docs/how-to/deploy.md", "toml", "target_session_attrs"))["database"]["url"]
    return url


def documented_url(*servers: KillablePostgres) -> str:
    """The page's URL, with the hosts and the user of this test."""
    url = page_url()
    for host, server in zip(HOSTS, servers, strict=True):
        assert url.count(host) == 1
        url = url.replace(host, str(server.sockets))
    return url.replace("inbox@/inbox", f"postgres@/{DATABASE}")


@contextlib.contextmanager
def at_work(folder: Path, *, synchronous: bool) -> Iterator[Pair]:
    """A primary with a standby, a receiver, a relay and a sender, which have all begun."""
    with contextlib.ExitStack() as stack:
        # not below pytest's own folder: see tests/proofs/faults/rig.py
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inbox-relay-pair-", dir=ROOM)))
        for name in ("primary", "standby"):
            (data / name).mkdir()
        primary = stack.enter_context(killable(data / "primary"))
        standby = stack.enter_context(killable(data / "standby", standby_of=primary))
        primary.create_database(DATABASE)
        migrate_database(primary.url(DATABASE))
        primary.wait_for_standby(synchronous=synchronous)
        downstream = stack.enter_context(serving(folder / "arrivals.jsonl"))
        config = config_text(documented_url(primary, standby), downstream.url, schedule=("200ms", "1s"))
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
def test_behind_a_synchronous_standby_nothing_acknowledged_is_lost_and_everything_goes_on(tmp_path: Path) -> None:
    """Before, reports read the standby: no transaction of theirs asks for a thing that only a primary gives."""
    with at_work(tmp_path, synchronous=True) as pair:
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
        inbox = Counter(pair.in_the_inbox())
        until(
            lambda: (
                {(line["entity"], line["occurred_at"]) for line in pair.downstream.arrivals.lines()} == inbox.keys()
            ),
            "everything is delivered",
        )
        assert all(program.runs for program in pair.programs)

    assert pair.acknowledged() - inbox.keys() == set()
    assert max(inbox.values()) == 1


@pytest.mark.long
def test_behind_an_asynchronous_one_that_was_late_the_same_test_sees_what_is_lost(tmp_path: Path) -> None:
    """Ten seconds."""
    with at_work(tmp_path, synchronous=False) as pair:
        pair.standby.stop()
        pair.send_some()
        pair.primary.kill()
        pair.standby.start()
        pair.standby.promote()
        pair.sender.enough()
        until(lambda: pair.sender.is_done, "the last is acknowledged")
        assert len(pair.acknowledged() - set(pair.in_the_inbox())) > SOME / 2


@pytest.mark.parametrize("name", HOSTS)
def test_the_url_of_the_page_reaches_the_driver_with_every_host(name: str) -> None:
    engine = connect(page_url(), application="tests")
    _, options = engine.dialect.create_connect_args(engine.url)
    host, port = name.split(":")
    assert host in options["host"].split(",")
    assert port in options["port"].split(",")
    assert options["target_session_attrs"] == "read-write"
