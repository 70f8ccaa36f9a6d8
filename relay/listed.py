"""What an api says of an entity in a listing. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

EVERYTHING = datetime(1970, 1, 1, tzinfo=UTC)
"""What was changed since: all there is."""
UNTOLD = datetime.min.replace(tzinfo=UTC)


class Listed(msgspec.Struct, frozen=True):
    """An entity, and when it was changed last; UTC, and `UNTOLD` where a listing does not say."""

    id: str
    modified: datetime
