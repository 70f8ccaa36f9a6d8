"""Where metrics are served."""

from __future__ import annotations

from inbox.config_values import Address, Table


class Metrics(Table, frozen=True):
    """Where each side serves its metrics, to anybody who can connect. What is not given is not counted."""

    receiver: Address | None = None
    relay: Address | None = None
