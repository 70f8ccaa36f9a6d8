"""Periodic maintenance: expired leases, duplicates, gates, alerts and operator commands, each a step."""

from __future__ import annotations

import time

from inbox.db.dialect import failure_of
from inbox.db.throughput import FLUSH_EVERY_SECONDS
from relay.daemon.alert_sender import PostResult
from relay.daemon.claimer import Claimer
from relay.daemon.generation import Generations
from relay.daemon.lease_renewal import Leases
from relay.observe import Observer
from relay.steps import Steps
from relay.store import alerts, duplicates, leases, nodes
from relay.store.alert_conditions import Watch
from relay.store.leases import DatabaseClock
from relay.store.operator import commands, execution
from relay.store.work import Work

EVERY_SECONDS = 1.0
"""Between two looks for commands and at gates, always: a pause stops all relays within about a second."""
AT_LEAST_EVERY_SECONDS = 4.0
"""Between two rounds of the other steps, at most: with a lease of 15 s, a dead relay is replaced within 20 s."""
PART_OF_THE_TIME = 1 / 10
"""The largest share of the loop's time between the two: looks read all that an open transaction keeps in the indexes."""
WATCH_EVERY_SECONDS = 15.0


class Maintenance:
    """Maintenance of one relay. Every step is a few short transactions; `steps` isolates one that fails."""

    def __init__(
        self,
        generations: Generations,
        *,
        claimer: Claimer,
        leases: Leases,
        steps: Steps,
        observer: Observer,
    ) -> None:
        self._generations = generations
        self._claimer = claimer
        self._leases = leases
        self._steps = steps
        self._observer = observer
        self._clock = DatabaseClock(told=observer.clock_stepped)
        self._watch = Watch()
        self._commands = execution.OpenCommands(tracer=observer.tracer)
        self._results: list[PostResult] = []
        """Results of posts that are not recorded yet."""
        self._next_at = self._look_at = self._watch_at = 0.0
        self._flush_at = time.monotonic() + FLUSH_EVERY_SECONDS
        self._any_command = self._is_to_look = False
        """True when a command is open; true when it is time to look for one."""
        self._duplicates: duplicates.Rest | None = None
        """The duplicates to judge next, and at once."""

    def run(self) -> int:
        """Run the steps that are due. Returns more than 0 when there is more to do at once."""
        run = self._steps.run
        began = time.monotonic()
        if began >= self._look_at:
            self._look_at = began + EVERY_SECONDS
            run("look_at_gates", self._claimer.read_gates, None)
            self._is_to_look = True
        if began >= self._next_at:
            run("reap", self._reap, None)
            run("judge_duplicates", self._judge_duplicates, None)
            run("look_at_conditions", self._look_at_conditions, None)
            run("log_alerts", self._log_alerts, None)
            run("send_alerts", self._send_alerts, None)
            if time.monotonic() >= self._flush_at:
                run("flush_throughput", self.flush_throughput, None)
            took = time.monotonic() - began
            self._next_at = began + took + min(max(EVERY_SECONDS, took / PART_OF_THE_TIME), AT_LEAST_EVERY_SECONDS)
        else:
            if self._duplicates is not None:
                run("judge_duplicates", self._judge_duplicates, None)
            if self._results:
                run("send_alerts", self._send_alerts, None)
        changed = run("commands", self._work_on_commands, 0) if self._any_command or self._is_to_look else 0
        return changed + int(self._duplicates is not None)

    def posted(self, result: PostResult) -> None:
        """Keep the result of a post, to be recorded in the next round."""
        self._results.append(result)

    @property
    def _work(self) -> Work:
        return self._generations.active.work

    def _reap(self) -> None:
        self._observer.reaped(leases.reap(self._work, self._leases.trusted(), self._clock))

    def _judge_duplicates(self) -> None:
        rest, self._duplicates = self._duplicates, None
        judged = duplicates.judge_duplicates(self._work, rest)
        self._duplicates = judged.rest
        if judged.rearmed:
            self._observer.tell("rearmed", rows=judged.rearmed, handled=judged.handled)

    def _look_at_conditions(self) -> None:
        if time.monotonic() >= self._watch_at:
            self._watch.look(self._work.database, self._work.config)
            self._watch_at = time.monotonic() + WATCH_EVERY_SECONDS

    def _log_alerts(self) -> None:
        for kind in alerts.of_newer_version(self._work.database):
            self._observer.left_alone(f"alerts of the kind {kind}")
        self._observer.alerted(alerts.take_untold(self._work))

    def _send_alerts(self) -> None:
        while self._results:
            result = self._results[0]
            try:
                alerts.posted(self._work.database, result.posted.id, result.error, is_final=result.is_final)
            except Exception as error:
                if failure_of(error) == "fault":  # it is posted again in a minute, and holds up no other until then
                    self._end_post(result)
                raise
            self._end_post(result)
        active = self._generations.active
        if active.alert_sender.is_free:
            for unsent in alerts.take_unsent(self._work):
                active.alert_sender.post(unsent)

    def _end_post(self, result: PostResult) -> None:
        if result.error is not None:
            kind, subject = result.posted.alert.kind, result.posted.alert.subject
            self._observer.tell(
                "alert_not_posted", number=result.posted.id, kind=kind, subject=subject, error=result.error
            )
        result.sender.release()
        self._results.remove(result)

    def flush_throughput(self) -> None:
        """Write the figures that were counted since the last time."""
        nodes.flush_figures(self._work.database, self._work.config.routes)
        self._flush_at = time.monotonic() + FLUSH_EVERY_SECONDS

    def _look_for_commands(self) -> bool:
        for number, kind in commands.of_newer_version(self._work.database):
            self._observer.left_alone(f"command {number}, a {kind}")
        return commands.any_open(self._work.database)

    def _work_on_commands(self) -> int:
        """Work on a batch of each open command; where nothing can be done now, look again in a second."""
        if self._is_to_look:
            self._any_command = self._look_for_commands()
            self._is_to_look = False
        if not self._any_command:
            return 0
        self._any_command = False
        changed = self._commands.work(self._work)
        for number, error in self._commands.troubled:
            self._observer.database_trouble(f"working on command {number}", error)
        self._any_command = changed > 0
        self._claimer.read_gates()  # the command may have been a pause
        return changed
