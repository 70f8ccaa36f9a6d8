"""The model behind `benchmarks.capacity`: a simulation of relay processes at work on a backlog without end. Pure.

Threads make calls. The loop of each process records what was answered since it last looked, in one transaction, and claims
more when a thread's worth of each is free. A transaction costs much and an event in it little, so what is busy
works in larger batches: the cost of an event falls while the load grows.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections import deque
from collections.abc import Generator
from itertools import count

import msgspec

from relay.daemon.generation import PREFETCH

SECONDS, WARM_UP = 4.0, 1.0
"""Of simulated time."""
SATURATED = 0.9
_SEED = 17
_OTHERS, _SLICE = 4, 0.001
"""Number of other programs, and the seconds for which one has a core at a time."""
_LEAST, _MOST = 0.5, 1.5
"""Processor times scatter between these multiples of theirs, so that processes don't march in step."""


class Costs(msgspec.Struct, frozen=True):
    """Seconds of processor time, if nothing else is said; a record or a claim is one transaction."""

    call: float
    """Of a relay's thread for a call, with the interpreter of its process."""
    loop_event: float
    """Of a relay's loop for an event, recorded and claimed; with the interpreter, too."""
    loop_transaction: float
    server_event: float
    """Of Postgres for an event, recorded and claimed."""
    server_transaction: float
    commit: float
    """For which a commit waits for the disk."""
    downstream: float = 0.0
    """Of the downstream for a call, where it runs on the same cores."""

    @property
    def event(self) -> float:
        """All of an event but its part of transactions."""
        return self.call + self.loop_event + self.server_event + self.downstream

    @property
    def transaction(self) -> float:
        """All of a transaction but its events."""
        return self.loop_transaction + self.server_transaction

    def scaled(self, factor: float) -> Costs:
        """The same on processors that take so many times as long; the disk is as it was."""
        fields = {name: value * factor for name, value in msgspec.structs.asdict(self).items()}
        return Costs(**{**fields, "commit": self.commit})


class Fleet(msgspec.Struct, frozen=True):
    """Relay processes, and what they share."""

    processes: int
    concurrency: int
    answer: float
    """Seconds that the downstream takes for a call; above 0."""
    cores: int
    """Of all hosts of relays together."""
    server_cores: int
    """0: the server and the downstream share the cores of the relays."""
    locks: int = 1
    others: float = 0.0
    """Cores that other programs use."""

    @property
    def by_calls(self) -> float:
        """Deliveries per second that calls allow."""
        return self.processes * self.concurrency / self.answer


class Forecast(msgspec.Struct, frozen=True):
    """Rate of a fleet by the model, and its bottleneck."""

    rate: float
    """Deliveries per second."""
    transactions: float
    """For each delivery."""
    use: dict[str, float]
    """Fraction of its time for which each resource is taken. The loops take what is there, in small batches if need be."""
    calling: float
    """Rate as a part of the one that calls allow."""

    def first(self) -> str:
        """Name what gives first; cores come before what is only kept while its holder waits for them."""
        limits = (name for name, used in self.use.items() if used >= SATURATED > self.calling)
        return next(limits, "none: more calls at a time")


def bound(costs: Costs, fleet: Fleet) -> float:
    """Deliveries per second that no fleet exceeds: by its calls, or by processors with the largest batches."""
    transactions = 2 / (PREFETCH * fleet.concurrency)
    server = costs.server_event + costs.server_transaction * transactions
    relays = costs.event + costs.transaction * transactions - (server if fleet.server_cores else 0)
    by_relays = fleet.cores / relays if relays else float("inf")
    by_server = fleet.server_cores / server if fleet.server_cores and server else float("inf")
    return min(fleet.by_calls, by_relays, by_server)


class Station:
    """Servers that take waiting work in the order of arrival."""

    def __init__(self, servers: int) -> None:
        self.free = self._servers = servers
        self.queue: deque[Work] = deque()
        self.held = 0.0
        """Seconds of all servers together."""

    def use(self, seconds: float) -> float:
        """Return how much of the time they were taken."""
        return min(self.held / (seconds * self._servers), 1.0)


Work = Generator[Station | float | None, None, None]
"""A thread: waits for a server of a station, for a while, or (None) until another wakes it."""


class Process:
    """A relay process."""

    def __init__(self, concurrency: int) -> None:
        self.interpreter = Station(1)
        self.claimed = Station(0)
        """Deliveries that no thread has begun."""
        self.room = PREFETCH * concurrency
        self.answered = 0
        self.is_resting = False
        """True while the loop has nothing to do."""
        self.loop: Work
        self._concurrency = concurrency

    @property
    def wants_more(self) -> bool:
        """True when it can take one for each thread."""
        return self.room >= self._concurrency


class Simulation:
    """A fleet at work on a backlog without end."""

    def __init__(self, costs: Costs, fleet: Fleet) -> None:
        self._costs = costs
        self._fleet = fleet
        self._random = random.Random(_SEED)  # the same forecast each time
        self.cores = Station(fleet.cores)
        self.server = Station(fleet.server_cores) if fleet.server_cores else self.cores
        self.locks = [Station(1) for _ in range(fleet.locks)]
        self.relays = [Process(fleet.concurrency) for _ in range(fleet.processes)]
        self.delivered = self.transactions = 0
        self._now = 0.0
        self._records = count()
        self._numbers = count()
        self._agenda: list[tuple[float, int, Work]] = []

    def run(self) -> tuple[int, int]:
        """Count deliveries and transactions between the warm-up and the end."""
        for relay in self.relays:
            relay.loop = self._loop(relay)
            for work in (relay.loop, *(self._thread(relay) for _ in range(self._fleet.concurrency))):
                self._plan(work, 0.0)
        for _ in range(_OTHERS if self._fleet.others else 0):
            self._plan(self._other(self._fleet.others / _OTHERS), 0.0)
        self._until(WARM_UP)
        before = self.delivered, self.transactions
        self._until(SECONDS)
        return self.delivered - before[0], self.transactions - before[1]

    def _until(self, end: float) -> None:
        while self._agenda and self._agenda[0][0] < end:
            self._now, _, work = heapq.heappop(self._agenda)
            while (wanted := next(work)) is not None:
                if not isinstance(wanted, Station):
                    self._plan(work, wanted)
                elif wanted.free:
                    wanted.free -= 1
                    continue
                else:
                    wanted.queue.append(work)
                break

    def _plan(self, work: Work, seconds: float) -> None:
        heapq.heappush(self._agenda, (self._now + seconds, next(self._numbers), work))

    def _release(self, station: Station) -> None:
        if station.queue:
            self._plan(station.queue.popleft(), 0.0)
        else:
            station.free += 1

    def _hold(self, station: Station, work: Work) -> Work:
        yield station
        since = self._now
        yield from work
        station.held += self._now - since
        self._release(station)

    def _busy(self, seconds: float) -> Work:
        yield seconds * self._random.uniform(_LEAST, _MOST)

    def _compute(self, relay: Process, seconds: float) -> Work:
        """A thread that waits for a core keeps the interpreter."""
        return self._hold(relay.interpreter, self._hold(self.cores, self._busy(seconds)))

    def _other(self, share: float) -> Work:
        while True:
            yield from self._hold(self.cores, self._busy(_SLICE))
            yield _SLICE * max(1 / share - 1, 0.0)

    def _thread(self, relay: Process) -> Work:
        while True:
            yield relay.claimed
            yield from self._compute(relay, self._costs.call / 2)
            if self._costs.downstream:
                yield from self._hold(self.cores, self._busy(self._costs.downstream))
            yield self._fleet.answer
            yield from self._compute(relay, self._costs.call / 2)
            relay.answered += 1
            if relay.is_resting:
                relay.is_resting = False
                self._plan(relay.loop, 0.0)

    def _loop(self, relay: Process) -> Work:
        while True:
            if relay.answered:
                yield from self._record(relay)
            elif not relay.wants_more:
                relay.is_resting = True
                yield None
            if relay.wants_more:
                yield from self._claim(relay)

    def _record(self, relay: Process) -> Work:
        events, relay.answered = relay.answered, 0
        yield from self._compute(relay, self._costs.loop_transaction / 2)
        lock = self.locks[next(self._records) % len(self.locks)]
        yield from self._hold(lock, self._transaction(relay, events, self._costs.loop_transaction / 2))
        relay.room += events
        self.delivered += events

    def _claim(self, relay: Process) -> Work:
        events, relay.room = relay.room, 0
        yield from self._transaction(relay, events, self._costs.loop_transaction)
        for _ in range(events):
            self._release(relay.claimed)

    def _transaction(self, relay: Process, events: int, loop: float) -> Work:
        """Two trips to the server, and the loop's own work between them."""
        costs = self._costs
        trip = (costs.server_transaction + events * costs.server_event / 2) / 2
        yield from self._hold(self.server, self._busy(trip))
        yield from self._compute(relay, loop + events * costs.loop_event / 2)
        yield from self._hold(self.server, self._busy(trip))
        yield costs.commit
        self.transactions += 1


def simulate(costs: Costs, fleet: Fleet) -> Forecast:
    """Predict the rate of a fleet."""
    simulation = Simulation(costs, fleet)
    delivered, transactions = simulation.run()
    is_shared = simulation.server is simulation.cores
    use = {
        **({} if is_shared else {"the server's cores": simulation.server.use(SECONDS)}),
        "all cores" if is_shared else "the relays' cores": simulation.cores.use(SECONDS),
        "each relay's interpreter": statistics.mean(each.interpreter.use(SECONDS) for each in simulation.relays),
        "the order lock": max(lock.use(SECONDS) for lock in simulation.locks),
    }
    rate = delivered / (SECONDS - WARM_UP)
    return Forecast(rate, transactions / max(delivered, 1), use, rate / fleet.by_calls)
