"""The relay's steps, one by one, with a destination that does what it is told and a clock that stands still."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.config.model import Config
from relay.daemon.pool import attempt
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome
from relay.delivery.policy import policies
from relay.http.client import Limits
from relay.store import claim, reap, record, sequence
from relay.store.database import Database
from relay.store.record import Recorded

DONE = Delivered((), "forwarded")
UNWELL = Failed((), "server_error", "forward answered 503")


class Scripted:
    """A deliverer whose outcomes are given; after the last one, all goes well."""

    def __init__(self, outcomes: Sequence[Outcome] = ()) -> None:
        self.seen: list[Delivery] = []
        self._outcomes = list(outcomes)

    def deliver(self, delivery: Delivery, context: Limits) -> Outcome:  # noqa: ARG002  # as every deliverer's
        """The next outcome."""
        self.seen.append(delivery)
        return self._outcomes.pop(0) if self._outcomes else DONE

    def close(self) -> None:
        """Nothing is open."""


class Steps:
    """Steps of one round of a relay, under the name of one node, for every route of the configuration."""

    def __init__(self, engine: Engine, config: Config, deliverer: Scripted | None = None) -> None:
        self.moment = datetime(2030, 1, 1, tzinfo=UTC)
        self.deliverer = deliverer or Scripted()
        self.node = "first"
        self._database = Database(engine, lambda: self.moment)
        self._policies = policies(config)
        self._routes = list(config.routes)

    def advance(self, seconds: float) -> None:
        """Let time pass for the database's clock, as the relay sees it."""
        self.moment += timedelta(seconds=seconds)

    def sequence(self) -> int:
        """Order what arrived."""
        return sequence.sequence(self._database, self._policies, self.node)

    def claim(self, most: int = 100) -> list[Delivery]:
        """Lease what is due."""
        return claim.claim(self._database, self.node, [(self._routes, most)])

    def deliver(self, claimed: Sequence[Delivery]) -> list[tuple[Delivery, Outcome]]:
        """Make the attempts."""
        context = Limits(lambda: float("inf"), threading.Event(), SystemClock().now)
        return [(delivery, attempt(delivery, self.deliverer, context)) for delivery in claimed]

    def record(self, outcomes: Sequence[tuple[Delivery, Outcome]]) -> list[Recorded]:
        """Write down what they came to."""
        return record.record(self._database, self._policies, self.node, outcomes)

    def reap(self) -> int:
        """Take back leases that ran out."""
        return len(reap.reap(self._database, self._policies, self.node))

    def round(self) -> int:
        """All of it; how many attempts were made."""
        self.reap()
        self.sequence()
        return len(self.record(self.deliver(self.claim())))

    def until_nothing_is_due(self) -> None:
        """Rounds until one has nothing to do."""
        while self.round():
            pass
