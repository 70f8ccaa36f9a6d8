"""The longest transaction under the order lock, at any backlog.

Every operation that ends or makes a head takes the order lock, so its longest transaction is the most that one lane delays
all others. Each case fills the database, runs operations under the lock, and times every transaction from its beginning to
the end of its commit. The median over the rounds of the longest must stay below the bar. Exits with 1 otherwise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import msgspec
import typer
from sqlalchemy import Engine, PoolProxiedConnection, text
from sqlalchemy.exc import OperationalError

from benchmarks.filling import Inbox
from benchmarks.harness import AsJson, Kind, OnDatabase, Rounds, databases, start, tell
from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay.delivery.outcome import Delivered, Delivery, Outcome
from relay.delivery.policy import RoutePolicy, policies
from relay.operations.asks import Selection
from relay.store.claim import FreeCapacity, claim
from relay.store.database import Database
from relay.store.leases import rescue_expired
from relay.store.operator import commands, execution
from relay.store.operator.selection import Act
from relay.store.record import record
from relay.store.sequence import sequence
from relay.store.transaction import Transaction
from relay.store.work import Work

BAR_MS = 250
ROUTE = "everything"
NODE = "benchmark"
LANES = 100
"""Heads in flight at once, which are recorded together."""
BATCHES = 5
"""Transactions of one kind timed in a round."""
_MOMENT = "2026-01-01 00:00:00.000000Z"
_CONFIG = """
[sources.trivore]
preset = "trivore"
auth = { kind = "none" }
[destinations.downstream]
kind = "forward"
url = "https://downstream.example.com/"
[routes.everything]
source = "trivore"
destination = "downstream"
ordering = "latest"
"""


class TimedDatabase(Database):
    """A database that keeps the time of its longest transaction, and the largest CPU time of one in this process.

    The CPU time is the product's own share on a busy machine.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.sql.pause_after_write = 0.0
        self.longest = self.computing = 0.0
        self._began: tuple[float, float] | None = None
        commit = engine.dialect.do_commit

        def commit_and_time(dbapi_connection: PoolProxiedConnection) -> None:
            commit(dbapi_connection)
            if self._began is not None:
                self.longest = max(self.longest, time.perf_counter() - self._began[0])
                self.computing = max(self.computing, time.thread_time() - self._began[1])
                self._began = None

        engine.dialect.do_commit = commit_and_time  # type: ignore[method-assign]  # SQLAlchemy has no event after a commit

    @contextmanager
    def write(self, *arguments: Any, **named: Any) -> Iterator[Transaction]:  # noqa: ANN401  # passed through
        """Write in a timed transaction."""
        try:
            with super().write(*arguments, **named) as transaction:
                self._began = time.perf_counter(), time.thread_time()
                yield transaction
        except OperationalError:  # the database ended a transaction that took too long
            if self._began is not None:
                self.longest = max(self.longest, time.perf_counter() - self._began[0])
            raise


class World:
    """A database filled by statements, as receivers and relays would."""

    def __init__(self, url: str) -> None:
        self.inbox = Inbox(url)
        self.engine = self.inbox.engine
        self.empty = self.inbox.empty
        self.database = TimedDatabase(self.engine)
        self.config: Config = parse_config(_CONFIG)
        self.policies: Mapping[str, RoutePolicy] = policies(self.config)
        self.work = Work(self.database, self.config, self.policies, NODE)

    def fill(self, number: int, entity: str, state: str) -> None:
        """Add deliveries in this state, of the entities named by the SQL expression."""
        self.inbox.add(number, entity, state)

    def settle(self) -> None:
        """Vacuum the database and reset the times."""
        self.inbox.settle()
        self.database.longest = self.database.computing = 0.0

    def claim(self, most: int) -> list[Delivery]:
        """Claim due deliveries, untimed as this takes no order lock."""
        claimed = claim(self.work, [FreeCapacity([ROUTE], most)])
        self.database.longest = self.database.computing = 0.0
        return claimed

    def record(self, claimed: list[Delivery]) -> None:
        """Record all as delivered."""
        outcome: Outcome = Delivered((), "forwarded")
        list(record(self.work, [(delivery, outcome) for delivery in claimed]))

    def command(self, act: Act, selection: Selection) -> None:
        """Run some batches of an operator's command."""
        number = commands.ask(self.database, act, selection, who="kim", why="benchmark")
        for _ in range(BATCHES):
            execution.work_on(self.work, number)


def sequence_a_mountain(world: World, number: int) -> None:
    """Sequence arrivals in many lanes."""
    world.fill(number, "'u' || (n % 1000)", "received")
    world.settle()
    for _ in range(BATCHES):
        sequence(world.work)


def sequence_behind_many(world: World, number: int) -> None:
    """Sequence arrivals in lanes where very many wait after a change of `ordering`."""
    world.fill(LANES, "'u' || (n % 100)", "ready")
    world.fill(number, "'u' || (n % 100)", "waiting")
    world.fill(BATCHES * 500, "'u' || (n % 100)", "received")
    world.settle()
    for _ in range(BATCHES):
        sequence(world.work)


def record_before_many(world: World, number: int) -> None:
    """Record heads before very many waiting events, after a change of `ordering`."""
    world.fill(LANES, "'u' || (n % 100)", "ready")
    world.fill(number, "'u' || (n % 100)", "waiting")
    world.settle()
    world.record(world.claim(LANES))


def fold_one_lane(world: World, number: int) -> None:
    """Record the head of one lane in which all others wait."""
    world.fill(1, "'one'", "ready")
    world.fill(number, "'one'", "waiting")
    world.settle()
    world.record(world.claim(1))


def heal_many(world: World, number: int) -> None:
    """Record a success that heals very many dead deliveries."""
    world.fill(number, "'one'", "dead")
    world.fill(1, "'one'", "ready")
    world.settle()
    world.record(world.claim(1))


def rescue_before_many(world: World, number: int) -> None:
    """Take back expired leases of heads before very many waiting events."""
    world.fill(500, "'u' || (n % 500)", "ready")
    world.fill(number, "'u' || (n % 500)", "waiting")
    world.settle()
    world.claim(500)
    with world.engine.begin() as connection:
        connection.execute(
            text(f"UPDATE open_delivery SET lease_until = '{_MOMENT}' WHERE state = 'in_flight'".replace(":", "\\:"))
        )
    rescue_expired(world.work)


def replay_a_page(world: World, number: int) -> None:
    """Replay dead deliveries of one lane."""
    world.fill(number, "'one'", "dead")
    world.settle()
    world.command("replay", Selection(route=ROUTE, cause="mapping"))


def replay_the_last(world: World, number: int) -> None:
    """Replay the only delivery of an entity, found last."""
    world.fill(number, "'u' || (n % 1000)", "dead")
    world.fill(1, "'one'", "dead")
    world.settle()
    world.command("replay", Selection(route=ROUTE, cause="mapping", entity_type="USER", entity_id="one"))


def cancel_a_page(world: World, number: int) -> None:
    """Cancel the waiting deliveries of one lane."""
    world.fill(1, "'one'", "ready")
    world.fill(number, "'one'", "waiting")
    world.settle()
    world.command("cancel", Selection(route=ROUTE))


def cancel_the_last(world: World, number: int) -> None:
    """Cancel the only delivery of an entity, found last."""
    world.fill(number, "'u' || (n % 1000)", "waiting")
    world.fill(1, "'one'", "ready")
    world.settle()
    world.command("cancel", Selection(entity_type="USER", entity_id="one"))


CASES: dict[str, Callable[[World, int], None]] = {
    "sequence": sequence_a_mountain,
    "sequence behind many": sequence_behind_many,
    "record before many": record_before_many,
    "fold one lane": fold_one_lane,
    "heal many": heal_many,
    "rescue before many": rescue_before_many,
    "replay a page": replay_a_page,
    "replay the last": replay_the_last,
    "cancel a page": cancel_a_page,
    "cancel the last": cancel_the_last,
}


class Longest(msgspec.Struct):
    """The longest transaction of one case."""

    case: str
    open: int
    milliseconds: float
    computing: float
    """Milliseconds of CPU time in this process."""
    rounds: list[float]

    @property
    def is_met(self) -> bool:
        """True if the time is within the bar."""
        return self.milliseconds <= BAR_MS


def measure(url: str, case: str, number: int, rounds: int) -> Longest:
    """Run a case so often, each time in an empty database."""
    world = World(url)
    times, computing = [], []
    for _ in range(rounds):
        world.empty()
        with suppress(OperationalError):
            CASES[case](world, number)
        times.append(round(world.database.longest * 1000, 1))
        computing.append(round(world.database.computing * 1000, 1))
    world.engine.dispose()
    return Longest(case, number, statistics.median(times), statistics.median(computing), times)


def main(
    *,
    database: OnDatabase = Kind.POSTGRES,
    open_: Annotated[
        list[int], typer.Option("--open", min=1000, max=5_000_000, help="So many are open; repeatable.")
    ] = [1000, 100_000],  # noqa: B006  # typer's way
    rounds: Rounds = 3,
    case: Annotated[list[str] | None, typer.Option(help="Only this case; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the longest transaction under the order lock."""
    wanted = [(name, number) for name in case or CASES for number in open_]
    with databases(database, len(wanted)) as urls:
        found = [measure(url, *each, rounds) for url, each in zip(urls, wanted, strict=True)]
    missed = [one for one in found if not one.is_met]
    rows = [(*msgspec.structs.astuple(one), "met" if one.is_met else "missed") for one in found]
    columns = ("case", "open", "longest, ms", "computing, ms", "rounds", f"bar: {BAR_MS} ms")
    told = {"longest": found, "bar_ms": BAR_MS}
    tell(f"Longest transactions, {database}", told, columns, rows, as_json=as_json)
    raise typer.Exit(int(bool(missed)))


if __name__ == "__main__":
    start(main)
