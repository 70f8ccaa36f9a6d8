"""`[routes.NAME.retry]`: delays between the attempts of a delivery, with their defaults."""

from __future__ import annotations

from inbox.config.types import Duration, Table


class Retry(Table, frozen=True):
    """Delays between the attempts of a delivery. It dies when the attempt after the last delay fails.

    Each delay is longer by up to a fifth at random, so that deliveries that failed together are not tried together.
    """

    schedule: tuple[Duration, ...] = tuple(
        Duration(seconds) for seconds in (5, 30, 300, 1800, 7200, 18000, 36000, 36000, 50400, 72000)
    )
    window: Duration | None = None
    """Time from the first attempt of a run in which further ones may begin. The delivery dies when the next one would be later."""
