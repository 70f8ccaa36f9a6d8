"""A screen: what its URL takes, what it reads, and how it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from inbox.config.model import Config
from inbox.db.reads import Row
from relay.delivery.policy import Policies
from relay.store.database import Database
from relay.web.access.accounts import Actor
from relay.web.doctor_runner import DoctorRunner


class Reading(msgspec.Struct, frozen=True):
    """Everything that a screen may read."""

    database: Database
    """Its transactions only read, and each statement ends after `relay.web.reading.LONGEST_SECONDS`."""
    config: Config
    policies: Policies
    actor: Actor
    now: datetime
    """The host's clock, in UTC."""
    kept: Callable[[object, float, Callable[[], Any]], Any]
    """Makes the value of a key, and keeps it for so many seconds; a key of the database's is for one role alone."""
    doctor: DoctorRunner


class Screen(msgspec.Struct, frozen=True):
    """One screen, its JSON twin (`PATH.json`) and its place in the API (`/api/v1/NAME`)."""

    name: str
    path: str
    """As Falcon has it; names in braces are fields of the query."""
    title: str
    query: type[msgspec.Struct]
    """Fields are the parameters of the URL, each with a default unless it stands in the path."""
    page: type[msgspec.Struct]
    read: Callable[[Reading, Any], Any]
    """Makes a `page` from a `query`. Raises PageError where there is nothing to show."""
    template: str
    """File in `templates/`. It gets `page`, `query`, `screen`, `config`, `actor`, `now` and `values`."""
    in_menu: bool = True
    is_live: bool = True
    """True when its page refreshes itself: its read is cheap, and nobody fills in a form on it."""
    is_list: bool = False
    """True when its page has `rows`, which the API answers with a link to the next page."""
    values: Mapping[str, object] = {}
    """Further names of the template: constants, and pure functions of the page's values."""


class ListPage(msgspec.Struct, frozen=True):
    """A page of a list, the newest first."""

    rows: tuple[Row, ...]
    before: int | None = None
    """Value of the parameter `before` for the next page; None: there is no more."""
    matching: int | None = None
    """Number of all that match, where 501 stands for more than 500; None: not counted."""


MOST_COUNTED = 500
"""Counts end here: `500+`."""
