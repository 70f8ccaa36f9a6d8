"""Upgrades: two versions side by side under load, a migration of a large inbox, and the files of a release.

The later version is this checkout with the example of docs/how-to/add-a-column.md: two migrations, and code that needs them.
The previous one is the last release of CHANGELOG.md, or this checkout while there is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import ssl
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.db.migrate import head
from tests.docs.pages import ROOT, apply
from tests.helpers import checkers
from tests.helpers.databases import connect_postgres, is_postgres
from tests.helpers.machine import ADDITIVE, INDEX, MadeUp, name_version, write_previous, write_version
from tests.helpers.processes import GUNICORN, INBOX, PATIENT, RELAY, Program, Site, free_port, is_ready, site
from tests.helpers.proxies import PATIENCE, Ports, proxy
from tests.helpers.scripted import CERTIFICATE
from tests.helpers.tables import count, facts, read_inbox, rows
from tests.helpers.traffic import Change, Downstream, Line, Sender, endless, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

LATER = "9999.0"
LATER_FOLDER = "newer"
SIGN = "a receiver of the later version"
"""Its log line at start."""
STEP = 15
"""Minimum number of events received and delivered between two steps."""
FAILS_AT_FIRST = 11
"""One event in this many is delivered by its third attempt."""
BUSY_MACHINE = {f"timeout {PATIENCE}": "timeout 10s"}
"""The proxy's usual timeout for senders, which other tests shorten."""


class Version:
    """The programs of one version at a site."""

    def __init__(self, folder: Path, place: Site) -> None:
        self._folder, self._place = folder, place

    def start(self, *arguments: str) -> Program:
        """Start a program of this version; gunicorn imports packages from its working folder despite `-P`."""
        here = self._folder
        return self._place.start_in(here, here.name, "-P", *arguments, PYTHONPATH=str(here))

    def receiver(self, port: int) -> Program:
        program = self.start(*GUNICORN, "--bind", f"127.0.0.1:{port}", "--workers", "1")
        until(lambda: is_ready(port) or not program.runs, "the receiver is ready")
        assert (SIGN in program.output) == (self._folder.name == LATER_FOLDER), program.output
        return program

    def relay(self) -> Program:
        program = self.start_refused_relay()
        program.writes("started", within=60)
        return program

    def start_refused_relay(self) -> Program:
        """Start a relay that has to end by itself."""
        return self.start(*RELAY, "run")

    def migrate(self, *options: str) -> str:
        program = self.start(*INBOX, "migrate", *options)
        assert program.ends(60) == 0, program.output
        return program.output


def write_later_version(folder: Path) -> Path:
    """Write this checkout with another column, which relays may write at first and finally must."""
    write_version(folder, (), after="")
    shutil.copy(ROOT / "CHANGELOG.md", folder)
    apply("docs/how-to/add-a-column.md", folder)
    name_version(folder, LATER)
    with (folder / "inbox" / "gunicorn_settings.py").open("a", encoding="utf-8") as settings:
        settings.write(f"\nfrom inbox.observe.logs import write_stderr\n\nwrite_stderr({SIGN!r})\n")
    return folder


def going_on(sender: Sender, downstream: Downstream) -> Callable[[str], None]:
    """Make a function that waits until events arrive at both ends after a step of the upgrade."""

    def wait(step: str) -> None:
        received, delivered = sender.acknowledged, len(downstream.events)
        until(
            lambda: sender.acknowledged >= received + STEP and len(downstream.events) >= delivered + STEP,
            f"events arrive: {step}",
            within=60,
        )

    return wait


def with_repeats(events: Iterable[Change]) -> Iterator[Change]:
    """Yield the events and, after every fifth, the one halfway back: in time, one that the other version stored."""
    sent: list[Change] = []
    for event in events:
        sent.append(event)
        yield event
        if len(sent) % 5 == 0:
            yield sent[len(sent) // 2]


def failing_at_first(seq: int, attempt: int) -> int:
    return 503 if seq % FAILS_AT_FIRST == 0 and attempt <= 2 else 200


def assert_nothing_lost(engine: Engine, sends: Sequence[Line], arrivals: Sequence[Line]) -> None:
    kept, log = read_inbox(engine), facts(engine)
    assert checkers.find_unstored(sends, kept) == []
    assert checkers.find_two_numbers(sends, kept) == []
    assert checkers.find_taken_as_new_twice(sends) == []
    assert checkers.find_unfinished(kept, log) == []
    assert checkers.find_out_of_order(arrivals, log) == []
    assert checkers.find_repeats(arrivals) == []
    assert checkers.find_attempts_called_twice(arrivals, log) == []
    assert checkers.find_unexplained_repeats(arrivals, log) == []


def assert_each_met_the_other(engine: Engine, sends: Sequence[Line], arrivals: Sequence[Line]) -> None:
    """Check that both versions ran and met events and attempts of the other."""
    ran = rows(engine, "SELECT version, python FROM relay_node ORDER BY started_at")
    assert [row["version"] == LATER for row in ran] == [False, False, True]
    assert {row["python"] for row in ran[:2]} == {"unknown"}
    assert {line["attempt"] for line in arrivals} == {1, 2, 3}
    assert len([line for line in sends if line.get("answer") == "duplicate"]) >= STEP


@pytest.mark.long
def test_an_upgrade_under_load_loses_and_repeats_nothing_and_has_no_gap(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    ports = Ports(free_port(), free_port(), free_port(), second=free_port())
    with (
        serving(tmp_path / "arrivals.jsonl", failing_at_first) as downstream,
        site(tmp_path, config_text(database_url, downstream.url, schedule=("2s", "4s"))) as place,
        proxy("nginx", tmp_path, ports, BUSY_MACHINE),
    ):
        old = Version(write_previous(tmp_path / "older"), place)
        new = Version(write_later_version(tmp_path / LATER_FOLDER), place)
        receivers = {port: old.receiver(port) for port in (ports.receiver, ports.second or 0)}
        old_relay = old.relay()
        tls = ssl.create_default_context(cafile=str(CERTIFICATE))
        sent = with_repeats(endless())
        sender = Sender(tmp_path / "sends.jsonl", ports.tls, sent, per_second=50, timeout=60, tls=tls)
        goes_on = going_on(sender, downstream)
        migrating: set[int] = set()

        def migrate(step: str, *options: str) -> str:
            """Migrate and note the requests sent meanwhile, which may wait for its locks."""
            begin = len(sender.sends)
            told = new.migrate(*options)
            goes_on(step)
            migrating.update(range(begin, len(sender.sends) + 1))
            return told

        try:
            goes_on("the old version alone")
            assert "--contract" in migrate("the old version in the new schema")
            restarted = old.relay()
            assert old_relay.stop(30) == 0
            goes_on("the old relay, started again in the new schema")
            for port, receiver in receivers.items():
                assert receiver.stop() == 0
                goes_on("one receiver alone")
                receivers[port] = new.receiver(port)
                goes_on("the next one")
            new_relay = new.relay()
            goes_on("both relays")
            assert restarted.stop(30) == 0
            goes_on("the new version alone")
            migrate("the new version in its own schema", "--contract")
            assert old.start_refused_relay().ends(60) == 2, "there is no way back"
            sender.enough()
            until(lambda: sender.is_done, "the last request is answered", within=60)
            until(lambda: count(engine, "open_delivery") == 0, "everything is delivered", within=60)
            assert new_relay.stop(30) == 0
            assert [receiver.stop() for receiver in receivers.values()] == [0, 0]
        finally:
            sender.stop()
        sends, arrivals, logs = sender.sends.lines(), downstream.arrivals.lines(), place.logs()

    refusals = [line for line in sends if line["outcome"] not in {None, "ok"}]
    assert checkers.find_improper_refusals(sends) == [], "a 503 is the receiver's own; the proxy's would be a gap"
    assert {line["outcome"] for line in refusals} <= {"failed"}
    assert not is_postgres(database_url) or {line["n"] for line in refusals} <= migrating
    assert_nothing_lost(engine, sends, arrivals)
    assert checkers.find_complaints(logs) == []
    assert_each_met_the_other(engine, sends, arrivals)


# --- `inbox migrate` on a million events while a receiver takes in webhooks and a DBA reads


EVENTS = 1_000_000
LONGEST_WAIT = 1.5
"""Seconds that a migration may add to a request; its lock timeout is one second."""
SENT_IN_QUIET = 300
RECEIVERS_PATIENCE = 2.0
"""Lock timeout of a receiver's connections, in seconds."""

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
    """Return the longest time from a request to its response, in seconds of the sender's clock."""
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
    """Hold a long transaction that has read the inbox: an ALTER waits for it, and later statements wait for the ALTER."""
    with contextlib.closing(connect_postgres(url)) as dba, dba.transaction():
        dba.execute("LOCK TABLE inbox IN ACCESS SHARE MODE")
        yield


def with_patience(version: Path, timeout: str) -> Path:
    """Give this version another lock timeout and return it."""
    file = version / "inbox" / "db" / "migrate.py"
    code = file.read_text(encoding="utf-8")
    assert code.count('LOCK_TIMEOUT = "1s"\n') == 1
    file.write_text(code.replace('LOCK_TIMEOUT = "1s"\n', f'LOCK_TIMEOUT = "{timeout}"\n'), encoding="utf-8")
    return version


@pytest.mark.long
def test_a_migration_of_a_million_events_delays_requests_briefly_and_loses_none(
    tmp_path: Path, postgres_database_url: str, postgres_engine: Engine
) -> None:
    """Negative control: with a lock timeout of 60 s, requests wait too long."""
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
    assert acknowledged == {(entity, msgspec.json.decode(body)["timestamp"]) for entity, body in stored}


# --- `make release` and `make sbom` give the same bytes each time, with all runtime files and no others


VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.long
def test_a_release_is_built_from_the_commit_and_passes_its_own_checks(tmp_path: Path) -> None:
    """The script itself builds twice, with another time, umask and time zone, and compares the bytes."""
    folder = tmp_path / "dist"
    made = run(".ci/release", folder)
    assert made.returncode == 0, made.stdout + made.stderr
    lines = (line.split() for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    sums = {name: digest for digest, name in lines}
    wheel, source = f"inbox_relay-{VERSION}-py3-none-any.whl", f"inbox_relay-{VERSION}.tar.gz"
    assert sums.keys() == {wheel, source, "requirements-runtime.lock", "sbom.json"}
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sums} == sums
    with zipfile.ZipFile(folder / wheel) as packed:
        assert set(run("git", "ls-files", "inbox", "relay").stdout.split()) <= set(packed.namelist())
        assert "inbox/migrations/versions/0001_initial.py" in packed.namelist()
    with tarfile.open(folder / source) as archive:
        assert {(each.uid, each.gid, each.uname) for each in archive.getmembers()} == {(0, 0, "")}
        assert len({each.mtime for each in archive.getmembers()}) == 1
