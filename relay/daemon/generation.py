"""Who works by the configuration in force, and who is still at the last calls of those before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

import msgspec

from inbox.config.model import Config
from relay.daemon.alert_sender import AlertSender, Done
from relay.daemon.leases import Leases
from relay.daemon.pool import Finished, WorkerPools
from relay.delivery.outcome import Delivery
from relay.delivery.policy import policies
from relay.destinations import Deliverer
from relay.http.client import HttpClient
from relay.sweep.run import Sweeping


class Setup(msgspec.Struct, frozen=True):
    """A configuration, and what makes its calls."""

    config: Config
    deliverers: Mapping[str, Deliverer]
    alerts: HttpClient | None = None
    """Posts them; None: nowhere."""
    sweepings: tuple[Sweeping, ...] = ()
    """Sweeps that are run when they are due."""


LoopEvent = Finished | Done | Setup | None
"""What other threads have for the loop."""


class Generations:
    """Crews for every destination, and one who posts alerts. What they have for the loop goes into `mail`."""

    def __init__(
        self,
        setup: Setup,
        *,
        leases: Leases,
        stop: threading.Event,
        now: Callable[[], datetime],
        mail: queue.SimpleQueue[LoopEvent],
    ) -> None:
        self._leases = leases
        self._stop = stop
        self._now = now
        self._mail = mail
        self._leaving: list[WorkerPools] = []
        self._hire(setup)

    def change_over(self, new: Setup) -> list[Delivery]:
        """Work by another configuration; what has begun finishes by the old. Returns what nobody has begun."""
        untouched = self.crews.take_back()
        self._leaving.append(self.crews)
        self.poster.end()
        self._hire(new)
        return untouched

    def dismiss(self) -> None:
        """Let crews go that have come to the end of their last calls."""
        for crews in self._leaving:
            if not crews.in_hand:
                crews.end()
        self._leaving = [crews for crews in self._leaving if crews.in_hand]

    def end(self) -> None:
        """Let everybody go."""
        for crews in self._all():
            crews.end()
        self.poster.end()

    @property
    def in_hand(self) -> int:
        """How many deliveries they have, begun or not."""
        return sum(crews.in_hand for crews in self._all())

    @property
    def suspects(self) -> int:
        """How many of those may be what kills the process."""
        return sum(crews.suspects for crews in self._all())

    def _all(self) -> Iterator[WorkerPools]:
        yield self.crews
        yield from self._leaving

    def _hire(self, setup: Setup) -> None:
        self.config = setup.config
        self.policies = policies(setup.config)
        self.crews = WorkerPools(
            setup.config,
            setup.deliverers,
            leases=self._leases,
            stop=self._stop,
            now=self._now,
            finished=self._mail.put,
        )
        form = setup.config.alerts.format
        self.poster = AlertSender(setup.alerts, form, stop=self._stop, now=self._now, done=self._mail.put)
