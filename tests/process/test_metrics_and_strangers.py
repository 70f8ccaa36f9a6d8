"""The metrics of real processes on a machine that others use: what they prepare, what they connect to, whom the exporter is."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.helpers.metrics import exporter_of, metrics_at, scrape, served, total
from tests.helpers.processes import GUNICORN, free_port, site
from tests.helpers.receiver import ask, status_of, webhook
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

STRANGER = 65534
"""The uid and gid of `nobody` nearly everywhere; root can be anybody without an account."""
SHARED = next(path for path in (Path("/dev/shm"), Path(tempfile.gettempdir())) if path.is_dir())  # noqa: S108  # the place attacked
"""A folder that everybody can write to."""

TOUCHES = (
    "open os.chmod os.chown os.link os.listdir os.mkdir os.remove os.rename os.rmdir os.scandir os.symlink os.truncate"
)
"""The events of Python's audit hooks (PEP 578) that tell of a file or a folder."""

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user takes part")


def identity(pid: int) -> dict[str, list[int]]:
    """Real, effective, saved and file system ids, and the supplementary groups."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: [int(each) for each in value.split()] for name, _, value in lines if name in {"Uid", "Gid", "Groups"}}


@contextmanager
def trickling(port: int, number: int) -> Iterator[None]:
    """So many connections: half say nothing, half go on with a request that never becomes whole."""
    with ExitStack() as leaving:
        connections = [leaving.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(number)]
        for connection in connections[::2]:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: a")
        ended = threading.Event()

        def drip() -> None:
            while not ended.wait(0.05):
                for connection in connections[::2]:
                    try:
                        connection.sendall(b"a")
                    except OSError:
                        continue

        thread = threading.Thread(target=drip)
        thread.start()
        leaving.callback(thread.join)
        leaving.callback(ended.set)
        yield


def test_a_scrape_is_answered_beside_connections_that_say_nothing_or_drip(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    port, more = metrics_at("relay")
    with site(tmp_path, config_text(sqlite_database_url) + more) as place:
        relay = place.relay()
        until(lambda: served(port), "metrics are served")
        with trickling(port, 200):
            assert "relay_facts_total" in scrape(port)
        assert "Traceback" not in relay.output


COUNTS = """
from inbox.observe.recorder import exporter_at, make_recorder
from inbox.observe.metrics import RECEIVED, RECEIVER
watch()
exporter = exporter_at(("127.0.0.1", int(sys.argv[1])))
exporter.ensure()
meters = make_recorder(RECEIVER)
meters.count(RECEIVED, "trivore")
meters.close()
input()
exporter.stop()
"""
SERVES = """
from inbox.observe.exporter import main
watch()
main(["127.0.0.1", sys.argv[1], str(os.geteuid()), str(os.getegid()), "text"])
"""


@pytest.mark.parametrize("program", [COUNTS, SERVES], ids=["counts", "serves"])
def test_neither_who_counts_nor_who_serves_touches_a_file_or_folder(program: str) -> None:
    """So there is none that others could prepare, fill, or put another in the place of."""
    port = free_port()
    watched = f"""
import os, sys
def watch():
    told = {TOUCHES!r}.split()
    sys.addaudithook(lambda event, values: print(event, *values, flush=True) if event in told else None)
"""
    command = [sys.executable, "-c", watched + program, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        until(lambda: served(port) is not None, "metrics are served")
        assert running.communicate("\n", timeout=20)[0] == ""
    assert running.returncode == 0


def as_stranger(folder: Path, script: str) -> None:
    """Run a line of shell as another user."""
    subprocess.run(["sh", "-ec", script], cwd=folder, user=STRANGER, group=STRANGER, extra_groups=[], check=True)


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every entry below a folder, with owner, mode and content; links are not followed."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_uid,
            path.lstat().st_mode,
            bytes(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


@only_root
def test_what_another_user_has_prepared_is_neither_followed_nor_touched(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    """Links under every name that earlier versions took: to a folder, and as lock and as file of counts in one."""
    victim, name = tmp_path / "victim", f"inbox-metrics-{os.getpid()}-{tmp_path.name}"
    victim.mkdir()
    (victim / "kept.db").write_bytes(b"kept")
    prepared = [SHARED / f"{name}-{kind}" for kind in ("folder", "lock", "db", "empty")]
    try:
        as_stranger(
            SHARED,
            f"ln -s {victim} {name}-folder\n"
            f"mkdir {name}-lock {name}-db {name}-empty\n"
            f"ln -s {victim}/made {name}-lock/lock\n"
            f"touch {name}-db/lock && ln -s {victim}/kept.db {name}-db/counter_1.db\n",
        )
        before = contents(victim), [contents(folder) for folder in prepared]
        port, more = metrics_at("relay")
        with site(tmp_path, config_text(sqlite_database_url) + more) as place:
            relay = place.relay()
            until(lambda: served(port), "metrics are served")
            relay.clean_up()
        assert (contents(victim), [contents(folder) for folder in prepared]) == before
        assert all(folder.is_symlink() or folder.is_dir() for folder in prepared)
    finally:
        for folder in prepared:
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder, ignore_errors=True)


@only_root
def test_the_exporter_has_no_more_rights_than_the_workers(sqlite_database_url: str, tmp_path: Path) -> None:
    """As `gunicorn --user nobody --group nogroup` runs when root starts it; it reads what they count all the same."""
    port, more = metrics_at("receiver")
    folder = Path(tempfile.mkdtemp())  # pytest's own are root's alone
    try:
        shutil.copy(sqlite_database_url.removeprefix("sqlite:///"), folder / "inbox.db")
        for path in (folder, *folder.iterdir()):
            os.chown(path, STRANGER, STRANGER)
        with site(tmp_path, config_text(f"sqlite:///{folder}/inbox.db") + more) as place:
            started = (*GUNICORN, "--user", str(STRANGER), "--group", str(STRANGER))
            in_groups = (
                "import os, sys; os.setgroups([4, 27]); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
            )
            receiver, webhooks = place.receiver(1, ("-c", in_groups, *started), besides=1)
            assert identity(receiver.pid)["Groups"] == [4, 27]
            exporter = exporter_of(receiver)
            until(lambda: served(port), "metrics are served")
            assert identity(exporter) == {"Uid": [STRANGER] * 4, "Gid": [STRANGER] * 4, "Groups": []}
            assert status_of(ask(webhooks, webhook())) == 200
            until(lambda: total(scrape(port), "inbox_received_total") == 1, "it is counted")
    finally:
        shutil.rmtree(folder)
