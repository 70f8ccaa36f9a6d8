"""`relay replay --edit`: the edited body of one event, from the editor or a file, compared and confirmed."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import click
import msgspec
import typer

from relay.cli.options import option, require_reason
from relay.cli.output import FINDING, fail, say

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.delivery.outcome import Delivery
    from relay.store.database import Database
    from relay.store.operator.plan import Plan

OPTIONS = {
    "edit": option(bool, "edit", "Edit the event's body in $EDITOR first; without --yes, ask before its delivery."),
    "body_file": option(
        Path, "body_file", "Deliver the body in this file instead; - reads standard input.", metavar="FILE"
    ),
}


class Editing:
    """An edit in progress. Nothing is stored before `store`."""

    def __init__(self, seq: int, body_file: Path | None) -> None:
        self._seq = seq
        self._file = body_file
        self._body = b""
        self._kept: Path | None = None

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Editing | None:
        """Take the options of an edit out of a command's, and make its one event the `seq`; None without an edit."""
        edits, body_file = given.pop("edit", False), given.pop("body_file", None)
        if not edits and body_file is None:
            return None
        seqs = {*(given.pop("seqs", None) or ()), given.get("seq")} - {None}
        if edits and body_file is not None:
            fail("give either --edit or --body-file")
        if len(seqs) != 1:
            fail(f"an edit is of one event, and {len(seqs) or 'none'} are named: add --seq, once")
        given["seq"] = seq = seqs.pop()
        return cls(seq, body_file)

    def compare(self, database: Database, config: Config, planned: Plan) -> Plan:
        """Read the edited body, and return the plan with its differences. Exits with an error if it is unusable."""
        from relay.store.operator import edits

        if planned.obstacle is not None:
            return planned
        if planned.count != 1:
            fail(edits.ask_for_route(group.route for group in planned.groups))
        event = edits.read_editable(database, self._seq)
        self._body = self._edit(event) if self._file is None else self._read(self._file)
        edit = edits.examine(config, event, self._body)
        original = edits.warn_of_edited(edits.find_edited(database, [self._seq]))
        warnings = (*edit.warnings, *(each for each in planned.warnings if each not in original))
        return msgspec.structs.replace(planned, differences=edit.differences, warnings=warnings)

    def confirm(self, planned: Plan, reason: str | None) -> tuple[str | None, bool]:
        """Ask after the editor was used, for a missing reason too. Returns the reason, and whether to deliver."""
        if self._file is not None or planned.obstacle is not None:
            return reason, False
        given = require_reason(reason or typer.prompt("Reason", err=True))
        return given, typer.confirm("Deliver the edited body?", abort=True, err=True)

    def store(self, database: Database) -> int:
        """Store the body, and return its number."""
        from relay.store.operator import edits

        number = edits.add(database, self._seq, self._body)
        if self._kept is not None:
            self._kept.unlink(missing_ok=True)
        return number

    def _read(self, file: Path) -> bytes:
        try:
            return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        except OSError as error:
            fail(f"--body-file {file}: {error.strerror}")

    def _edit(self, event: Delivery) -> bytes:
        """Return the body from the editor, which gets JSON formatted. Until it is stored, a file of this user keeps it."""
        body = event.body or b""
        with suppress(ValueError, RecursionError):
            body = msgspec.json.format(body, indent=2)
        suffix = ".json" if "json" in event.content_type else ".txt"
        with NamedTemporaryFile(prefix=f"event-{self._seq}-", suffix=suffix, delete=False) as file:
            file.write(body)
        self._kept = kept = Path(file.name)
        try:
            click.edit(filename=file.name)
        except click.ClickException as error:
            kept.unlink()
            fail(f"{error.message}; set EDITOR, or give the edited body by --body-file")
        edited = kept.read_bytes()
        if edited == body:
            kept.unlink()
            fail("nothing was changed in the editor, so nothing is delivered", FINDING)
        say(f"until it is stored, --body-file {kept} gives the edited body again")
        return edited
