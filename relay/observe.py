"""What the relay says of its work: log lines made from facts, after they are committed. The only file that words them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from relay import facts
from relay.store.record import Recorded

_log = logging.getLogger("relay")
_node_log = logging.getLogger("relay.node")


class Observer:
    """Logs and counts. `counts` tells what happened since the process began, by kind of fact."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def recorded(self, results: Iterable[Recorded]) -> None:
        """Outcomes that are committed, or were discarded because their lease was not the present one."""
        for result in results:
            delivery, fact = result.delivery, result.fact
            where = f"route={delivery.route} seq={delivery.seq} lane={delivery.lane!a} attempt={delivery.attempt}"
            if fact is None:
                self.counts["fenced"] += 1
                _log.warning("discarded a late result: another claim holds the lease %s", where)
                continue
            kind = facts.kind_of(fact)
            self.counts[kind] += 1
            match fact:
                case facts.AttemptFailed():
                    _log.warning("attempt_failed %s due_at=%s error=%a", where, fact.due_at.isoformat(), fact.error)
                case facts.Dead():
                    _log.error("dead %s cause=%s error=%a", where, fact.cause, fact.error)
                case facts.Delivered():
                    _log.info("delivered %s did=%s%s", where, fact.did, " late=true" if fact.late else "")
                case _:
                    _log.info("%s %s", kind, where)

    def reaped(self, abandoned: Iterable[tuple[int, str]]) -> None:
        """Leases that ran out were taken back."""
        for seq, route in abandoned:
            self.counts["abandoned"] += 1
            _log.warning("abandoned route=%s seq=%d: its lease ran out; it will be attempted again", route, seq)

    def started(self, node: str, routes: Iterable[str]) -> None:
        """The relay begins to work."""
        _node_log.info("started node=%s routes=%s", node, ",".join(routes) or "none")

    def stopped(self, node: str, given_back: int) -> None:
        """The relay has stopped in order."""
        _node_log.info("stopped node=%s given_back=%d", node, given_back)

    def database_trouble(self, what: str, error: BaseException) -> None:
        """The database failed; it is tried again."""
        self.counts["database_trouble"] += 1
        _log.warning(
            "database trouble while %s, trying again: %s", what, type(getattr(error, "orig", None) or error).__name__
        )
