"""The previous release and a later version side by side, under load: nothing is lost or repeated, and the proxy refuses nobody.

Senders also repeat old events, and some calls fail at first: each version meets events and attempts that the other stored.

The later version is this checkout with the example of docs/how-to/add-a-column.md: two migrations, and code that needs them.
The previous release is that of CHANGELOG.md; as long as there is none, this checkout is in its place.
"""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.docs.worked_examples import apply
from tests.helpers import checkers
from tests.helpers.databases import is_postgres
from tests.helpers.later import ROOT, name_version, write_previous, write_version
from tests.helpers.processes import GUNICORN, INBOX, RELAY, Program, Site, free_port, is_ready, site
from tests.helpers.proxies import PATIENCE, Ports, proxy
from tests.helpers.scripted import CERTIFICATE
from tests.helpers.tables import count, facts, read_inbox, rows
from tests.helpers.traffic import Change, Downstream, Line, Sender, endless, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

LATER = "9999.0"
LATER_FOLDER = "newer"
SIGN = "a receiver of the later version"
"""Words that it writes when it starts."""
STEP = 15
"""Events that are received and delivered between two steps, at least."""
FAILS_AT_FIRST = 11
"""One event in so many is delivered by its third attempt."""
BUSY_MACHINE = {f"timeout {PATIENCE}": "timeout 10s"}
"""The proxy's own patience with a sender, which other tests shorten."""


class Version:
    """The programs of a version, of which any number may run at one site."""

    def __init__(self, folder: Path, place: Site) -> None:
        self._folder, self._place = folder, place

    def start(self, *arguments: str) -> Program:
        """Python looks for packages in the folder where it was started only without `-P`, and gunicorn always."""
        here = self._folder
        return self._place.start_in(here, here.name, "-P", *arguments, PYTHONPATH=str(here))

    def receiver(self, port: int) -> Program:
        program = self.start(*GUNICORN, "--bind", f"127.0.0.1:{port}", "--workers", "1")
        until(lambda: is_ready(port) or not program.runs, "the receiver is ready")
        assert (SIGN in program.output) == (self._folder.name == LATER_FOLDER), program.output
        return program

    def relay(self) -> Program:
        program = self.refused_relay()
        program.writes("started", within=60)
        return program

    def refused_relay(self) -> Program:
        """A relay that has to end by itself."""
        return self.start(*RELAY, "run")

    def migrate(self, *options: str) -> str:
        program = self.start(*INBOX, "migrate", *options)
        assert program.ends(60) == 0, program.output
        return program.output


def the_later_version(folder: Path) -> Path:
    """This checkout with a column more, which relays write and, in the end, must write."""
    write_version(folder, (), after="")
    shutil.copy(ROOT / "CHANGELOG.md", folder)
    apply("docs/how-to/add-a-column.md", folder)
    name_version(folder, LATER)
    with (folder / "inbox" / "gunicorn_settings.py").open("a", encoding="utf-8") as settings:
        settings.write(f"\nfrom inbox.observe.logs import write_stderr\n\nwrite_stderr({SIGN!r})\n")
    return folder


def going_on(sender: Sender, downstream: Downstream) -> Callable[[str], None]:
    """A step of the upgrade, after which events still arrive at both ends."""

    def wait(step: str) -> None:
        received, delivered = sender.acknowledged, len(downstream.events)
        until(
            lambda: sender.acknowledged >= received + STEP and len(downstream.events) >= delivered + STEP,
            f"events arrive: {step}",
            within=60,
        )

    return wait


def with_repeats(events: Iterable[Change]) -> Iterator[Change]:
    """Send each fifth event again, at half of the time since: sooner or later that is one of the version before."""
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
    """Both versions ran, and had to do with events and attempts that are not over at once."""
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
        new = Version(the_later_version(tmp_path / LATER_FOLDER), place)
        receivers = {port: old.receiver(port) for port in (ports.receiver, ports.second or 0)}
        old_relay = old.relay()
        tls = ssl.create_default_context(cafile=str(CERTIFICATE))
        sent = with_repeats(endless())
        sender = Sender(tmp_path / "sends.jsonl", ports.tls, sent, per_second=50, timeout=60, tls=tls)
        goes_on = going_on(sender, downstream)
        migrating: set[int] = set()

        def migrate(step: str, *options: str) -> str:
            """Migrate, and note the requests meanwhile, which may wait for its locks."""
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
            assert old.refused_relay().ends(60) == 2, "there is no way back"
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
