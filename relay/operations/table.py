"""The table of operations, and the parsing of their selections for every channel. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from inbox.config.mistakes import nearest
from inbox.errors import UnusableCommand
from relay.operations.asks import Asks, KindsOfRows, OneCommand, OneEntity, OneGate, OneSource, Rejections, Selection

MOST_OPEN = 1000
"""Due deliveries on a route at which a larger replay or retry waits, so that new events don't."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of `relay_command`, with its texts for the command line, the page and command answers.

    `relay.store.operator` has its plan and steps.
    """

    kind: str
    title: str
    asks: type[msgspec.Struct]
    """The fields of its selection."""
    without: tuple[str, ...] = ()
    """Fields of `asks` that the operation does not take."""
    done: str = "done"
    nothing: str = "there is nothing to do"
    thing: str = "row"
    consequences: tuple[str, ...] = ()
    """Sentences about the consequences of the operation."""
    is_dangerous: bool = False
    """True when the operation can't be undone."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its selection."""
        return tuple(name for name in self.asks.__struct_fields__ if name not in self.without)

    @property
    def has_dry_run(self) -> bool:
        """True when the operation applies to a number of rows."""
        return self.asks not in {OneGate, OneSource, OneCommand}

    @property
    def needs_condition(self) -> bool:
        """True when the operation needs a condition or `everything`."""
        return issubclass(self.asks, Asks)

    @property
    def is_of_a_command(self) -> bool:
        """True when the operation applies to another command, and is done at once."""
        return self.asks is OneCommand


_OF_REPLAYS = ("until_fact", "force", "backfill", "open_on", "edited_body")
_KINDS = (
    Operation(
        kind="replay",
        title="Replay deliveries",
        asks=Selection,
        done="replayed",
        nothing="nothing to replay",
        thing="delivery",
        consequences=(
            "Each returns to its place in its lane, by the time of its event. Later open events of the lane wait for it.",
            "On routes with ordering latest, a waiting newer event is delivered instead.",
            f"After {MOST_OPEN:,}, it continues only while fewer than {MOST_OPEN:,} are due on the route: new events don't wait.",
        ),
    ),
    Operation(
        kind="retry",
        title="Retry waiting deliveries now",
        asks=Selection,
        without=(*_OF_REPLAYS, "state"),
        done="retried",
        nothing="no attempt is waiting",
        thing="delivery",
        consequences=(
            "The next attempt of each is due at once. Each keeps its attempts and its place in its lane.",
            "Pauses, circuit breakers and rate limits still apply.",
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
            "Open and dead ones end, and their events never reach the destination unless an operator replays them.",
            "Later events of their lanes continue. Deliveries in flight are skipped.",
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
            "The dead delivery stays dead and can be replayed; once a later event is delivered, only with force.",
        ),
    ),
    Operation(
        kind="pause",
        title="Pause deliveries",
        asks=OneGate,
        done="paused",
        nothing="it is paused already",
        consequences=(
            "Nothing behind this gate is delivered until an operator resumes it. Webhooks are still accepted, and wait.",
            "Running calls finish. No attempts are used up.",
        ),
    ),
    Operation(
        kind="resume",
        title="Resume deliveries",
        asks=OneGate,
        done="resumed",
        nothing="nothing holds it back",
        consequences=(
            "The pause ends, and the circuit breaker closes; deliveries continue in order.",
            "Failed attempts wait until they are due; a retry makes them due at once.",
        ),
    ),
    Operation(
        kind="sweep",
        title="Sweep for missed changes",
        asks=OneSource,
        consequences=("Changes that no webhook reported become events, and are delivered in order.",),
    ),
    Operation(
        kind="erase",
        title="Erase an entity",
        asks=OneEntity,
        done="erased",
        nothing="nothing to erase: type and id must match exactly",
        thing="event",
        consequences=(
            "It can't be undone. The reason must not name the entity, since the log keeps it.",
            "Rejected requests, alerts and operators' reasons are not searched: they stay until they expire.",
        ),
        is_dangerous=True,
    ),
    Operation(
        kind="prune",
        title="Delete expired rows",
        asks=KindsOfRows,
        done="deleted",
        nothing="nothing has expired",
        consequences=("Rows that have expired under [retention] are deleted for good, as relays do on their own.",),
        is_dangerous=True,
    ),
    Operation(
        kind="readmit",
        title="Readmit rejected requests",
        asks=Rejections,
        done="readmitted",
        nothing="nothing to readmit: no matching request was stored in full and is still rejected",
        thing="request",
        consequences=(
            "The relay's current configuration reads each request again: reload it after a change.",
            "Readable requests become events, and are delivered in order.",
            "A request that was sent again meanwhile is a duplicate, and is not delivered twice.",
        ),
    ),
    Operation(
        kind="stop",
        title="Stop a command",
        asks=OneCommand,
        consequences=("Its changes so far stay. A stopped command can be continued later.",),
    ),
    Operation(
        kind="continue",
        title="Continue a stopped command",
        asks=OneCommand,
        consequences=("Its changes so far stay. It continues where it was stopped.",),
    ),
)
OPERATIONS: Mapping[str, Operation] = {each.kind: each for each in _KINDS}
"""The operations by kind."""

OF_DELIVERIES = tuple(kind for kind, operation in OPERATIONS.items() if operation.asks is Selection)


def parse(kind: str, selection: object) -> Any:  # noqa: ANN401  # the operation's `asks`
    """Parse the selection of a row.

    Raises:
        UnusableCommand: the selection is malformed or makes no sense; the message suggests a correction.
    """
    operation = OPERATIONS[kind]
    if not isinstance(selection, dict):
        raise UnusableCommand('selection is a JSON object, such as {"route": "crm"}')
    for key, value in selection.items():
        if key not in operation.keys:
            raise UnusableCommand(f"{_a(kind)} has no key {key!r} in its selection; {nearest(key, operation.keys)}")
        if value is None or value in ("", []):
            raise UnusableCommand(f"{key} is empty: omit it to match any")
    try:
        asked: Any = msgspec.convert(selection, operation.asks)
    except msgspec.ValidationError as error:
        field, says = describe_wrong_field(error)
        raise UnusableCommand(f"{field or 'selection'}{says}") from error
    if operation.needs_condition and asked.is_empty and not asked.everything:
        raise UnusableCommand(describe_missing_condition(operation))
    require_order(asked)
    return asked


def describe_missing_condition(operation: Operation) -> str:
    """Return the error for an operation that has neither a condition nor `everything`."""
    some = " or ".join(operation.keys[:2])
    return (
        f"{_a(operation.kind)} without a condition would change everything it can: give one, such as {some}; or, if that is"
        " meant, everything (on the command line --all)"
    )


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


def describe_wrong_field(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the field of a validation error, if known, and the message to put after it, with JSON's names of types."""
    says, at, place = str(error).rpartition(" - at `$")  # the last occurrence: a value may contain one
    says, place = (says, place) if at else (place, "")
    missing = says.removeprefix("Object missing required field ")
    if missing != says:
        return missing.strip("`"), " is missing"
    if wrong := _WRONG_TYPE.fullmatch(says):
        says = f"expected {_TYPES.get(wrong[1], wrong[1])}, got {_TYPES.get(wrong[2], wrong[2])}"
    return place.strip(".`"), f": {says}"


def require_order(asked: msgspec.Struct) -> None:
    """Check that `since` is before `until`.

    Raises:
        UnusableCommand: `since` is not before `until`.
    """
    since, until = getattr(asked, "since", None), getattr(asked, "until", None)
    if since is not None and until is not None and since >= until:
        raise UnusableCommand("since must be before until: swap the two")


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
