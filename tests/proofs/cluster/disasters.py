"""The ways in which a host is lost, under load, and how long nothing was acknowledged or delivered after each."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from tests.helpers.traffic import Downstream, Ledger, Sender
from tests.helpers.waiting import until
from tests.proofs.cluster.nodes import Cluster, Node

GOES_ON_WITHIN = 60.0
HELD_UP_AFTER = 1.0
"""Seconds after the loss of a standby: what was acknowledged before may have been on its way."""


class Disaster(msgspec.Struct, frozen=True):
    """A way to lose a host, and to give it back."""

    strike: Callable[[Cluster, Node], None]
    repair: Callable[[Cluster, Node], None]


def _freeze(_cluster: Cluster, node: Node) -> None:
    node.send(signal.SIGSTOP)


def _thaw(_cluster: Cluster, node: Node) -> None:
    node.send(signal.SIGCONT)


DISASTERS: Mapping[str, Disaster] = {
    "kill": Disaster(lambda _, node: node.kill(), lambda _, node: node.start()),
    "freeze": Disaster(_freeze, _thaw),
    "unplug": Disaster(
        lambda cluster, node: cluster.hosts.unplug(node.name), lambda cluster, node: cluster.hosts.plug(node.name)
    ),
    # the programs still reach the old leader, which takes writes until Patroni gives up on it
    "part": Disaster(
        lambda cluster, node: cluster.hosts.part(node.name), lambda cluster, node: cluster.hosts.join(node.name)
    ),
}


OF_STANDBYS: Mapping[str, Disaster] = {f"standby-{name}": DISASTERS[name] for name in ("kill", "freeze", "unplug")}


class Silence(msgspec.Struct, frozen=True):
    """Seconds from a disaster to the promotion, and from there to the first acknowledgement and delivery."""

    disaster: str
    promotion: float
    acknowledged: float
    delivered: float
    rewinds: int
    """Of the data of standbys, before the host of the lost leader is back."""


def strike(cluster: Cluster, name: str, senders: Sequence[Sender], downstream: Downstream) -> Silence:
    """Lose the leader of a whole cluster, wait until all goes on without it, and give its host back.

    Raises:
        AssertionError: it does not go on; with the last that Patroni has said.
    """
    cluster.wait_for_standbys()
    leader = cluster.leader()
    disaster, began, rewinds = DISASTERS[name], time.monotonic(), cluster.rewinds()
    disaster.strike(cluster, leader)
    try:
        promoted = cluster.leader(leader.name)
        at = time.monotonic()
        acknowledged = max(_first_after(at, sender.sends, {"outcome": "ok"}) for sender in senders)
        delivered = _first_after(at, downstream.arrivals, {"status": 200})
        rewinds = cluster.rewinds() - rewinds
    except AssertionError as error:
        raise AssertionError(f"{name} of {leader.name}: {error}\n{cluster.told()}") from error
    finally:
        disaster.repair(cluster, leader)
    assert promoted is not leader
    promotion, acknowledged, delivered = (
        round(passed, 1) for passed in (at - began, acknowledged - at, delivered - at)
    )
    return Silence(name, promotion, acknowledged, delivered, rewinds)


def lose_standby(cluster: Cluster, name: str, senders: Sequence[Sender], downstream: Downstream) -> Silence:
    """Lose a standby of a whole cluster, wait until all goes on without it, and give its host back.

    Raises:
        AssertionError: it does not go on; with the last that Patroni has said.
    """
    cluster.wait_for_standbys()
    leader = cluster.leader()
    standby = next(node for node in cluster.nodes.values() if node is not leader)
    disaster, at = OF_STANDBYS[name], time.monotonic()
    disaster.strike(cluster, standby)
    try:
        acknowledged = max(_first_after(at + HELD_UP_AFTER, sender.sends, {"outcome": "ok"}) for sender in senders)
        delivered = _first_after(at + HELD_UP_AFTER, downstream.arrivals, {"status": 200})
        assert cluster.leader() is leader
    except AssertionError as error:
        raise AssertionError(f"{name} of {standby.name}: {error}\n{cluster.told()}") from error
    finally:
        disaster.repair(cluster, standby)
    return Silence(name, 0.0, round(acknowledged - at, 1), round(delivered - at, 1), 0)


def _first_after(at: float, ledger: Ledger, wanted: Mapping[str, object]) -> float:
    """The moment of the first line after `at` that has what is wanted."""

    def found() -> float | None:
        lines = ledger.lines()[-500:]
        return next(
            (line["at"] for line in lines if line["at"] > at and all(line[key] == wanted[key] for key in wanted)), None
        )

    return until(found, f"a line with {wanted} after the promotion", within=GOES_ON_WITHIN) or 0.0
