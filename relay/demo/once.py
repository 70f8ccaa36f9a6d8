"""`relay demo --once`: many changes, failures and a killed relay; at the end both services must agree."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from relay.demo.bars import Bars
from relay.demo.compare import Comparison, compare
from relay.demo.happenings import CallMade, Happening, Happenings, Ordered, WebhookSent
from relay.demo.scenario import A_MOMENT_SECONDS, Made, Scenario
from relay.demo.screen import short
from relay.demo.stack import Stack
from relay.demo.summary import Summary

USERS, GROUPS, CHANGES = 20, 5, 240
KILL_AFTER, RESTART_AFTER = 60, 100
"""The relay is killed after so many changes, and a new one started after so many."""

AGREE_SECONDS = 90.0
"""How long it may take until nothing is left to do."""

_LOST_SHARE = 0.05
_FREE_USERS = 3
_PAUSE_SECONDS = 0.03
_POLL_SECONDS = 0.2
_CATCH_SECONDS, _CATCH_POLL_SECONDS, _CATCH_ENOUGH = 2.0, 0.005, 3
_UNAVAILABLE = 503
_SUCCESSES = range(200, 300)


@dataclass
class Tally:
    """What was heard of: webhooks and calls are counted, what a command has said is passed on."""

    say: Callable[[str], None]

    webhooks: int = 0
    refused: int = 0
    calls: int = 0
    unavailable: int = 0

    def hear(self, happening: Happening) -> None:
        """Take note of it."""
        if isinstance(happening, CallMade):
            self.calls += 1
            self.unavailable += happening.status == _UNAVAILABLE
        elif isinstance(happening, Ordered):
            if happening.said:
                self.say(f"relay {happening.command}, {short(happening.about)}: {happening.said}")
        elif isinstance(happening, WebhookSent):
            self.webhooks += 1
            self.refused += happening.status not in _SUCCESSES


@dataclass
class Course:
    """How the run went so far."""

    actions: Counter[str] = field(default_factory=Counter)
    in_flight_when_killed: int = 0
    swept: int = 0
    orphans: int = 0
    in_step: int = 0
    not_in_step: int = 0


class OnceRun:
    """One run. Main thread only."""

    def __init__(self, console: Console, seed: int) -> None:
        self._seed = seed
        self._bars = Bars(console, CHANGES)
        self._tally, self._course = Tally(self._bars.say), Course()
        self._happenings = Happenings(self._tally.hear)
        self._untold: list[Made] = []
        self._chosen: set[str] = set()

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
            self._miss_and_find(stack, scenario)
            self._edit_quietly(stack, scenario)
            with stack.well():
                self._leave_and_find(stack, scenario)
                self._bars.say("waiting until nothing is left to do")
                self._settle(stack)
                comparison = compare(stack.identity, stack.commercial, scenario.deleted)
                self._course.in_step, self._course.not_in_step = stack.orders.plan()
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

    def _miss_and_find(self, stack: Stack, scenario: Scenario) -> None:
        """Changes that no webhook tells of, once all other webhooks have come; they are looked for."""
        self._until(stack, lambda: not stack.identity.pending_webhooks())
        self._happenings.wait(A_MOMENT_SECONDS)
        self._untold = scenario.change_untold(stack.ledger.entities_under_way())
        self._course.actions.update(made.action for made in self._untold)
        self._bars.say(f"all {CHANGES} changes are made, and {len(self._untold)} more that no webhook tells of")
        self._chosen = {made.entity_id for made in self._untold}
        self._course.swept = stack.orders.sweep()

    def _edit_quietly(self, stack: Stack, scenario: Scenario) -> None:
        """Of users of whom nothing else is under way, so that it is certain what follows."""
        self._until(stack, lambda: len(scenario.free_users(self._busy(stack))) >= _FREE_USERS)
        made = scenario.edit_quietly(self._busy(stack))
        self._course.actions.update(each.action for each in made)
        self._chosen |= {each.entity_id for each in made}

    def _busy(self, stack: Stack) -> set[str]:
        return stack.ledger.entities_under_way() | self._chosen

    def _leave_and_find(self, stack: Stack, scenario: Scenario) -> None:
        """A deletion that no webhook tells of; what it leaves is found by comparing ids, and a replay puts it right."""
        self._course.actions[scenario.delete_untold(self._busy(stack)).action] += 1
        self._bars.say("a user is deleted, and no webhook tells of it")
        for orphan in stack.orders.orphans(stack.ledger.entities_under_way()):
            self._course.orphans += 1
            stack.orders.replay(orphan)

    def _settle(self, stack: Stack) -> None:
        """Waits until nothing is left to do, within bounds."""
        self._until(stack, lambda: self._is_settled(stack))

    def _until(self, stack: Stack, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + AGREE_SECONDS
        while not done() and time.monotonic() < deadline:
            self._happenings.wait(_POLL_SECONDS)
            stack.check()

    def _is_settled(self, stack: Stack) -> bool:
        self._bars.settled(stack.ledger.progress())
        return stack.is_settled()

    def _summary(self, stack: Stack, comparison: Comparison, seconds: float) -> Summary:
        self._happenings.wait(0)
        progress, counts = stack.ledger.progress(), stack.ledger.counts()
        unsent = stack.identity.pending_webhooks()
        return Summary(
            agree=not comparison.differences and not progress.to_do and not unsent and not self._course.not_in_step,
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
            failed_attempts=counts.get("attempt_failed", 0) - counts["stale"],
            delivered=counts.get("delivered", 0),
            superseded=counts.get("superseded", 0),
            rearmed=counts.get("rearmed", 0),
            replayed=counts.get("replayed", 0),
            unchanged=counts.get("unchanged", 0),
            stale_reads=counts["stale"],
            untold=len(self._untold),
            swept=self._course.swept,
            orphans=self._course.orphans,
            in_step=self._course.in_step,
            not_in_step=self._course.not_in_step,
            dead=progress.given_up,
            still_open=progress.to_do,
            seed=self._seed,
            seconds=round(seconds, 1),
            folder=str(stack.folder),
        )
