"""Periodic maintenance: expired leases, leftovers, duplicates, gates, alerts, operator commands: a step each."""

from __future__ import annotations

import time

from inbox.config.model import Config
from inbox.db.dialect import failure_of
from relay.daemon.alert_sender import AlertSender, Done
from relay.daemon.claimer import Claimer
from relay.daemon.leases import Leases
from relay.delivery.policy import Policies
from relay.observe import Observer
from relay.steps import Steps
from relay.store import alerts, duplicates, reap
from relay.store.clock import DatabaseClock
from relay.store.conditions import Watch
from relay.store.database import Database
from relay.store.horizon import Horizon
from relay.store.leftovers import Leftovers
from relay.store.operator import commands

EVERY_SECONDS = 1.0
WATCH_EVERY_SECONDS = 15.0


class Maintenance:
    """Maintenance of one relay. Every step is a few short transactions; `steps` keeps one that fails from the others."""

    def __init__(
        self, database: Database, node: str, claiming: Claimer, observer: Observer, *, leases: Leases, steps: Steps
    ) -> None:
        self._database = database
        self._node = node
        self._claiming = claiming
        self._observer = observer
        self._leases = leases
        self._steps = steps
        self._clock = DatabaseClock(told=observer.clock_stepped)
        self._horizon = Horizon()
        self._watch = Watch()
        self._commands = commands.OpenCommands(database)
        self._posts: list[Done] = []
        self._next_at = self._watch_at = 0.0
        self._any_command = self._is_to_look = False
        """Whether there is an open command, and whether to look for one."""
        self._duplicates: duplicates.Rest | None = None
        """Those that are judged next, and at once."""
        self._leftovers = Leftovers()
        self._any_left = False

    def do(self, config: Config, policies: Policies, poster: AlertSender) -> int:
        """Do what is due. Returns more than 0 when there is more to do at once."""
        run = self._steps.run
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + EVERY_SECONDS
            run("reap", lambda: self._reap(policies), None)
            run("pull_in", lambda: self._pull_in(config, policies), None)
            run("look_at_gates", self._claiming.look_at_gates, None)
            run("judge_duplicates", lambda: self._judge_duplicates(config, policies), None)
            run("look_at_conditions", lambda: self._look_at_conditions(config), None)
            run("log_alerts", self._log_alerts, None)
            run("send_alerts", lambda: self._send_alerts(poster), None)
            self._any_left = self._is_to_look = True
        else:
            if self._duplicates is not None:
                run("judge_duplicates", lambda: self._judge_duplicates(config, policies), None)
            if self._posts:
                run("send_alerts", lambda: self._send_alerts(poster), None)
        worked_off = run("work_off", lambda: self._work_off(policies), 0) if self._any_left else 0
        self._any_left = worked_off > 0
        changed = (
            run("commands", lambda: self._obey(config, policies), 0) if self._any_command or self._is_to_look else 0
        )
        return changed + worked_off + int(self._duplicates is not None)

    def posted(self, done: Done) -> None:
        """Take note that an alert was posted, or not, in the next round."""
        self._posts.append(done)

    def _reap(self, policies: Policies) -> None:
        trusted = self._leases.trusted()
        self._observer.reaped(reap.reap(self._database, policies, self._node, trusted, self._clock))

    def _pull_in(self, config: Config, policies: Policies) -> None:
        self._observer.pulled_in(self._horizon.pull_in(self._database, config, policies, self._node))

    def _work_off(self, policies: Policies) -> int:
        return self._leftovers.work_off(self._database, policies, self._node)

    def _judge_duplicates(self, config: Config, policies: Policies) -> None:
        rest, self._duplicates = self._duplicates, None
        judged = duplicates.judge_duplicates(self._database, config, policies, self._node, rest)
        self._duplicates = judged.rest
        self._observer.judged(judged)

    def _look_at_conditions(self, config: Config) -> None:
        if time.monotonic() >= self._watch_at:
            self._watch.look(self._database, config)
            self._watch_at = time.monotonic() + WATCH_EVERY_SECONDS

    def _log_alerts(self) -> None:
        for kind in alerts.of_newer_version(self._database):
            self._observer.left_alone(f"alerts of the kind {kind}")
        self._observer.alerted(alerts.take_untold(self._database))

    def _send_alerts(self, poster: AlertSender) -> None:
        while self._posts:
            done = self._posts[0]
            try:
                alerts.posted(self._database, done.posted.id, done.error, is_final=done.is_final)
            except Exception as error:
                if failure_of(error) == "fault":  # it is posted again in a minute, and holds up no other until then
                    self._end_post(poster, done)
                raise
            self._end_post(poster, done)
        if poster.is_free:
            for unsent in alerts.take_unsent(self._database):
                poster.post(unsent)

    def _end_post(self, poster: AlertSender, done: Done) -> None:
        if done.error is not None:
            self._observer.not_posted(done.posted, done.error)
        poster.let_go()
        self._posts.remove(done)

    def _look_for_commands(self) -> bool:
        for number, kind in commands.of_newer_version(self._database):
            self._observer.left_alone(f"command {number}, a {kind}")
        return commands.any_open(self._database)

    def _obey(self, config: Config, policies: Policies) -> int:
        """Do a batch of each open command; where nothing can be done at the moment, look again in a second."""
        if self._is_to_look:
            self._any_command = self._look_for_commands()
            self._is_to_look = False
        if not self._any_command:
            return 0
        self._any_command = False
        changed = self._commands.work(config, policies)
        for number, error in self._commands.busy:
            self._observer.database_trouble(f"working on command {number}", error)
        self._any_command = changed > 0
        self._claiming.look_at_gates()  # it may have been a pause
        return changed
