"""The tables of a sync route: how an entity is fetched, found in the destination, mapped and written there."""

from __future__ import annotations

from typing import Any, Literal

from inbox.config_values import Table

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class Fetch(Table, frozen=True):
    """How the entity is read from its source."""

    api: str
    path: str
    params: dict[str, str] = {}


class Find(Table, frozen=True):
    """How the counterpart is looked up in the destination; without it, nothing is looked up."""

    path: str
    method: Literal["GET", "POST"] = "GET"
    params: dict[str, str] = {}
    body: dict[str, Any] | None = None
    pick: str | None = None
    """A JMESPath into the answer that gives the list of matches, or the one match."""


class Write(Table, frozen=True):
    """How the counterpart is created or deleted."""

    path: str
    method: Method | None = None


class Update(Table, frozen=True):
    """How the counterpart is changed."""

    path: str
    method: Method = "PATCH"
    format: Literal["merge-patch", "json"] = "merge-patch"


class Sync(Table, frozen=True):
    """The process of a sync route."""

    fetch: Fetch
    map: dict[str, str]
    """Target field = JMESPath over {event, entity, target}."""
    find: Find | None = None
    create: Write | None = None
    update: Update | None = None
    delete: Write | None = None
    missing: Literal["create", "skip", "retry", "dead"] = "create"
    many: Literal["dead", "first"] = "dead"
    gone: Literal["delete", "skip"] = "delete"
    clear_when_absent: list[str] = []
