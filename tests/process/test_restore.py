"""A database that was restored to a moment in the past is one that both sides go on with.

Dumps: tests/docs/test_pages_on_postgres.py.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

from tests.docs.pages import the_block
from tests.helpers.databases import migrate_database
from tests.helpers.killable_postgres import killable
from tests.helpers.machine import ROOM
from tests.helpers.processes import Site, site
from tests.helpers.tables import open_states, read_inbox
from tests.helpers.traffic import Downstream, Sender, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

pytestmark = pytest.mark.long

PAGE = "docs/how-to/back-up-and-restore.md"
PATIENCE = 90
EARLIER, LATER = events(30), events(60)[30:]


def engine_of(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool)


@contextlib.contextmanager
def working(folder: Path, url: str, downstream: Downstream) -> Iterator[tuple[Site, int]]:
    """Both sides on a database; gives the port of the receiver."""
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


def in_the_inbox(url: str) -> set[tuple[str, str]]:
    return {(event["entity"], event["occurred_at"]) for event in read_inbox(engine_of(url))}


def test_back_at_a_moment_later_events_are_lost_and_sent_again_they_are_new(tmp_path: Path) -> None:
    """The page's own settings, with the folders of this test."""
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
        assert in_the_inbox(url) == set(EARLIER)
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
