"""The table of operations, and how each channel reads what an operator asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inbox.config.mistakes import nearest
from inbox.errors import UnusableCommand
from relay.operations.asks import KindsOfRows, OneCommand, OneEntity, OneGate, OneSource, Rejections, Selection


class Words(msgspec.Struct, frozen=True):
    """Texts of an operation on the command line: its plan, its end, its progress, and that there is nothing to do."""

    planned: str = ""
    done: str = ""
    doing: str = ""
    nothing: str = ""
    thing: str = "delivery"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of `relay_command`. `relay.store.operator` has its plan and its steps."""

    kind: str
    title: str
    asks: type[msgspec.Struct]
    """The fields of its selection."""
    without: tuple[str, ...] = ()
    """Fields of `asks` that it has no use for."""
    words: Words = Words()
    """Empty where the command line has no plan of it."""
    has_dry_run: bool = True
    is_dangerous: bool = False
    """True when nothing brings back what it ends."""
    needs_condition: bool = False
    """True when it must name a condition, or say that everything is meant."""
    is_of_a_command: bool = False
    """True when it is about another command, and done at once."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of its selection."""
        return tuple(name for name in self.asks.__struct_fields__ if name not in self.without)


_OF_REPLAYS = ("until_fact", "force", "backfill")
OPERATIONS: Mapping[str, Operation] = {
    each.kind: each
    for each in (
        Operation(
            kind="replay",
            title="Replay deliveries",
            asks=Selection,
            words=Words("would be replayed", "replayed", "replaying", "nothing to replay"),
            needs_condition=True,
        ),
        Operation(
            kind="retry",
            title="Retry waiting deliveries now",
            asks=Selection,
            without=(*_OF_REPLAYS, "state"),
            words=Words("would be due now", "due now", "retrying", "no attempt waits for later"),
            needs_condition=True,
        ),
        Operation(
            kind="cancel",
            title="Cancel deliveries",
            asks=Selection,
            without=_OF_REPLAYS,
            words=Words("would be cancelled", "cancelled", "cancelling", "nothing to cancel"),
            is_dangerous=True,
            needs_condition=True,
        ),
        Operation(
            kind="unblock",
            title="Unblock lanes",
            asks=Selection,
            without=(*_OF_REPLAYS, "state"),
            words=Words("would be unblocked", "unblocked", "unblocking", "nothing is blocked"),
            needs_condition=True,
        ),
        Operation(kind="pause", title="Pause", asks=OneGate, has_dry_run=False),
        Operation(kind="resume", title="Resume", asks=OneGate, has_dry_run=False),
        Operation(kind="sweep", title="Sweep for missed changes", asks=OneSource, has_dry_run=False),
        Operation(
            kind="erase",
            title="Erase an entity",
            asks=OneEntity,
            words=Words("would be erased", "erased", "erasing", "nothing to erase", "event"),
            is_dangerous=True,
        ),
        Operation(kind="prune", title="Delete expired rows", asks=KindsOfRows, is_dangerous=True),
        Operation(
            kind="readmit",
            title="Readmit rejected requests",
            asks=Rejections,
            words=Words("would be readmitted", "readmitted", "readmitting", "nothing to readmit", "request"),
            needs_condition=True,
        ),
        Operation(kind="stop", title="Stop a command", asks=OneCommand, has_dry_run=False, is_of_a_command=True),
        Operation(
            kind="continue",
            title="Continue a stopped command",
            asks=OneCommand,
            has_dry_run=False,
            is_of_a_command=True,
        ),
    )
}
"""Every kind that this version knows."""

OF_DELIVERIES = tuple(kind for kind, operation in OPERATIONS.items() if operation.asks is Selection)
OF_GATES = tuple(kind for kind, operation in OPERATIONS.items() if operation.asks is OneGate)


def parse(kind: str, selection: object) -> Any:  # noqa: ANN401  # the operation's `asks`
    """Read the selection of a row.

    Raises:
        UnusableCommand: it can't be understood, or can't be meant; the message says what would be right.
    """
    operation = OPERATIONS[kind]
    if not isinstance(selection, dict):
        raise UnusableCommand('selection is a JSON object, such as {"route": "crm"}')
    for key, value in selection.items():
        if key not in operation.keys:
            raise UnusableCommand(f"{_a(kind)} has no key {key!r} in its selection; {nearest(key, operation.keys)}")
        if value is None or value in ("", []):
            raise UnusableCommand(f"{key} is empty: leave it out for any")
    try:
        asked: Any = msgspec.convert(selection, operation.asks)
    except msgspec.ValidationError as error:
        says, _, place = str(error).partition(" - at `$.")
        raise UnusableCommand(f"{place.rstrip('`') or 'selection'}: {says}") from error
    if operation.needs_condition and asked.is_empty and not asked.everything:
        raise UnusableCommand(needs_condition(operation))
    since, until = getattr(asked, "since", None), getattr(asked, "until", None)
    if since is not None and until is not None and since >= until:
        raise UnusableCommand("nothing is since a time and until an earlier one: exchange the two")
    return asked


def needs_condition(operation: Operation) -> str:
    """Return the sentence about a selection without any condition."""
    return (
        f"{_a(operation.kind)} without a condition is about everything that it could change: name some, such as"
        f' {" or ".join(operation.keys[:2])}; or, if all is meant, {{"everything": true}} (--all)'
    )


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
