"""The store's operations as the model's relays use them: what is sent, and what is learned from the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from relay.leases import claim_of
from relay.outcome import Delivery
from relay.store import claim, commands, nodes, reap, record, sequence
from relay.store.claim import Claimed
from relay.store.rebuild import rebuild
from relay.store.selection import Selection, keys_of
from relay.store.verify import Checked, verify
from tests.helpers.commanding import carry_out
from tests.model.actors import Doing, Held, Ledger, Relay
from tests.model.history import Key
from tests.model.world import CONFIG, POLICIES, World


@dataclass(frozen=True)
class Operation:
    """One call of a store function."""

    name: str
    send: Callable[[], Any]
    """Talks to the database and to nothing else: it may run in any thread."""
    learn: Callable[[Any], None]
    """Takes in what it returned."""


class Operations:
    """Makes operations. Where an answer may be lost, `answered` says whether the relay hears it."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self._world = world
        self._database = world.database
        self._ledger = ledger
        self.doing = Doing()

    def sequence(self, relay: Relay, batch: int) -> Operation:
        return Operation(
            "sequence", lambda: sequence.sequence(self._database, POLICIES, relay.node, batch), lambda _: None
        )

    def claim(self, relay: Relay, routes: Sequence[str], room: int, *, answered: bool) -> Operation:
        asked_at = self._world.clock.now
        return Operation(
            "claim",
            lambda: claim.claim(self._database, relay.node, [(routes, room)]),
            lambda claimed: self._claimed(relay, claimed, asked_at, answered=answered),
        )

    def claim_suspect(self, relay: Relay, routes: Sequence[str]) -> Operation:
        asked_at = self._world.clock.now
        return Operation(
            "claim_suspect",
            lambda: claim.claim_suspect(self._database, relay.node, routes),
            lambda claimed: self._claimed(relay, claimed, asked_at, answered=True),
        )

    def _claimed(self, relay: Relay, claimed: Sequence[Delivery], asked_at: datetime, *, answered: bool) -> None:
        for delivery in claimed:
            self.doing.claimed.append(delivery)
            if delivery.run == 0:
                self._ledger.claimed.setdefault((delivery.seq, delivery.route), self._ledger.step)
            if answered:
                relay.was_granted(delivery, asked_at)

    def renew(self, relay: Relay, held: Sequence[Held], *, answered: bool) -> Operation:
        asked_at, keys = self._world.clock.now, [claim_of(each.delivery) for each in held]

        def learn(renewed: set[Claimed]) -> None:
            for claimed in renewed if answered else ():
                relay.was_renewed(claimed, asked_at)

        return Operation("renew", lambda: claim.renew(self._database, keys), learn)

    def give_back(self, relay: Relay, held: Sequence[Held]) -> Operation:
        """Whatever the answer, the relay does not touch them any more."""
        keys = [claim_of(each.delivery) for each in held]
        return Operation("give_back", lambda: claim.give_back(self._database, keys), lambda _: relay.forget(held))

    def record(self, relay: Relay, held: Sequence[Held], *, answered: bool) -> Operation:
        outcomes = [(each.delivery, each.outcome) for each in held if each.outcome is not None]
        node = relay.node

        def learn(results: list[record.Recorded]) -> None:
            self.doing.handed_in += [(node, *outcome) for outcome in outcomes]
            self.doing.results += results
            for each in held:
                each.is_handed_in = True
            if answered:
                relay.recorded = list(held)
                relay.forget(held)

        return Operation("record", lambda: record.record(self._database, POLICIES, node, outcomes), learn)

    def reap(self, relay: Relay) -> Operation:
        return Operation("reap", lambda: reap.reap(self._database, POLICIES, relay.node), lambda _: None)

    def replay(self, selection: Selection) -> Operation:
        """What a person does: looks at a plan, and then has it done."""

        def send() -> list[Key]:
            planned = commands.plan(self._database, CONFIG, "replay", selection, None)
            carry_out(self._database, CONFIG, "replay", selection, why="mended")
            return keys_of(planned.sample)

        return Operation("replay", send, self.doing.replayed.update)

    def verify(self) -> Operation:
        """Finds nothing, whatever goes on meanwhile."""
        return Operation("verify", lambda: list(verify(self._database, CONFIG)), self._found)

    def rebuild(self) -> Operation:
        """Has nothing to mend, whatever goes on meanwhile."""
        return Operation("rebuild", lambda: list(rebuild(self._database, CONFIG, who="kim")), self._found)

    def _found(self, checked: Sequence[Checked]) -> None:
        self.doing.differences += [difference for chunk in checked for difference in chunk.differences]

    def heartbeat(self, relay: Relay) -> Operation:
        now, node = self._world.clock.now, relay.node
        return Operation(
            "heartbeat",
            lambda: nodes.heartbeat(self._database, node),
            lambda _: self._ledger.heartbeats.update({node: now}),
        )

    def start(self, relay: Relay) -> Operation:
        now, node = self._world.clock.now, relay.node
        return Operation(
            "start",
            lambda: nodes.start_node(self._database, node, "host", 1, "0"),
            lambda _: self._ledger.heartbeats.update({node: now}),
        )
