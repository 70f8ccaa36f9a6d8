"""Patroni replaces its leader under load: no acknowledged event is lost, and no program is restarted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from inbox.db import migrate
from inbox.db.engine import connect
from tests.helpers import checkers, network
from tests.helpers.agreement import disagreements, list_enrolled
from tests.helpers.processes import Program, Site, site
from tests.helpers.tables import facts, open_states, read_inbox, rows
from tests.helpers.traffic import Downstream, Ledger, Sender, endless, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text
from tests.proofs.cluster.nodes import DEPLOYED, PASSWORD, Cluster, Node, cluster

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
    if missing or not network.can_be_made():
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
