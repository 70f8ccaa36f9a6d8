"""What a relay does besides deliveries, now and then: leases that ran out, repeats, gates, alerts, what operators ask for."""

from __future__ import annotations

import time
from collections.abc import Mapping

from inbox.config import Config
from relay.claiming import Claiming
from relay.leases import Leases
from relay.observe import Observer
from relay.policy import RoutePolicy
from relay.poster import Done, Poster
from relay.store import alerts, commands, reap, repeats
from relay.store.clock import DatabaseClock
from relay.store.conditions import Watch
from relay.store.database import Database
from relay.store.horizon import Horizon

EVERY_SECONDS = 1.0
WATCH_EVERY_SECONDS = 15.0


class Upkeep:
    """Of one relay. Every step is a short transaction; one that fails is made again in the next round."""

    def __init__(self, database: Database, node: str, claiming: Claiming, observer: Observer, leases: Leases) -> None:
        self._database = database
        self._node = node
        self._claiming = claiming
        self._observer = observer
        self._leases = leases
        self._clock = DatabaseClock(told=observer.clock_stepped)
        self._horizon = Horizon()
        self._watch = Watch()
        self._posts: list[Done] = []
        self._next_at = self._watch_at = 0.0
        self._any_command = False

    def do(self, config: Config, policies: Mapping[str, RoutePolicy], poster: Poster) -> int:
        """What is due. Returns how many deliveries it has changed at the word of operators."""
        self._finish_posts(poster)
        if time.monotonic() >= self._next_at:
            trusted = self._leases.trusted()
            self._observer.reaped(reap.reap(self._database, policies, self._node, trusted, self._clock))
            self._observer.pulled_in(self._horizon.pull_in(self._database, config, policies, self._node))
            self._claiming.look_at_gates()
            self._observer.judged(repeats.judge_repeats(self._database, config, self._node))
            self._look_at_conditions(config)
            self._alert(poster)
            self._any_command = commands.any_open(self._database)
            self._next_at = time.monotonic() + EVERY_SECONDS
        return self._obey(config) if self._any_command else 0

    def posted(self, done: Done) -> None:
        """An alert was posted, or not; it is noted in the next round."""
        self._posts.append(done)

    def _finish_posts(self, poster: Poster) -> None:
        while self._posts:
            done = self._posts[0]
            if done.error is None:
                alerts.sent(self._database, done.posted.id)
            else:
                self._observer.not_posted(done.posted, done.error)
            poster.let_go()
            self._posts.pop(0)

    def _look_at_conditions(self, config: Config) -> None:
        if time.monotonic() >= self._watch_at:
            self._watch.look(self._database, config)
            self._watch_at = time.monotonic() + WATCH_EVERY_SECONDS

    def _alert(self, poster: Poster) -> None:
        self._observer.alerted(alerts.take_untold(self._database))
        if poster.is_free:
            for posted in alerts.take_unsent(self._database):
                poster.post(posted)

    def _obey(self, config: Config) -> int:
        """A batch of what operators ask for; when there is nothing to do at the moment, it is looked at again later."""
        changed = commands.work_on_open(self._database, config)
        self._any_command = changed > 0
        self._claiming.look_at_gates()  # it may have been a pause
        return changed
