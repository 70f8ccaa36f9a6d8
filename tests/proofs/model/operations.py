"""The store's operations as the model's relays use them: what is sent, and what is learned from the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from relay.daemon.lease_renewal import claim_of
from relay.delivery.gates import Admission, ClaimFilter, Gate, Gates
from relay.delivery.outcome import Delivery
from relay.store import claim, duplicates, gates, leases, nodes, reap, record, sequence
from relay.store.audit.rebuild import rebuild
from relay.store.audit.verify import Checked, verify
from relay.store.leases import Claimed
from relay.store.leftovers import Leftovers
from relay.store.operator import commands
from relay.store.operator.selection import Act, Choice, Plan, Selection, preview
from tests.helpers.commanding import carry_out
from tests.proofs.model.actors import Doing, Held, Ledger, Relay
from tests.proofs.model.world import BEFORE_THE_CHANGE, CONFIG, POLICIES, World


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

    def sequence_by_the_old(self, relay: Relay) -> Operation:
        """As before `ordering` became "latest"."""
        return Operation(
            "sequence by the old",
            lambda: sequence.sequence(self._database, BEFORE_THE_CHANGE, relay.node),
            lambda _: None,
        )

    def work_off(self, relay: Relay) -> Operation:
        """A batch of what a settle or a success has left."""
        return Operation("work off", lambda: Leftovers().work_off(self._database, POLICIES, relay.node), lambda _: None)

    def claim(self, relay: Relay, routes: Sequence[str], room: int, *, answered: bool) -> Operation:
        """Of what the gates let through."""
        asked_at, node = self._world.clock.now, relay.node

        def send() -> tuple[Gates, list[Delivery]]:
            seen = gates.read_gates(self._database)
            wanted = [(_admitted(seen, routes, "all"), room)]
            return seen, claim.claim(self._database, node, wanted, _claim_filters(seen)) if wanted[0][0] else []

        def learn(found: tuple[Gates, list[Delivery]]) -> None:
            relay.gates = found[0]
            self._claimed(relay, found[1], asked_at, answered=answered)

        return Operation("claim", send, learn)

    def claim_suspect(self, relay: Relay, routes: Sequence[str]) -> Operation:
        asked_at, node = self._world.clock.now, relay.node

        def send() -> tuple[Gates, list[Delivery]]:
            seen = gates.read_gates(self._database)
            admitted = _admitted(seen, routes, "all")
            return seen, claim.claim_suspect(self._database, node, admitted, seen.paused_entities) if admitted else []

        def learn(found: tuple[Gates, list[Delivery]]) -> None:
            relay.gates = found[0]
            self._claimed(relay, found[1], asked_at, answered=True)

        return Operation("claim_suspect", send, learn)

    def probe(self, relay: Relay, routes: Sequence[str]) -> Operation:
        """One delivery, of the first of these routes whose breaker is to be tried and that has one."""
        asked_at, node = self._world.clock.now, relay.node

        def send() -> tuple[Gates, list[Delivery]]:
            seen = gates.read_gates(self._database)
            for route in _admitted(seen, routes, "probe"):
                breakers, claim_filter = list(POLICIES[route].breakers), _claim_filters(seen)[route]
                if claimed := claim.claim_probe(self._database, node, route, breakers, claim_filter):
                    return seen, claimed
            return seen, []

        def learn(found: tuple[Gates, list[Delivery]]) -> None:
            relay.gates = found[0]
            self.doing.probes += found[1]
            self._claimed(relay, found[1], asked_at, answered=True)

        return Operation("probe", send, learn)

    def _claimed(self, relay: Relay, claimed: Sequence[Delivery], asked_at: datetime, *, answered: bool) -> None:
        self.doing.asked_to_claim = True
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

        return Operation("renew", lambda: leases.renew(self._database, keys), learn)

    def give_back(self, relay: Relay, held: Sequence[Held]) -> Operation:
        """Whatever the answer, the relay does not touch them any more."""
        keys = [claim_of(each.delivery) for each in held]
        return Operation(
            "give_back",
            lambda: leases.give_back(self._database, POLICIES, relay.node, keys),
            lambda _: relay.forget(held),
        )

    def record(self, relay: Relay, held: Sequence[Held], *, answered: bool) -> Operation:
        """Breakers hear of success where the relay has seen trouble."""
        outcomes = [(each.delivery, each.outcome) for each in held if each.outcome is not None]
        node, watched = relay.node, list(relay.gates.breakers)

        def learn(results: list[record.Recorded]) -> None:
            self.doing.handed_in += [(node, *outcome) for outcome in outcomes]
            self.doing.results += results
            for each in held:
                each.is_handed_in = True
            if answered:
                relay.recorded = list(held)
                relay.forget(held)

        return Operation("record", lambda: record.record(self._database, POLICIES, node, outcomes, watched), learn)

    def look_at_gates(self, relay: Relay) -> Operation:
        def learn(seen: Gates) -> None:
            relay.gates = seen

        return Operation("look_at_gates", lambda: gates.read_gates(self._database), learn)

    def reap(self, relay: Relay) -> Operation:
        return Operation("reap", lambda: reap.reap(self._database, POLICIES, relay.node), lambda _: None)

    def judge(self, relay: Relay) -> Operation:
        def learn(_: object) -> None:
            self.doing.judged += 1

        return Operation(
            "judge", lambda: duplicates.judge_duplicates(self._database, CONFIG, POLICIES, relay.node), learn
        )

    def plan(self, act: Act, selection: Selection) -> Plan:
        """Return the plan that an operator looks at before a command."""
        return preview(self._database, Choice(act, selection, CONFIG), None)

    def command(self, act: Act, selection: Selection) -> Operation:
        """Make an operator's command; its result is how many deliveries changed. It may be done though nobody lives to know."""
        self.doing.asked.append((act, selection))
        return Operation(act, lambda: carry_out(self._database, CONFIG, act, selection, why="agreed"), lambda _: None)

    def turn(self, kind: commands.GateAct, gate: Gate) -> Operation:
        """Pause what goes through this gate, or resume it."""

        def send() -> None:
            number = commands.ask(self._database, kind, gate, who="kim", why="maintenance")
            commands.work_on(self._database, CONFIG, POLICIES, number)

        def learn(_: object) -> None:
            self.doing.resumed += kind == "resume"

        return Operation(kind, send, learn)

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


def _admitted(seen: Gates, routes: Sequence[str], admission: Admission) -> list[str]:
    return [route for route in routes if seen.admit(POLICIES[route].gates) == admission]


def _claim_filters(seen: Gates) -> dict[str, ClaimFilter]:
    return {route: ClaimFilter(seen.paused_entities, policy.rate_limits) for route, policy in POLICIES.items()}
