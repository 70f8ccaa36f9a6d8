"""Ctrl-C in the middle of a long command: the exit says so, and the same command goes on or begins again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.copying.conftest import Databases, url_of
from tests.copying.installation import everything
from tests.helpers.processes import Site, site
from tests.helpers.reading import count, rows
from tests.helpers.storing import Intake, an_event
from tests.helpers.webhooks import config_text

EVENTS = 3000
AGES = '\n[retention]\npayloads = "30d"\nattempts = "30d"\nevents = "30d"\n'

_PRUNE = """
import os, signal, sys
from relay.store import retention
write, calls = retention._write, []
def counted(connection, changed):
    write(connection, changed)
    calls.append(changed)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)  # the batch is deleted, the commit is not
        signal.pause()
retention._write = counted
sys.argv[1:] = ["prune", "--kind", "events", "--reason", "too large", "--yes"]
from relay.cli.inbox import main
main()
"""

_COPY = """
import os, signal, sys
from inbox.db import copying
insert = copying._insert
def interrupted(target, table, rows):
    insert(target, table, rows)
    if table.name == "delivery_log":
        os.kill(os.getpid(), signal.SIGINT)  # after inbox and payloads
        signal.pause()
copying._insert = interrupted
sys.argv[1:] = ["copy", "--to", "env:THERE", "--yes"]
from relay.cli.inbox import main
main()
"""


def interrupted(place: Site, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `inbox` that gets SIGINT, as from a terminal."""
    return subprocess.run(
        [sys.executable, "-c", script, "inbox"],
        env=os.environ | place.environment | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_person_stops_pruning_and_goes_on_later(engine: Engine, database_url: str, tmp_path: Path) -> None:
    Intake(database_url).append(*(an_event(n, routes=[]) for n in range(1, EVENTS + 1)))
    with site(tmp_path, config_text(database_url) + AGES) as place:
        stopped = interrupted(place, _PRUNE)
        left = count(engine, "inbox")
        assert 1 < left < EVENTS
        assert stopped.returncode == 1, stopped
        assert "Traceback" not in stopped.stderr
        (said, number) = re.findall(r"stopped after (\d+); `relay continue --command (\d+)` goes on", stopped.stderr)[0]
        assert int(said) == EVENTS - left, "the batch at work came back"
        assert count(engine, "pruner WHERE held_by IS NULL") == 1, "nobody waits for its lease"
        again = place.invoke("relay", "continue", "--command", number, "--reason", "go on", "--yes")
        assert again.status == 0, again
    assert rows(engine, "SELECT seq FROM inbox") == [{"seq": EVENTS}], "the newest stays"


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_a_person_stops_a_copy_and_nothing_of_it_stays(
    databases: Databases, templates: dict[str, str], tmp_path: Path, kind: str
) -> None:
    source = databases.open(databases.new("sqlite", templates["sqlite"]))
    source.dispose()
    url = databases.new(kind)
    with site(tmp_path, config_text(url_of(source))) as place:
        stopped = interrupted(place, _COPY, THERE=url)
        assert stopped.returncode == 1, stopped
        assert stopped.stderr.endswith("interrupted, and the target is empty; the same command begins again\n"), stopped
        there = databases.open(url)
        assert count(there, "inbox") == 0
        there.dispose()
        done = place.invoke("inbox", "copy", "--to", "env:THERE", "--yes", THERE=url)
        assert done.status == 0, done.stderr
    assert everything(databases.open(url)) == everything(source)
