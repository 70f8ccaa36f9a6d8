"""`/commands`: what operators asked for, why, and how far it is; `/commands/ID`: one of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec

from inbox.db import listing, reads
from inbox.db.reads import Row
from inbox.errors import NothingThere
from inbox.events.commands import COMMAND_KINDS, COMMAND_STATES, OPEN_COMMANDS
from relay.operations.table import OPERATIONS
from relay.web.query import GivenTime, Limit, Number, Text, filter_of
from relay.web.reading import ListPage, Reading, Screen, rows_of


class CommandsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on commands."""

    kind: Text | None = None
    """Kind of command, such as `replay`."""
    state: Text | None = None
    """State of the command: asked, running, done, failed, refused or cancelled."""
    since: GivenTime | None = None
    """Asked at or after this time."""
    until: GivenTime | None = None
    """Asked before this time."""
    before: Number | None = None
    limit: Limit = 50


class CommandsPage(ListPage, frozen=True):
    """Rows of `relay_command` without their samples, the newest first."""

    rows: tuple[Annotated[Row, rows_of("relay_command", "sample")], ...]


def read(reading: Reading, query: CommandsQuery) -> CommandsPage:
    """Read a page of commands."""
    rows = listing.read_rows(reading.database.engine, "commands", filter_of(query), query.limit + 1)
    shown = tuple({name: value for name, value in row.items() if name != "sample"} for row in rows[: query.limit])
    return CommandsPage(rows=shown, before=shown[-1]["id"] if len(rows) > query.limit else None)


SCREEN = Screen(
    name="commands",
    path="/commands",
    title="Commands",
    query=CommandsQuery,
    page=CommandsPage,
    read=read,
    template="commands.html",
    is_list=True,
    values={"kinds": COMMAND_KINDS, "states": COMMAND_STATES},
)


class CommandQuery(msgspec.Struct, frozen=True):
    """The command."""

    id: Number


_SELECTION = msgspec.Meta(
    extra_json_schema={
        "properties": {name: {} for operation in OPERATIONS.values() for name in operation.keys},
        "additionalProperties": False,
    }
)


class CommandPage(msgspec.Struct, frozen=True):
    """One row of `relay_command`."""

    id: int
    kind: str
    selection: Annotated[dict[str, Any], _SELECTION]
    """Its conditions, as the kind of command has them."""
    reason: str
    asked_by: str
    asked_at: datetime
    dry_run: bool
    state: str
    affected: int
    """Deliveries or rows changed so far."""
    failed: int
    """Deliveries that could not be changed."""
    error: str | None
    """The last one that could not be changed, and why."""
    answer: str | None
    finished_at: datetime | None
    matched: int | None
    """Deliveries or rows that it would change, by a dry run or the plan before; None: unknown."""
    sample: Any
    """Of a dry run: groups, the first deliveries, what is left out, and consequences."""
    progress_seq: int | None

    @property
    def is_open(self) -> bool:
        """Tell whether a relay still works on it."""
        return self.state in OPEN_COMMANDS

    @property
    def can_be_stopped(self) -> bool:
        """Tell whether there is something to stop."""
        return self.is_open and not OPERATIONS[self.kind].is_of_a_command

    @property
    def can_go_on(self) -> bool:
        """Tell whether it was stopped."""
        return self.state == "cancelled" and not OPERATIONS[self.kind].is_of_a_command


def read_one(reading: Reading, query: CommandQuery) -> CommandPage:
    """Read one command.

    Raises:
        NothingThere: there is none of this id.
    """
    row = reads.row_of(reading.database.engine, "relay_command", query.id)
    if row is None:
        raise NothingThere(f"there is no command {query.id}")
    return CommandPage(**{name: row[name] for name in CommandPage.__struct_fields__})


COMMAND = Screen(
    name="command",
    path="/commands/{id}",
    title="Command",
    query=CommandQuery,
    page=CommandPage,
    read=read_one,
    template="command.html",
    in_menu=False,
)
