"""`relay replay --edit`: the edited body of one event, from the editor or a file, compared and confirmed."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import typer

from relay.cli.options import option, require_reason
from relay.cli.output import FINDING, fail

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.delivery.outcome import Delivery
    from relay.store.database import Database
    from relay.store.operator.plan import Plan

OPTIONS = {
    "edit": option(bool, "edit", "Edit the event's body in $EDITOR first, then ask before its delivery."),
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

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Editing | None:
        """Take the options of an edit out of a command's, and make its one event the `seq`; None without an edit."""
        edits, body_file = given.pop("edit", False), given.pop("body_file", None)
        if not edits and body_file is None:
            return None
        seqs = {*(given.pop("seqs", None) or ()), given.get("seq")} - {None}
        if len(seqs) != 1 or (edits and body_file is not None):
            fail("an edit is of one event: name it, and give either --edit or --body-file")
        given["seq"] = seq = seqs.pop()
        return cls(seq, body_file)

    def compare(self, database: Database, config: Config, planned: Plan) -> Plan:
        """Read the edited body, and return the plan with its differences. Exits with an error if it is unusable."""
        from relay.store.operator import edits

        if planned.obstacle is not None:
            return planned
        if planned.count != 1:
            fail(edits.SEVERAL)
        event = edits.read_editable(database, self._seq)
        self._body = self._edit(event) if self._file is None else self._read(self._file)
        edit = edits.examine(config, event, self._body)
        warnings = (*edit.warnings, *planned.warnings)
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

        return edits.add(database, self._seq, self._body)

    def _read(self, file: Path) -> bytes:
        try:
            return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        except OSError as error:
            fail(f"--body-file {file}: {error.strerror}")

    def _edit(self, event: Delivery) -> bytes:
        """Return the body from the editor, which gets JSON formatted."""
        body = event.body or b""
        with suppress(ValueError, RecursionError):
            body = msgspec.json.format(body, indent=2)
        try:
            text = body.decode()
        except UnicodeDecodeError:
            fail("the body is not UTF-8: give the edited one by --body-file")
        edited = click.edit(text, extension=".json" if "json" in event.content_type else ".txt")
        if edited is None:
            fail("nothing was saved in the editor, so nothing is delivered", FINDING)
        return edited.encode()
