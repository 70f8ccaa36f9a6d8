"""The relay's steps one by one, with a scripted destination and a fake clock."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.config.model import Config, Retention, RetentionKind
from inbox.config.values import Age
from inbox.db.erasure import ErasureSubject
from inbox.db.reads import Row, plain
from inbox.events.event import Event, RawRequest
from inbox.loader.load import parse_config
from inbox.sources.normalize import make_readers
from relay.daemon.generation import attempt
from relay.daemon.loop import Relay
from relay.delivery.facts import AnyFact
from relay.delivery.gates import GateKey
from relay.delivery.outcome import Call, Delivered, Delivery, Failed, Outcome
from relay.delivery.policy import Policies, policies
from relay.http.client import Limits
from relay.operations.asks import Selection
from relay.store import claim, gates, leases, sequence
from relay.store.database import Database
from relay.store.operator import commands, execution
from relay.store.operator.commands import Command
from relay.store.operator.selection import Act
from relay.store.record import Recorded
from relay.store.record import record as record_parts
from relay.store.retention import STEPS, LeasedPruner, Pruned, compute_expiry
from relay.store.transaction import FailedAlone
from relay.store.work import LockedRoutes, Reports, Work
from tests.helpers.agreement import facts_agree
from tests.helpers.storing import START, Intake, an_event
from tests.helpers.traffic import Change
from tests.helpers.webhooks import HEADERS, a_config, body

DONE = Delivered((), "forwarded")
UNWELL = Failed((), "server_error", "forward answered 503")
HOPELESS = Failed((), "mapping", "email: no value")

_ROUTE = """
[routes.{name}]
source = "trivore"
destination = "audit"
ordering = "{ordering}"
on_dead = "{on_dead}"
"""
CONFIG = parse_config(
    '[sources.trivore]\npreset = "trivore"\nauth = { kind = "none" }\n'
    '[destinations.audit]\nkind = "forward"\nurl = "https://audit.example.com"\n'
    + _ROUTE.format(name="strict", ordering="strict", on_dead="continue")
    + _ROUTE.format(name="blocking", ordering="strict", on_dead="block")
    + _ROUTE.format(name="latest", ordering="latest", on_dead="continue")
)


def fetching(config: Config) -> Policies:
    """Return policies for scripted outcomes, which have fetch times in `latest`."""
    known = policies(config)
    return {name: msgspec.structs.replace(each, fetches=each.ordering == "latest") for name, each in known.items()}


POLICIES = fetching(CONFIG)


class Heard(Reports):
    """Keeps the reports of transactions and steps."""

    def __init__(self) -> None:
        self.alone: list[FailedAlone] = []
        self.held_up: list[str] = []
        """Steps with resting routes, such as `rescue of strict`."""
        self.on_facts: Callable[[Mapping[tuple[str, str], int]], object] = Counter[tuple[str, str]]().update

    def on_appended(self, facts_of: Mapping[tuple[str, str], int]) -> None:
        self.on_facts(facts_of)

    def on_failed_alone(self, item: FailedAlone) -> None:
        self.alone.append(item)

    def on_database_trouble(self, doing: str, error: BaseException) -> None:  # noqa: ARG002  # the signature of all reports
        self.held_up.append(doing)


def work_of(
    database: Database,
    known: Policies = POLICIES,
    *,
    node: str = "r1",
    config: Config = CONFIG,
    observer: Reports | None = None,
) -> Work:
    """Make a context for a relay's steps, without memory of earlier ones."""
    return Work(database, config, known, node, observer or Reports())


def record(
    work: Work, outcomes: Sequence[tuple[Delivery, Outcome]], recently_failing: Collection[GateKey] = ()
) -> list[Recorded]:
    """Record outcomes and return all results."""
    return [recorded for part in record_parts(work, outcomes, recently_failing) for recorded in part]


class FakeClock:
    """A clock that stands still until it is advanced."""

    def __init__(self, moment: datetime = START) -> None:
        self.moment = moment

    def __call__(self) -> datetime:
        return self.moment

    def now(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class Monotonic:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@contextlib.contextmanager
def run_relay(relay: Relay) -> Iterator[Relay]:
    """Run the daemon in a thread until the block ends."""
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        yield relay
    finally:
        relay.stop()
        thread.join(30)
        assert not thread.is_alive()


class Scripted:
    """A deliverer with scripted outcomes, followed by successes."""

    def __init__(self, outcomes: Sequence[Outcome] = ()) -> None:
        self.seen: list[Delivery] = []
        self._outcomes = list(outcomes)

    def __call__(self, delivery: Delivery, context: Limits) -> Outcome:  # noqa: ARG002  # the signature of all deliverers
        """Return the next outcome."""
        self.seen.append(delivery)
        return self._outcomes.pop(0) if self._outcomes else DONE


class Steps:
    """Steps of a relay under the name of one node, and the resulting state of the database."""

    def __init__(self, engine: Engine, known: Policies = POLICIES, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.database = Database(engine, self.clock)
        self.database.sql.pause_after_write = 0.0  # no receiver waits for the lock here
        self.intake = Intake(engine.url.render_as_string(hide_password=False))
        self.deliverer = Scripted()
        self.node = "r1"
        self.policies = known
        self.config = CONFIG
        self.heard, self.locked_routes = Heard(), LockedRoutes()

    @property
    def work(self) -> Work:
        """Context of its steps."""
        return Work(self.database, self.config, self.policies, self.node, self.heard, self.locked_routes)

    def advance(self, seconds: float) -> None:
        """Advance the database's clock as the relay sees it."""
        self.clock.advance(seconds)

    def receive(self, *events: Event) -> list[int | None]:
        """Store events as the receiver does and return their seqs, None for duplicates."""
        return self.intake.append(*events)

    def arrive(self, *events: Event) -> None:
        """Receive and sequence events."""
        self.receive(*events)
        self.sequence()

    def sequence(self, batch: int = sequence.BATCH) -> int:
        """Sequence the received events."""
        return sequence.sequence(self.work, batch=batch)

    def claim(self, route: str = "strict") -> Delivery:
        """Claim the longest due delivery of the route."""
        (delivery,) = self.claim_due(1, route)
        return delivery

    def claim_due(self, most: int = 100, *routes: str) -> list[Delivery]:
        """Claim due deliveries, by default of every route."""
        return claim.claim(self.work, [claim.FreeCapacity(routes or list(self.policies), most)])

    def deliver(self, claimed: Sequence[Delivery]) -> list[tuple[Delivery, Outcome]]:
        """Make the attempts."""
        context = Limits(lambda: float("inf"), threading.Event(), SystemClock().now)
        return [(delivery, attempt(delivery, self.deliverer, context)) for delivery in claimed]

    def record(self, outcomes: Sequence[tuple[Delivery, Outcome]], watched: Collection[GateKey] = ()) -> list[Recorded]:
        """Record outcomes."""
        return record(self.work, outcomes, watched)

    def record_all(self, claimed: Sequence[Delivery], outcome: Outcome = DONE) -> list[Recorded]:
        """Record the same outcome for all."""
        return self.record([(delivery, outcome) for delivery in claimed])

    def attempt(self, outcome: Outcome, route: str = "strict") -> Delivery:
        """Make the next attempt of the route with this outcome."""
        delivery = self.claim(route)
        self.record([(delivery, outcome)])
        return delivery

    def attempt_each(self, *outcomes: Outcome, route: str = "strict") -> None:
        """Make the next attempts of the route with these outcomes."""
        for outcome in outcomes:
            self.attempt(outcome, route)

    def dead(self, number: int) -> None:
        """Let so many deliveries arrive and die, each of another entity."""
        self.arrive(*(an_event(n, f"u{n}") for n in range(1, number + 1)))
        self.record_all(self.claim_due(number), HOPELESS)

    def pause(self, *keys: GateKey) -> bool:
        """Pause these gates as an operator; return whether one was open."""
        with self.database.write() as transaction:
            closed = [gates.pause(transaction, key, who="kim", why="maintenance") for key in keys]
        return any(closed)

    def resume(self, key: GateKey) -> bool:
        """Resume a gate as an operator; return whether it was held back."""
        with self.database.write() as transaction:
            return gates.resume(transaction, key, transaction.take_order_lock())

    def rescue(self, node: str | None = None) -> list[tuple[int, str, AnyFact]]:
        """Take back expired leases."""
        return leases.rescue_expired(msgspec.structs.replace(self.work, node=node or self.node))

    def round(self) -> int:
        """Run one round and return the number of attempts."""
        self.rescue()
        self.sequence()
        return len(self.record(self.deliver(self.claim_due())))

    def until_nothing_is_due(self) -> None:
        """Run rounds until nothing is due."""
        while self.round():
            pass

    def do(self, *statements: str) -> None:
        """Change tables by hand, in one transaction."""
        with self.database.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement.replace(":", "\\:")))

    def rows(self, statement: str, **parameters: object) -> list[Row]:
        """Query rows as Python values."""
        with self.database.read() as transaction:
            found = transaction.connection.execute(text(statement), parameters)
            return [plain(row) for row in found.mappings()]

    def try_again(self) -> None:
        """End the rest of all routes."""
        self.locked_routes.try_all()

    def wait_shortly_for(self, *routes: str) -> None:
        """Make steps use short lock timeouts for these routes, as after a lock timeout."""
        self.locked_routes.add("a step", {*routes}, OSError("locked"), is_retried_now=True)

    def states(self) -> list[tuple[int, str, str]]:
        """Return seq, route and state of all open deliveries."""
        found = self.rows("SELECT seq, route, state FROM open_delivery ORDER BY seq, route")
        return [(row["seq"], row["route"], row["state"]) for row in found]

    def kinds(self) -> list[tuple[int, str]]:
        """Return seq and kind of every fact, by id."""
        return [(row["seq"], row["kind"]) for row in self.rows("SELECT seq, kind FROM delivery_log ORDER BY id")]

    def facts_agree(self) -> None:
        """Assert that the log folds to the work table, and that lanes have heads."""
        facts_agree(self.database.engine)


def carry_out(database: Database, config: Config, act: Act, chosen: Selection, *, who: str = "kim", why: str) -> int:
    """Carry out a command in this process and return the number of changed deliveries."""
    ended = _finish(database, config, commands.ask(database, act, chosen, who=who, why=why))
    assert ended.state == "done"
    return ended.affected


def _finish(database: Database, config: Config, number: int, heard: Callable[[], None] = lambda: None) -> Command:
    while (progress := commands.read_command(database, number)) and not progress.has_ended:
        execution.work_on(work_of(database, policies(config), config=config), number)
        heard()
    assert progress is not None
    return progress


def erase(
    engine: Engine,
    config: Config,
    subject: ErasureSubject,
    *,
    why: str = "request 2026-17",
    heard: Callable[[], None] = lambda: None,
    number: int | None = None,
) -> tuple[int, Command]:
    """Erase an entity in this process, or continue a command; `heard` is called after each step."""
    database = Database(engine)
    asked = {"source": subject.source, "entity_type": subject.entity_type, "entity_id": subject.entity_id}
    number = number or commands.ask(database, "erase", asked, who="kim", why=why)
    return number, _finish(database, config, number, heard)


DAY = 86400
MONTH = Age(30 * DAY)
AFTER_A_MONTH = Retention(**dict.fromkeys(Retention.__struct_fields__, MONTH))
"""Retention of a month for every kind; the tests' events are older."""


def a_pruner(engine: Engine, holder: str = "r1", now: Callable[[], datetime] | None = None) -> LeasedPruner:
    """Make a pruner that does not rest."""
    return LeasedPruner(Database(engine, now), holder, rest=lambda _: None)


def batches(pruner: LeasedPruner, kind: RetentionKind, before: datetime | None) -> Iterator[Pruned]:
    """Yield pruned batches until nothing is left."""
    is_done = False
    while not is_done:
        pruned = pruner.prune_batch(kind, before)
        assert pruned is not None, "the lease is lost"
        yield pruned
        is_done = pruned.is_done


def prune(
    engine: Engine,
    *kinds: RetentionKind,
    retention: Retention = AFTER_A_MONTH,
    now: Callable[[], datetime] | None = None,
) -> dict[RetentionKind, list[Pruned]]:
    """Prune these kinds, or all, and return the batches by kind."""
    pruner = a_pruner(engine, now=now)
    clock = pruner.take()
    assert clock is not None
    happened = {
        kind: list(batches(pruner, kind, compute_expiry(retention, kind, clock))) for kind in (kinds or tuple(STEPS))
    }
    pruner.give_back(clock)
    return happened


def fill(database_url: str, events: Iterable[Change]) -> list[int]:
    """Store new events as the receiver reads them, and return their seqs."""
    read = make_readers(a_config(database_url))["trivore"]
    headers = {name.lower(): value for name, value in HEADERS.items()}
    requests = (RawRequest("trivore", headers, body(*event), SystemClock().now()) for event in events)
    stored = Intake(database_url).append(*(event for request in requests for event in read(request)))
    return [seq for seq in stored if seq is not None]


def give_up(engine: Engine, database_url: str, events: Iterable[Change], reason: str = "email: no value") -> list[int]:
    """Store events, let each die of a mapping error, and return their seqs."""
    return _attempt(engine, database_url, events, Failed((), "mapping", reason))


def fail_once(engine: Engine, database_url: str, events: Iterable[Change]) -> list[int]:
    """Store events, fail each once with 503 and `Retry-After` of an hour, and return their seqs."""
    call = Call("forward", "POST", "https://audit.example.com", "answered", 1.0, status=503)
    return _attempt(engine, database_url, events, Failed((call,), "server_error", "answered 503", retry_after=3600))


def _attempt(engine: Engine, database_url: str, events: Iterable[Change], outcome: Failed) -> list[int]:
    seqs = fill(database_url, events)
    database, known = Database(engine), policies(a_config(database_url))
    while sequence.sequence(work_of(database, known)):
        pass
    while claimed := claim.claim(work_of(database), [claim.FreeCapacity(["everything"], 500)]):
        record(work_of(database, known), [(delivery, outcome) for delivery in claimed])
    return seqs
