"""A primary with its standby, and both sides at work on them with the URL of the docs."""

from __future__ import annotations

import contextlib
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

from inbox.db import migrate
from inbox.db.engine import connect
from tests.docs.pages import the_block
from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM
from tests.helpers.processes import Program, Site, site
from tests.helpers.tables import stored
from tests.helpers.traffic import Change, Downstream, Script, Sender, always_well, endless, serving
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
        enough = self.sender.acknowledged() + SOME
        until(lambda: self.sender.acknowledged() >= enough, "webhooks are taken in", within=60)

    def in_the_inbox(self) -> list[Change]:
        engine = engine_of(self.standby)
        return [(event["entity"], event["occurred_at"]) for event in stored(engine)]


def engine_of(server: KillablePostgres) -> Engine:
    return create_engine(server.url(DATABASE), poolclass=NullPool)


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
def at_work(
    folder: Path,
    *,
    synchronous: bool,
    filled: Callable[[Engine], None] = lambda _: None,
    script: Script = always_well,
) -> Iterator[Pair]:
    """A primary with a standby, a receiver, a relay and a sender, which have all begun.

    `filled` puts rows into the new database; `script` is of the downstream service.
    """
    with contextlib.ExitStack() as stack:
        # not below pytest's own folder: see tests/proofs/faults/rig.py
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inbox-relay-pair-", dir=ROOM)))
        for name in ("primary", "standby"):
            (data / name).mkdir()
        primary = stack.enter_context(killable(data / "primary"))
        standby = stack.enter_context(killable(data / "standby", standby_of=primary))
        primary.create_database(DATABASE)
        migrating = connect(primary.url(DATABASE), application="tests")
        migrate.upgrade(migrating)
        filled(migrating)
        migrating.dispose()
        primary.wait_for_standby(synchronous=synchronous)
        downstream = stack.enter_context(serving(folder / "arrivals.jsonl", script))
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
