"""`inbox migrate` of a later version, on a million events, beside a receiver that takes in and a DBA who reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from inbox.db.migrate import head
from tests.helpers.databases import connect_postgres
from tests.helpers.later import ADDITIVE, INDEX, MadeUp, write_version
from tests.helpers.processes import INBOX, PATIENT, Program, site
from tests.helpers.tables import rows
from tests.helpers.traffic import Change, Line, Sender, endless
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

pytestmark = pytest.mark.long

EVENTS = 1_000_000
LONGEST_WAIT = 1.5
"""Seconds that a migration may add to a request: a lock is tried for no longer than one."""
SENT_IN_QUIET = 300
RECEIVERS_PATIENCE = 2.0
"""The lock timeout of its connections."""

MADE_UP = (ADDITIVE, INDEX)
AGAIN = MadeUp("0004", "Another column.", postgres="ALTER TABLE inbox ADD COLUMN country text")

_FILL = f"""
INSERT INTO inbox (source, dedup_key, event_type, action, entity_type, entity_id, occurred_at, received_at, routes,
                   content_type, body_bytes, body_sha256)
SELECT 'trivore', 'filled-' || n, 'UPDATE', 'update', 'USER', 'f' || n % 100000, now(), now(), ARRAY['everything'],
       'application/json', 2, '\\x00'
FROM generate_series(1, {EVENTS}) AS n
"""


def longest_wait(lines: list[Line]) -> float:
    """From a request to its answer, by the sender's own clock."""
    begun: dict[Change, float] = {}
    longest = 0.0
    for line in lines:
        event = line["entity"], line["occurred_at"]
        if line["outcome"] is None:
            begun[event] = line["at"]
        elif event in begun:
            longest = max(longest, line["at"] - begun.pop(event))
    return longest


@contextlib.contextmanager
def dba_reads(url: str) -> Iterator[None]:
    """A long transaction that has read the inbox: an ALTER waits for it, and whatever comes after waits for the ALTER."""
    with contextlib.closing(connect_postgres(url)) as dba, dba.transaction():
        dba.execute("LOCK TABLE inbox IN ACCESS SHARE MODE")
        yield


def with_patience(version: Path, timeout: str) -> Path:
    """This version, with another lock timeout."""
    file = version / "inbox" / "db" / "migrate.py"
    code = file.read_text(encoding="utf-8")
    assert code.count('LOCK_TIMEOUT = "1s"\n') == 1
    file.write_text(code.replace('LOCK_TIMEOUT = "1s"\n', f'LOCK_TIMEOUT = "{timeout}"\n'), encoding="utf-8")
    return version


def test_on_a_million_events_no_request_waits_long_and_none_is_lost(
    tmp_path: Path, postgres_database_url: str, postgres_engine: Engine
) -> None:
    """Half a minute. Then the same with the old lock timeout, 60 s: so that it is seen that this test would see it."""
    url = postgres_database_url
    with postgres_engine.begin() as connection:
        connection.execute(text(_FILL))
    later = write_version(tmp_path / "later", MADE_UP, after=head())
    patient = with_patience(write_version(tmp_path / "patient", (*MADE_UP, AGAIN), after=head()), "60s")
    with site(tmp_path, config_text(url)) as at:

        def migrate(version: Path) -> Program:
            return at.start(f"migrate-{version.name}", "-P", *INBOX, "migrate", PYTHONPATH=str(version))

        _, port = at.receiver(1, PATIENT)
        with Sender(tmp_path / "sends.jsonl", port, endless(), per_second=100) as sender:
            until(lambda: sender.acknowledged >= SENT_IN_QUIET, "some are sent while nothing else happens", within=60)
            quiet = longest_wait(sender.sends.lines())
            begin = len(sender.sends)
            with dba_reads(url):
                migrating = migrate(later)
                until(lambda: "try 2 of " in migrating.output or not migrating.runs, "it tries again", within=60)
                assert migrating.runs, migrating.output
            assert migrating.ends(120) == 0, migrating.output
            assert "the database was brought from 0001 to 0003" in migrating.output
            during = sender.sends.lines()[begin:]
            refused = sender.refused

            begin = len(sender.sends)
            with dba_reads(url):
                migrating = migrate(patient)
                until(lambda: sender.refused > refused or not migrating.runs, "a request has waited", within=60)
                assert migrating.runs, migrating.output
            assert migrating.ends(120) == 0, migrating.output
            in_the_old_way = longest_wait(sender.sends.lines()[begin:])
            sender.enough()
            until(lambda: sender.is_done, "the last request is answered")

    assert refused == 0
    assert longest_wait(during) < quiet + LONGEST_WAIT
    assert in_the_old_way > RECEIVERS_PATIENCE
    acknowledged = {(line["entity"], line["occurred_at"]) for line in sender.sends.lines() if line["outcome"] == "ok"}
    stored = [
        (row["entity_id"], row["body"])
        for row in rows(postgres_engine, "SELECT entity_id, body FROM inbox JOIN inbox_payload USING (seq)")
    ]
    assert len(stored) == len(acknowledged)
    assert acknowledged == {(entity, _told(body)) for entity, body in stored}


def _told(body: bytes) -> str:
    return str(body.split(b'"timestamp": "')[1].split(b'"')[0], "ascii")
