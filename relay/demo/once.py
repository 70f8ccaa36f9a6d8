"""`relay demo --once`: many changes, failures and a killed relay; at the end both services must agree."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from relay.demo.bars import Bars
from relay.demo.compare import Comparison, compare
from relay.demo.happenings import CallMade, Happening, Happenings
from relay.demo.scenario import Scenario
from relay.demo.stack import Stack
from relay.demo.summary import Summary

USERS, GROUPS, CHANGES = 20, 5, 240
KILL_AFTER, RESTART_AFTER = 110, 150
"""The relay is killed after so many changes, and a new one started after so many."""

AGREE_SECONDS = 90.0
"""How long the services may take to agree after the last change."""

_LOST_SHARE = 0.05
_PAUSE_SECONDS = 0.03
_POLL_SECONDS = 0.2
_CATCH_SECONDS, _CATCH_POLL_SECONDS, _CATCH_ENOUGH = 2.0, 0.005, 3
_UNAVAILABLE = 503
_SUCCESSES = range(200, 300)


@dataclass
class Tally:
    """What was heard of, counted."""

    webhooks: int = 0
    refused: int = 0
    calls: int = 0
    unavailable: int = 0

    def hear(self, happening: Happening) -> None:
        """Count a webhook or a call."""
        if isinstance(happening, CallMade):
            self.calls += 1
            self.unavailable += happening.status == _UNAVAILABLE
        else:
            self.webhooks += 1
            self.refused += happening.status not in _SUCCESSES


@dataclass
class Course:
    """How the run went so far."""

    actions: Counter[str] = field(default_factory=Counter)
    in_flight_when_killed: int = 0


class OnceRun:
    """One run. Main thread only."""

    def __init__(self, console: Console, seed: int) -> None:
        self._seed = seed
        self._tally, self._course = Tally(), Course()
        self._happenings = Happenings(self._tally.hear)
        self._bars = Bars(console, CHANGES)

    def run(self, *, folder: Path | None, database_url: str | None) -> Summary:
        """Start everything, change a lot, kill the relay, wait until both services agree, and stop everything.

        Raises:
            DemoError: something does not start, or ends by itself.
            ConfigError: the database can't be used.
            Stopped: SIGINT, SIGTERM or SIGHUP came; everything has been stopped.
        """
        began = time.monotonic()
        stack = Stack(
            self._happenings,
            folder=folder,
            database_url=database_url,
            luck=str(self._seed),
            lost_share=_LOST_SHARE,
            starting=lambda part: self._bars.say(f"starting {part}"),
        )
        with self._happenings.stopping(), self._bars, stack:
            self._bars.say(f"everything is in {stack.folder}; the seed is {self._seed}")
            scenario = Scenario(stack.identity, random.Random(self._seed), users=USERS, groups=GROUPS)  # noqa: S311
            self._change(stack, scenario)
            comparison = self._agree(stack, scenario)
            summary = self._summary(stack, comparison, time.monotonic() - began)
            self._bars.say("stopping the receiver, the relay and the services")
        return summary

    def _change(self, stack: Stack, scenario: Scenario) -> None:
        for number in range(1, CHANGES + 1):
            self._course.actions[scenario.step().action] += 1
            self._bars.changed(number)
            # Before the kill changes come in a burst, so that the relay has its hands full.
            if not KILL_AFTER - USERS < number <= KILL_AFTER:
                self._happenings.wait(_PAUSE_SECONDS)
                self._bars.settled(stack.ledger.progress())
            if number == KILL_AFTER:
                self._kill_relay(stack)
            elif number == RESTART_AFTER:
                stack.start_relay()
                self._bars.say(f"relay {stack.relay.pid} works; what the killed one held is free after 15 s")
            stack.check()

    def _kill_relay(self, stack: Stack) -> None:
        """Kill it while it works on something, so that there is something to take over."""
        deadline = time.monotonic() + _CATCH_SECONDS
        while stack.ledger.in_flight() < _CATCH_ENOUGH and time.monotonic() < deadline:
            self._happenings.wait(_CATCH_POLL_SECONDS)
        pid = stack.relay.pid
        stack.kill_relay()
        self._course.in_flight_when_killed = caught = stack.ledger.in_flight()
        self._bars.say(f"killed relay {pid} (SIGKILL) over {caught} deliveries; changes go on")

    def _agree(self, stack: Stack, scenario: Scenario) -> Comparison:
        """Waits until nothing is left to do, within bounds; then compares."""
        self._bars.say(f"all {CHANGES} changes are made; waiting until both services agree")
        deadline = time.monotonic() + AGREE_SECONDS
        while not self._is_settled(stack) and time.monotonic() < deadline:
            self._happenings.wait(_POLL_SECONDS)
            stack.check()
        return compare(stack.identity, stack.commercial, scenario.deleted)

    def _is_settled(self, stack: Stack) -> bool:
        unsent = stack.identity.pending_webhooks()
        progress = stack.ledger.progress()
        self._bars.settled(progress)
        return not unsent and not progress.to_do

    def _summary(self, stack: Stack, comparison: Comparison, seconds: float) -> Summary:
        self._happenings.wait(0)
        progress, counts = stack.ledger.progress(), stack.ledger.counts()
        unsent = stack.identity.pending_webhooks()
        return Summary(
            agree=not comparison.differences and not progress.to_do and not unsent,
            differences=comparison.differences,
            entities=comparison.entities,
            fields=comparison.fields,
            changes=self._course.actions.total(),
            created=self._course.actions["create"],
            updated=self._course.actions["update"],
            deleted=self._course.actions["delete"],
            webhooks=self._tally.webhooks,
            webhooks_refused=self._tally.refused,
            webhooks_unsent=unsent,
            events=counts["events"],
            duplicates=counts["repeats"],
            calls=self._tally.calls,
            calls_failed_503=self._tally.unavailable,
            in_flight_when_killed=self._course.in_flight_when_killed,
            takeovers=counts.get("abandoned", 0),
            failed_attempts=counts.get("attempt_failed", 0),
            delivered=counts.get("delivered", 0),
            superseded=counts.get("superseded", 0),
            rearmed=counts.get("rearmed", 0),
            dead=progress.given_up,
            still_open=progress.to_do,
            seed=self._seed,
            seconds=round(seconds, 1),
            folder=str(stack.folder),
        )
