"""Patroni replaces its leader again and again under load: nothing acknowledged is lost, and no program is restarted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import tomllib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from inbox.db import migrate
from inbox.db.engine import connect
from tests.helpers import checkers, network
from tests.helpers.agreement import disagreements, enrolled
from tests.helpers.processes import Program, Site, site
from tests.helpers.tables import facts, open_states, rows, stored
from tests.helpers.traffic import Downstream, Sender, endless, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text
from tests.proofs.cluster.disasters import DISASTERS, OF_STANDBYS, Silence, lose_standby, strike
from tests.proofs.cluster.nodes import DEPLOYED, PASSWORD, Cluster, cluster

PROGRAMS = ("patroni", "etcd", "ip")
PROMOTED_WITHIN, SILENT_FOR, HELD_UP_FOR = 45.0, 15.0, 30.0
"""Seconds at most; the usual ones are in docs/how-to/scale.md."""
PER_SECOND = 40
DELIVERED_WITHIN = 60.0

pytestmark = pytest.mark.nightly


class Work(msgspec.Struct):
    """A cluster, and what works on it."""

    cluster: Cluster
    site: Site
    programs: tuple[Program, ...]
    senders: tuple[Sender, ...]
    downstream: Downstream


@pytest.fixture(autouse=True)
def _can_run() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    why = f"install {', '.join(missing)} with .ci/patroni" if missing else "network namespaces need root"
    if missing or not network.can_be_made():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"NO CLUSTER WAS TESTED: {why}")


def test_nothing_acknowledged_is_lost_however_a_host_is_lost(tmp_path: Path) -> None:
    """A minute with one disaster that is drawn; CLUSTER_DISASTERS=kill,freeze,… names others."""
    names = os.environ.get("CLUSTER_DISASTERS", random.choice([*DISASTERS, *OF_STANDBYS])).split(",")
    with at_work(tmp_path) as work:
        silences = [
            (lose_standby if name in OF_STANDBYS else strike)(work.cluster, name, work.senders, work.downstream)
            for name in names
        ]
        findings = conclude(work)
    (tmp_path / "silences.json").write_text(json.dumps(msgspec.to_builtins(silences), indent=1), encoding="utf-8")
    assert findings == {}, f"{silences}; everything is kept in {tmp_path}"
    assert [silence for silence in silences if silence.rewinds] == [], (
        "a standby was ahead of the one that was promoted"
    )
    assert [silence for silence in silences if _is_long(silence)] == []


def _is_long(silence: Silence) -> bool:
    longest = HELD_UP_FOR if silence.disaster in OF_STANDBYS else SILENT_FOR
    return silence.promotion > PROMOTED_WITHIN or max(silence.acknowledged, silence.delivered) > longest


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[Work]:
    """A cluster with two receivers, two relays and a sender for each receiver, which have all begun."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(cluster(folder))
        migrating = connect(made.direct(), application="tests")
        migrate.upgrade(migrating)
        migrating.dispose()
        downstream = stack.enter_context(serving(folder / "arrivals.jsonl"))
        at = stack.enter_context(site(folder, config_text(url(made), downstream.url, schedule=("200ms", "1s"))))
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


def url(made: Cluster) -> str:
    """The URL of deploy/patroni/inbox.toml, here."""
    text = made.hosts.here((DEPLOYED / "inbox.toml").read_text(encoding="utf-8"))
    found: str = tomllib.loads(text)["database"]["url"]
    return found.replace("inbox@/", f"inbox:{PASSWORD}@/")


def conclude(work: Work) -> dict[str, object]:
    """Let everything finish, and hold all evidence against each other; what was found, by the name of its checker."""
    for sender in work.senders:
        sender.enough()
    until(lambda: all(sender.is_done for sender in work.senders), "the last is acknowledged", within=30)
    engine = create_engine(work.cluster.direct(), poolclass=NullPool)
    until(lambda: not open_states(engine), "everything is delivered", within=DELIVERED_WITHIN, poll=0.3)
    sends = [line for sender in work.senders for line in sender.sends.lines()]
    inbox, log = stored(engine), facts(engine)
    present = rows(engine, "SELECT * FROM open_delivery")
    findings = {
        **checkers.of_any_run(sends, work.downstream.arrivals.lines(), inbox, log, work.site.logs()),
        "programs that ended": [program.log.name for program in work.programs if not program.runs],
        "log and state disagree": list(disagreements(enrolled(inbox), log, present)),
    }
    return {name: found[:5] for name, found in findings.items() if found}
