"""`[logs]`: the form of the log."""

from __future__ import annotations

from inbox.config.types import Table
from inbox.observe.logs import Format


class Logs(Table, frozen=True):
    """The log of both programs and of the operator's page."""

    format: Format = "text"
    """`text` is for people; `json` and `logfmt` write [the same keys](logs.md) everywhere."""
