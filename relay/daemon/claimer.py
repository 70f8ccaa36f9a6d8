"""What a relay takes on: as much as its crews have room for, and as the gates let through."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from relay.daemon.leases import Leases, claim_of
from relay.daemon.pool import WorkerPools
from relay.delivery.gates import Admission, ClaimFilter, GateKey, Gates
from relay.delivery.outcome import Delivery
from relay.delivery.policy import RoutePolicy
from relay.observe import Observer
from relay.store import claim, gates
from relay.store.database import Database
from relay.store.places import Places

SUSPECTS_EVERY_SECONDS = 1.0


class Claimer:
    """Claims for one relay. `gates` are those of the last look."""

    def __init__(self, database: Database, node: str, leases: Leases, observer: Observer) -> None:
        self._database = database
        self._node = node
        self._leases = leases
        self._observer = observer
        self._suspects_at = 0.0
        self._places = Places()
        self.gates = Gates()
        self.ran_short = False
        """The last claim found less than it asked for."""

    def look_at_gates(self) -> None:
        """What holds deliveries back now: pauses, and breakers that this relay or another has opened."""
        before, self.gates = self.gates, gates.read_gates(self._database)
        self._observer.gates_changed(before, self.gates)

    def troubled(self, policies: Mapping[str, RoutePolicy]) -> frozenset[GateKey]:
        """The endpoints that have failed lately, at the last look."""
        return self.gates.troubled(
            {key: limit for policy in policies.values() for key, limit in policy.breakers.items()}
        )

    def admitted(self, policies: Mapping[str, RoutePolicy], routes: Sequence[str], *admissions: Admission) -> list[str]:
        """Those of these routes of which the gates let so much through."""
        return [route for route in routes if self.gates.admit(policies[route].gates) in admissions]

    def claim(self, policies: Mapping[str, RoutePolicy], crews: WorkerPools) -> int:
        """Fill every crew that wants more; of a route whose breaker is to be tried, one delivery. Returns how many."""
        wanted = [(self.admitted(policies, routes, "all"), room) for routes, room in crews.wanted()]
        claim_filters = self.claim_filters(policies)
        claimed = 0
        self.ran_short = False
        if any(routes for routes, _ in wanted):
            began = self._leases.began_asking()
            found = claim.claim(
                self._database, self._node, wanted, claim_filters, places=self._places, policies=policies
            )
            claimed = self._hand_over(crews, found, began)
            self.ran_short = claimed < sum(room for routes, room in wanted if routes)
        for route in self.admitted(policies, crews.routes, "probe"):
            began = self._leases.began_asking()
            breakers = list(policies[route].breakers)
            found = claim.claim_probe(
                self._database,
                self._node,
                route,
                breakers,
                claim_filters[route],
                places=self._places,
                policies=policies,
            )
            claimed += self._hand_over(crews, found, began)
            self.look_at_gates()
        return claimed

    def claim_suspect(self, policies: Mapping[str, RoutePolicy], crews: WorkerPools) -> int:
        """One of those that may be what a process died of. As long as there are any, it is called again at once."""
        if time.monotonic() < self._suspects_at:
            return 0
        routes = self.admitted(policies, crews.routes, "all")
        began = self._leases.began_asking()
        found = claim.claim_suspect(self._database, self._node, routes, self.gates.paused_entities, policies)
        claimed = self._hand_over(crews, found, began)
        self._suspects_at = 0.0 if claimed else time.monotonic() + SUSPECTS_EVERY_SECONDS
        return claimed

    def claim_filters(self, policies: Mapping[str, RoutePolicy]) -> dict[str, ClaimFilter]:
        """What deliveries of each route have to pass."""
        paused = self.gates.paused_entities
        return {route: ClaimFilter(paused, policy.rate_limits) for route, policy in policies.items()}

    def _hand_over(self, crews: WorkerPools, claimed: Sequence[Delivery], began_asking: float) -> int:
        self._leases.granted(map(claim_of, claimed), began_asking)
        for delivery in claimed:
            crews.hand_over(delivery)
        return len(claimed)
