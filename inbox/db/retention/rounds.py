"""Rounds of retention: batches of each kind under one lease, for relays, for commands in SQL and for `inbox prune`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import Connection

from inbox.config.retention import Retention, RetentionKind
from inbox.db.dialect import Sql, blames_items, error_text, is_wait_timeout
from inbox.db.retention import kinds, state, walk
from inbox.db.retention.kinds import STEPS, WALKS
from inbox.db.retention.pace import Pace, pace_of
from inbox.db.retention.pruned import Expiry, Pruned
from inbox.db.retention.state import KindState

KIND_SECONDS = 10.0
"""The longest that one kind keeps the others waiting within a round."""

Begin = Callable[[int], AbstractContextManager[Connection]]
"""Begins a short transaction that writes about so many rows, and commits it."""


class LeaseLost(Exception):
    """Another pruner has the lease."""


class PassedOver(msgspec.Struct, frozen=True):
    """A row that could not be deleted, not even alone."""

    kind: RetentionKind
    key: int
    error: str


Event = Pruned | PassedOver


def expiry_of(retention: Retention, kind: RetentionKind, clock: datetime) -> Expiry:
    """Return the expiry of a kind at a time. Pure."""
    age = retention.age_of(kind)
    return Expiry(None if age.is_forever else clock - timedelta(seconds=float(age)), retention.most_of(kind))


def expires(retention: Retention, kind: RetentionKind) -> bool:
    """Return whether anything of a kind ever expires. Pure."""
    return not retention.age_of(kind).is_forever or retention.most_of(kind) is not None


class LeasedPruner:
    """Prunes in short transactions under a lease, which each of them renews."""

    def __init__(
        self,
        begin: Begin,
        holder: str,
        *,
        now: Callable[[], str | None] = lambda: None,
        rest: Callable[[float], object] = time.sleep,
    ) -> None:
        """Prepare to prune.

        Args:
            begin: begins a transaction.
            holder: the name of the lease's holder.
            now: replaces the database's clock, for tests.
            rest: waits for so many seconds, or less when the process is to end.
        """
        self._begin = begin
        self.holder = holder
        self._now = now
        self._rest = rest
        self._paces: dict[RetentionKind, Pace] = {}

    def take(self) -> state.PruningTurn | None:
        """Take the lease, unless somebody else has it."""
        with self._begin(1) as connection:
            return state.take(connection, self.holder, self._now())

    def give_back(self, clock: datetime | None) -> None:
        """Give the lease back. After a whole round, `clock` is the time that its ages counted from."""
        with self._begin(1) as connection:
            state.give_back(connection, self.holder, clock, self._now())

    def batches(
        self,
        kind: RetentionKind,
        expiry: Expiry,
        *,
        seconds: float = KIND_SECONDS,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Event, None, None]:
        """Prune a kind, batch by batch, until nothing is left or the time is over.

        Raises:
            LeaseLost: somebody else prunes now.
            Exception: the database is unreachable, or a statement can't run with any rows.
        """
        until = time.monotonic() + seconds
        is_first, is_done = True, False
        while not is_done and not is_stopped():
            began = time.monotonic()
            event = self._batch(kind, expiry, is_first=is_first)
            took = time.monotonic() - began
            if isinstance(event, Pruned):
                is_done = event.is_done
                self._paces[kind] = self._paces[kind].after(took)
            if event is not None:
                is_first = False
                yield event
            if is_done or time.monotonic() >= until:
                break
            self._rest(self._paces[kind].pause(took))
        if not is_first:
            self._end(kind, expiry, is_done=is_done)

    def _batch(self, kind: RetentionKind, expiry: Expiry, *, is_first: bool) -> Event | None:
        """Prune some rows. Returns None after a failure: the next batch tries fewer."""
        most = self._paces[kind].most if kind in self._paces else 1
        try:
            with self._begin(most) as connection:
                pace = self._paces.setdefault(kind, pace_of(is_postgres=Sql(connection.dialect.name).is_postgres))
                now = self._renewed(connection)
                was = _standing(connection, kind, expiry, now, is_first=is_first)
                pruned = STEPS[kind](connection, expiry, was.position, pace.most)
                state.write(connection, was.after(pruned, expiry.before, now))
                return pruned
        except Exception as error:
            if kind not in self._paces or not (is_wait_timeout(error) or blames_items(error)):
                raise
            if isinstance(error, LeaseLost):
                raise
            if self._paces[kind].most > 1:
                self._paces[kind] = self._paces[kind].shrunk()
                return None
            return self._pass_over(kind, expiry, error, is_first=is_first)

    def _pass_over(self, kind: RetentionKind, expiry: Expiry, error: Exception, *, is_first: bool) -> PassedOver:
        """Leave the next row where it is until the next lap, so that it holds up no other."""
        each = WALKS.get(kind)
        if each is None:
            raise error
        with self._begin(1) as connection:
            now = self._renewed(connection)
            was = _standing(connection, kind, expiry, now, is_first=is_first)  # a failed first batch has not stored it
            key = walk.next_key(connection, each, was.position)
            if key is None:
                raise error
            pruned = Pruned(position=key, is_done=False, passed_over=1)
            text = f"{each.key}={key}: {error_text(error)}"
            state.write(connection, msgspec.structs.replace(was.after(pruned, was.pruned_until, now), error=text))
        return PassedOver(kind, key, error_text(error))

    def _end(self, kind: RetentionKind, expiry: Expiry, *, is_done: bool) -> None:
        """Store how far behind the kind is."""
        with self._begin(1) as connection:
            now = self._renewed(connection)
            was = state.read(connection, kind)
            oldest = None if is_done else kinds.oldest_expired(connection, kind, expiry, was.position)
            behind = 0.0 if oldest is None or expiry.before is None else (expiry.before - oldest).total_seconds()
            state.write(connection, was.ended(behind, now))

    def _renewed(self, connection: Connection) -> datetime:
        now = state.renew(connection, self.holder, self._now())
        if now is None:
            raise LeaseLost
        return now


def _standing(
    connection: Connection, kind: RetentionKind, expiry: Expiry, now: datetime, *, is_first: bool
) -> KindState:
    """Return the state before a batch. The first one of a round begins as far back as the first row that goes by a cap."""
    was, each = state.read(connection, kind), WALKS.get(kind)
    if not is_first:
        return was
    if each is None:
        return was.begun(now, 0)
    begun = was.begun(now, walk.newest_key(connection, each))
    excess = walk.first_excess(connection, each, expiry)
    return begun if excess is None else msgspec.structs.replace(begun, position=min(begun.position, excess - 1))


def states(connection: Connection) -> Mapping[RetentionKind, KindState]:
    """Read the progress of every kind."""
    return {kind: state.read(connection, kind) for kind in STEPS}
