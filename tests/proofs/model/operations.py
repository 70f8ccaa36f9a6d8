"""The store's operations as the model's relays use them: statements to send, and results to learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from relay.delivery.facts import AnyFact
from relay.delivery.gates import Admission, Gate, Gates
from relay.delivery.outcome import Delivery
from relay.delivery.policy import Policies
from relay.operations.asks import Selection
from relay.store import claim, duplicates, gates, leases, nodes, record, sequence
from relay.store.audit import Checked, verify
from relay.store.deliveries import Claimed, claim_of
from relay.store.operator import commands, execution
from relay.store.operator.plan import Bound, Plan, preview
from relay.store.operator.selection import Act, Choice
from relay.store.rebuild import rebuild
from relay.store.work import Work
from tests.helpers.relaying import carry_out, work_of
from tests.helpers.relaying import record as recorded
from tests.proofs.model.actors import Doing, Held, Ledger, Relay
from tests.proofs.model.world import BEFORE_THE_CHANGE, CONFIG, POLICIES, World


@dataclass(frozen=True)
class Operation:
    """One call of a store function."""

    name: str
    send: Callable[[], Any]
    """Function that only uses the database, in any thread."""
    learn: Callable[[Any], None] = lambda _: None
    """Function that processes the result."""


class Operations:
    """A factory of operations. `answered` is False if the relay does not receive the result."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self._world = world
        self._database = world.database
        self._ledger = ledger
        self.doing = Doing()

    def _work(self, node: str | None = None, known: Policies = POLICIES) -> Work:
        return Work(self._database, CONFIG, known, node)

    def sequence(self, relay: Relay, batch: int = 500, known: Policies = POLICIES) -> Operation:
        return Operation("sequence", lambda: sequence.sequence(self._work(relay.node, known), batch=batch))

    def sequence_by_the_old(self, relay: Relay) -> Operation:
        """Sequence by the configuration before `ordering` became "latest"."""
        return self.sequence(relay, known=BEFORE_THE_CHANGE)

    def claim(
        self, relay: Relay, routes: Sequence[str], room: int, *, answered: bool = True, seen: Gates | None = None
    ) -> Operation:
        """Claim deliveries that the gates admit."""

        def claim_seen(seen: Gates) -> list[Delivery]:
            wanted = [claim.Room(_select_admitted(seen, routes, "all"), room)]
            return claim.claim(self._work(relay.node), wanted) if wanted[0][0] else []

        return self._claiming("claim", relay, claim_seen, answered=answered, seen=seen)

    def claim_suspect(self, relay: Relay, routes: Sequence[str], *, seen: Gates | None = None) -> Operation:
        def claim_seen(seen: Gates) -> list[Delivery]:
            admitted = _select_admitted(seen, routes, "all")
            return claim.claim_suspect(self._work(relay.node), admitted) if admitted else []

        return self._claiming("claim_suspect", relay, claim_seen, seen=seen)

    def probe(self, relay: Relay, routes: Sequence[str]) -> Operation:
        """Claim a delivery of the first of these routes with a breaker to probe."""

        def claim_seen(seen: Gates) -> list[Delivery]:
            found = (
                claim.claim_probe(self._work(relay.node), route) for route in _select_admitted(seen, routes, "probe")
            )
            return next(filter(None, found), [])

        return self._claiming("probe", relay, claim_seen)

    def _claiming(
        self,
        name: str,
        relay: Relay,
        claimed: Callable[[Gates], list[Delivery]],
        *,
        answered: bool = True,
        seen: Gates | None = None,
    ) -> Operation:
        """Make a claim by the gates as `seen`, which are read first by default."""
        asked_at = self._world.clock.now

        def send() -> tuple[Gates, list[Delivery]]:
            gates_now = gates.read_gates(self._work()) if seen is None else seen
            return gates_now, claimed(gates_now)

        def learn(found: tuple[Gates, list[Delivery]]) -> None:
            relay.gates, deliveries = found
            self.doing.asked_to_claim = True
            self.doing.claimed += deliveries
            self.doing.probes += deliveries if name == "probe" else []
            for delivery in deliveries:
                if delivery.run == 0:
                    self._ledger.claimed.setdefault((delivery.seq, delivery.route), self._ledger.step)
                if answered:
                    relay.was_granted(delivery, asked_at)

        return Operation(name, send, learn)

    def renew(self, relay: Relay, held: Sequence[Held], *, answered: bool = True) -> Operation:
        asked_at, keys = self._world.clock.now, [claim_of(each.delivery) for each in held]

        def learn(renewed: set[Claimed]) -> None:
            for claimed in renewed if answered else ():
                relay.was_renewed(claimed, asked_at)

        return Operation("renew", lambda: leases.renew(self._database, keys), learn)

    def give_back(self, relay: Relay, held: Sequence[Held]) -> Operation:
        """Give back claims, which the relay forgets in any case."""
        keys = [claim_of(each.delivery) for each in held]
        return Operation(
            "give_back", lambda: leases.give_back(self._work(relay.node), keys)[1], lambda _: relay.forget(held)
        )

    def record(self, relay: Relay, held: Sequence[Held], *, answered: bool = True) -> Operation:
        """Record outcomes; successes reach only breakers that the relay has seen."""
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

        return Operation("record", lambda: recorded(self._work(node), outcomes, watched), learn)

    def look_at_gates(self, relay: Relay) -> Operation:
        return Operation(
            "look_at_gates", lambda: gates.read_gates(self._work()), lambda seen: setattr(relay, "gates", seen)
        )

    def reap(self, relay: Relay) -> Operation:
        def learn(reaped: list[tuple[int, str, AnyFact]]) -> None:
            self.doing.reaped += reaped

        return Operation("reap", lambda: leases.reap(self._work(relay.node)), learn)

    def judge(self, relay: Relay) -> Operation:
        def learn(_: object) -> None:
            self.doing.judged += 1

        return Operation("judge", lambda: duplicates.judge_duplicates(self._work(relay.node)), learn)

    def plan(self, act: Act, selection: Selection) -> Plan:
        """Return the plan of a command."""
        return preview(self._database, Choice(act, selection, CONFIG), Bound(listed=1000))

    def command(self, act: Act, selection: Selection) -> Operation:
        """Make an operator's command, whose result is the number of changed deliveries."""
        self.doing.asked.append((act, selection))
        return Operation(act, lambda: carry_out(self._database, CONFIG, act, selection, why="agreed"))

    def turn(self, kind: Literal["pause", "resume"], gate: Gate) -> Operation:
        """Pause or resume a gate."""

        def send() -> None:
            number = commands.ask(self._database, kind, gate, who="kim", why="maintenance")
            execution.work_on(self._work(), number)

        def learn(_: object) -> None:
            self.doing.resumed += kind == "resume"

        return Operation(kind, send, learn)

    def verify(self) -> Operation:
        """Verify the state, which must find no difference."""
        return Operation("verify", lambda: list(verify(self._database, CONFIG)), self._found)

    def rebuild(self) -> Operation:
        """Rebuild the state, which must find no difference."""
        return Operation("rebuild", lambda: list(rebuild(self._database, CONFIG, who="kim")), self._found)

    def _found(self, checked: Sequence[Checked]) -> None:
        self.doing.differences += [difference for chunk in checked for difference in chunk.differences]

    def heartbeat(self, relay: Relay) -> Operation:
        return Operation("heartbeat", lambda: nodes.heartbeat(self._database, relay.node))

    def start(self, relay: Relay) -> Operation:
        return Operation("heartbeat", lambda: nodes.describe(work_of(self._database, node=relay.node), "host", 1, "0"))


def _select_admitted(seen: Gates, routes: Sequence[str], admission: Admission) -> list[str]:
    return [route for route in routes if seen.admit(POLICIES[route].gates) == admission]
