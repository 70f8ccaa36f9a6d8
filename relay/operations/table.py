"""The table of operations, and how each channel reads what an operator asks for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from inbox.config.mistakes import nearest
from inbox.errors import UnusableCommand
from relay.operations.asks import Asks, KindsOfRows, OneCommand, OneEntity, OneGate, OneSource, Rejections, Selection

MOST_OPEN = 1000
"""After its first so many, a replay or retry goes on only where fewer are due on the route: new events must not wait for it."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of `relay_command`, and its words for the command line, the page and the answers of commands.

    `relay.store.operator` has its plan and its steps.
    """

    kind: str
    title: str
    asks: type[msgspec.Struct]
    """The fields of its selection."""
    without: tuple[str, ...] = ()
    """Fields of `asks` that it has no use for."""
    done: str = "done"
    nothing: str = "there is nothing to do"
    thing: str = "row"
    consequences: tuple[str, ...] = ()
    """Consequences, in sentences."""
    is_dangerous: bool = False
    """True when nothing brings back what it ends."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of its selection."""
        return tuple(name for name in self.asks.__struct_fields__ if name not in self.without)

    @property
    def has_dry_run(self) -> bool:
        """True when it is about a number of things."""
        return self.asks not in {OneGate, OneSource, OneCommand}

    @property
    def needs_condition(self) -> bool:
        """True when it must name a condition, or say that everything is meant."""
        return issubclass(self.asks, Asks)

    @property
    def is_of_a_command(self) -> bool:
        """True when it is about another command, and done at once."""
        return self.asks is OneCommand


_OF_REPLAYS = ("until_fact", "force", "backfill")
_KINDS = (
    Operation(
        kind="replay",
        title="Replay deliveries",
        asks=Selection,
        done="replayed",
        nothing="nothing to replay",
        thing="delivery",
        consequences=(
            "Each goes back to its place in its lane, by the time of its event. Later open events of the lane wait for it.",
            "Where the route's ordering is latest, a newer event that waits is delivered in its place.",
            f"After {MOST_OPEN:,}, it goes on where fewer than so many are due on the route: new events need not wait.",
        ),
    ),
    Operation(
        kind="retry",
        title="Retry waiting deliveries now",
        asks=Selection,
        without=(*_OF_REPLAYS, "state"),
        done="retried",
        nothing="no attempt waits for later",
        thing="delivery",
        consequences=(
            "The next attempt of each is due at once. Each keeps its attempts and its place in its lane.",
            "Pauses, circuit breakers and rate limits hold as always.",
        ),
    ),
    Operation(
        kind="cancel",
        title="Cancel deliveries",
        asks=Selection,
        without=_OF_REPLAYS,
        done="cancelled",
        nothing="nothing to cancel",
        thing="delivery",
        consequences=(
            "They end for good, open or dead, and their events never reach the destination unless somebody replays them.",
            "Later events of their lanes go on. Deliveries in flight are left as they are.",
        ),
        is_dangerous=True,
    ),
    Operation(
        kind="unblock",
        title="Unblock lanes",
        asks=Selection,
        without=(*_OF_REPLAYS, "state"),
        done="unblocked",
        nothing="nothing is blocked",
        thing="delivery",
        consequences=(
            "Later events of each lane pass its dead delivery, and may reach the destination before it.",
            "The dead delivery stays dead and can be replayed.",
        ),
    ),
    Operation(
        kind="pause",
        title="Pause deliveries",
        asks=OneGate,
        done="paused",
        nothing="it is paused already",
        consequences=(
            "Nothing behind it is delivered until somebody resumes it. Webhooks are still accepted, and wait.",
            "Calls that run now finish. No attempt is used up.",
        ),
    ),
    Operation(
        kind="resume",
        title="Resume deliveries",
        asks=OneGate,
        done="resumed",
        nothing="nothing holds it back",
        consequences=(
            "The pause ends, and its circuit breaker closes; deliveries go on in their order.",
            "Attempts that failed before wait until they are due; a retry makes them due at once.",
        ),
    ),
    Operation(
        kind="sweep",
        title="Sweep for missed changes",
        asks=OneSource,
        consequences=("Changes that no webhook reported become events, and are delivered in their order.",),
    ),
    Operation(
        kind="erase",
        title="Erase an entity",
        asks=OneEntity,
        done="erased",
        nothing="nothing to erase: type and id are compared letter by letter",
        thing="event",
        consequences=(
            "Nothing brings it back. The reason must not name the entity, as it is kept for good.",
            "Rejected requests, alerts and texts of operators are not searched: they stay until their retention.",
        ),
        is_dangerous=True,
    ),
    Operation(
        kind="prune",
        title="Delete expired rows",
        asks=KindsOfRows,
        done="deleted",
        nothing="nothing has expired",
        consequences=("Rows older than [retention] says are deleted for good, as relays do by themselves.",),
        is_dangerous=True,
    ),
    Operation(
        kind="readmit",
        title="Readmit rejected requests",
        asks=Rejections,
        done="readmitted",
        nothing="nothing to readmit: no rejected request matches that was kept whole and not readmitted yet",
        thing="request",
        consequences=(
            "The present configuration reads each again. What it can read becomes events, and is delivered in order.",
            "One that was sent again meanwhile is a duplicate, and is not delivered twice.",
        ),
    ),
    Operation(
        kind="stop",
        title="Stop a command",
        asks=OneCommand,
        consequences=("Everything that it has done stays done. A stopped command can go on later.",),
    ),
    Operation(
        kind="continue",
        title="Continue a stopped command",
        asks=OneCommand,
        consequences=("Everything that it has done stays done. It goes on where it was stopped.",),
    ),
)
OPERATIONS: Mapping[str, Operation] = {each.kind: each for each in _KINDS}
"""Every kind that this version knows."""

OF_DELIVERIES = tuple(kind for kind, operation in OPERATIONS.items() if operation.asks is Selection)


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
        field, says = wrong_field(error)
        raise UnusableCommand(f"{field or 'selection'}{says}") from error
    if operation.needs_condition and asked.is_empty and not asked.everything:
        some = " or ".join(operation.keys[:2])
        raise UnusableCommand(
            f"{_a(kind)} without a condition is about everything that it could change: name some, such as {some}; or, if all is"
            " meant, everything (--all)"
        )
    require_order(asked)
    return asked


_TYPES = {
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "float": "a number",
    "datetime": "a time",
}
_WRONG_TYPE = re.compile(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`")


def wrong_field(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the field of a mistake, or nothing, and what follows it: the mistake in words of JSON, not of Python."""
    says, at, place = str(error).rpartition(" - at `$")  # the last: a value may look like one
    says, place = (says, place) if at else (place, "")
    missing = says.removeprefix("Object missing required field ")
    if missing != says:
        return missing.strip("`"), " is missing"
    if wrong := _WRONG_TYPE.fullmatch(says):
        says = f"expected {_TYPES.get(wrong[1], wrong[1])}, got {_TYPES.get(wrong[2], wrong[2])}"
    return place.strip(".`"), f": {says}"


def require_order(asked: msgspec.Struct) -> None:
    """Check that its times are in their order.

    Raises:
        UnusableCommand: they are not.
    """
    since, until = getattr(asked, "since", None), getattr(asked, "until", None)
    if since is not None and until is not None and since >= until:
        raise UnusableCommand("nothing is since a time and until an earlier one: exchange the two")


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
