"""What an api says of an entity in a listing. Pure."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Listed(msgspec.Struct, frozen=True):
    """An entity, and when it was changed last; UTC."""

    id: str
    modified: datetime
