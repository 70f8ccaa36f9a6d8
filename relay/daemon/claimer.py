"""Claims due deliveries up to each pool's free capacity, as pauses, rate limits and circuit breakers allow."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from relay.daemon.generation import Generations
from relay.daemon.leases import Leases
from relay.delivery.gates import Admission, Gates
from relay.delivery.outcome import Delivery
from relay.observe import Observer
from relay.store import claim
from relay.store.database import ScanStarts
from relay.store.deliveries import lease_key_of
from relay.store.gates import read_gates


class Claimer(msgspec.Struct):
    """Claims deliveries for one relay. `gates` is the last snapshot."""

    generations: Generations
    scans: ScanStarts
    leases: Leases
    observer: Observer
    gates: Gates = Gates()
    ran_short: bool = False
    """True when the last claim found fewer deliveries than it asked for."""

    def read_gates(self) -> int:
        """Read pauses and breakers, including those opened by other relays. Returns 0, as no work is left over."""
        before, self.gates = self.gates, read_gates(self.generations.active.work)
        self.observer.on_gates_changed(before, self.gates)
        return 0

    def claim(self) -> int:
        """Fill the pools, and claim one probe for each route whose breaker may be tested. Returns the number claimed."""
        generation = self.generations.active
        wanted = [room._replace(routes=self._select_admitted(room.routes)) for room in generation.list_free_capacity()]
        claimed = 0
        self.ran_short = False
        if any(room.routes for room in wanted):
            asked_at = self.leases.now()
            found = claim.claim(generation.work, wanted, self.scans)
            claimed = self._submit(found, asked_at)
            self.ran_short = claimed < sum(room.number for room in wanted if room.routes)
        for route in self._list_routes_to_probe():
            asked_at = self.leases.now()
            found = claim.claim_probe(generation.work, route, self.scans)
            claimed += self._submit(found, asked_at)
            self.read_gates()
        return claimed

    def claim_suspect(self) -> int:
        """Claim one delivery that may have caused a crash. Returns the number claimed."""
        generation = self.generations.active
        routes = self._select_admitted(generation.routes)
        asked_at = self.leases.now()
        return self._submit(claim.claim_suspect(generation.work, routes), asked_at)

    def _list_routes_to_probe(self) -> list[str]:
        active = self.generations.active
        routes = self._select_admitted(active.routes, "probe")
        return claim.find_due_routes(active.work.database, routes) if len(routes) > claim.MANY_ROUTES else routes

    def _select_admitted(self, routes: Sequence[str], admission: Admission = "all") -> list[str]:
        """Return the routes that the gates admit, except resting ones, where an older event may not be sequenced yet."""
        active = self.generations.active
        resting = active.work.locked_routes.list_resting()
        return [route for route in active.select_admitted(self.gates, routes, admission) if route not in resting]

    def _submit(self, claimed: Sequence[Delivery], asked_at: float) -> int:
        self.leases.trust(map(lease_key_of, claimed), asked_at)
        for delivery in claimed:
            self.generations.active.submit(delivery)
        return len(claimed)
