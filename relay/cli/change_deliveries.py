"""`relay replay`, `retry`, `cancel` and `unblock`. The fields that an operation asks for become its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, cast

import typer

from inbox.events.commands import MOST_SEQS
from relay.cli import options
from relay.cli.carrying_out import carry_out
from relay.cli.options import MOST_NUMBER, AsJson, Reason, ThisEntity, Yes, names_of, parse_entity
from relay.cli.terminal import fail
from relay.operations.asks import FLAGS
from relay.operations.table import OPERATIONS, Operation

HELP: Mapping[str, str] = {
    "replay": """Replay dead or ended deliveries. Shows the plan; --yes does it.

    Without events, --entity or --backfill, only dead letters are replayed. Exits with 1 when there is nothing to replay.
    Attempts that wait are not dead: `relay retry` makes them due at once.

    Examples:
      relay replay --cause exhausted --reason "CRM is back"
      relay replay --destination crm --status 503 --since 2d --reason "CRM is back"
      relay replay --seq 42 --reason "mapping fixed" --yes
      relay replay 42 43 57 --route to-crm --reason "mapping fixed" --yes
      relay replay --route crm --backfill --since 2026-01-01 --reason "CRM was restored from a backup"
    """,
    "retry": """Make waiting attempts due at once, such as after a repair. Shows the plan; --yes does it.

    Each delivery keeps its attempts and its place in its lane. Pauses, circuit breakers and rate limits hold as always.
    Exits with 1 when nothing waits for a later attempt.

    Examples:
      relay retry --destination crm --reason "CRM is back"
      relay retry --cause server_error --since 1h --reason "CRM is back" --yes
      relay retry --seq 42 --reason "account fixed" --yes
      relay retry --all --reason "the network is back" --yes
    """,
    "cancel": """End deliveries for good, open or dead. Shows the plan; --yes does it.

    Deliveries in flight are left as they are. Exits with 1 when there is nothing to cancel.

    Examples:
      relay cancel --seq 42 --reason "a test account"
      relay cancel --route crm --state dead --reason "the CRM has them from a backup" --yes
      relay cancel --route old-crm --reason "switched off" --yes
    """,
    "unblock": """Let lanes continue past the dead head that blocks them; it stays dead. Shows the plan; --yes does it.

    Exits with 1 when nothing is blocked.

    Examples:
      relay unblock --entity USER/IDNUMBER1234 --reason "fixed by hand"
      relay unblock --route orders --reason "agreed with shipping" --yes
    """,
}
"""The help text of each."""

_CAUSE = "Only dead letters of this cause, such as exhausted or mapping."
_FAILURE = "Only where the last attempt failed with this error class, such as server_error."


def _option(kind: type, *names: str, text: str, **more: Any) -> Any:  # noqa: ANN401  # an annotation
    return Annotated[kind if kind is bool else kind | None, typer.Option(*names, help=text, **more)]


OPTIONS: Mapping[str, Any] = {
    "seqs": Annotated[
        list[int] | None,
        typer.Argument(
            metavar="[SEQ]...", min=0, max=MOST_NUMBER, help=f"These events, at most {MOST_SEQS}.", show_default=False
        ),
    ],
    "reason": Reason,
    "route": options.OfRoute,
    "seq": _option(int, "--seq", text="This event.", min=0, max=MOST_NUMBER),
    "source": options.OfSource,
    "entity": ThisEntity,
    "destination": options.OfDestination,
    "api": _option(str, "--api", text="Only of the routes that ask this api.", autocompletion=names_of("apis")),
    "event_type": options.OfEventType,
    "state": _option(str, "--state", text="Only in this state, such as dead, blocked or retrying.", show_default=False),
    "cause": _option(str, "--cause", text=_CAUSE),
    "status": options.OfStatus,
    "error": options.OfError,
    "since": options.Since,
    "until": options.Until,
    "force": _option(bool, "--force", text="Even where a later event was delivered, and this would undo it."),
    "backfill": _option(
        bool, "--backfill", text="Of --route: also what was delivered, and what it would take now and never took."
    ),
    "everything": _option(bool, "--all", text="All of them; needed without any filter."),
    "yes": Yes,
    "as_json": AsJson,
}
"""Every option in its place. Those that are fields of what operations ask for belong to the ones that ask for them."""
_OF_ALL = {"reason", "entity", "yes", "as_json"}


def command_of(operation: Operation) -> Callable[..., None]:
    """Make the command of an operation on deliveries."""

    def command(**given: Any) -> None:  # noqa: ANN401  # as the options say
        reason, yes, as_json, seqs = (given.pop(name) for name in ("reason", "yes", "as_json", "seqs"))
        if seqs and len(seqs) > MOST_SEQS:
            fail(f"name at most {MOST_SEQS} events: {len(seqs)} are given")
        entity_type, entity_id = parse_entity(given.pop("entity"))
        named = {"seqs": tuple(seqs) if seqs else None, "entity_type": entity_type, "entity_id": entity_id}
        carry_out(operation, cast("Any", operation.asks)(**given, **named), reason, yes=yes, as_json=as_json)

    signature = inspect.Signature([*_parameters(operation)])
    command.__name__, command.__doc__ = operation.kind, HELP[operation.kind]
    command.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    vars(command)["__signature__"] = signature  # typer reads it
    return command


def _parameters(operation: Operation) -> Iterator[inspect.Parameter]:
    for name, annotation in OPTIONS.items():
        if name in _OF_ALL or name in operation.keys:
            is_of_failure = name == "cause" and operation.kind == "retry"
            yield inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if name in {*FLAGS, "yes", "as_json"} else None,
                annotation=_option(str, "--cause", text=_FAILURE) if is_of_failure else annotation,
            )


COMMANDS = tuple(command_of(OPERATIONS[kind]) for kind in HELP)
