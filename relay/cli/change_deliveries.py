"""`relay replay`, `cancel`, `unblock` and `retry`: commands that change deliveries. Each shows its plan first."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from inbox.cli.options import (
    MOST_NUMBER,
    AsJson,
    OfDestination,
    OfError,
    OfEventType,
    OfRoute,
    OfSource,
    OfStatus,
    Since,
    Until,
    names_of,
    parse_entity,
)
from inbox.cli.terminal import fail
from inbox.events.commands import MOST_SEQS
from relay.cli.carrying_out import Texts, carry_out
from relay.cli.options import ThisEntity

if TYPE_CHECKING:
    from relay.operations.asks import Selection

Reason = Annotated[str | None, typer.Option(help="Why; it is kept in the log. Needed with --yes.")]
OfSeq = Annotated[int | None, typer.Option("--seq", min=0, max=MOST_NUMBER, help="This event.")]
Seqs = Annotated[
    list[int] | None,
    typer.Argument(
        metavar="[SEQ]...", min=0, max=MOST_NUMBER, help=f"These events, at most {MOST_SEQS}.", show_default=False
    ),
]
OfApi = Annotated[
    str | None, typer.Option("--api", help="Only of the routes that ask this api.", autocompletion=names_of("apis"))
]
OfCause = Annotated[
    str | None, typer.Option("--cause", help="Only dead letters of this cause, such as exhausted or mapping.")
]
OfFailure = Annotated[
    str | None,
    typer.Option("--cause", help="Only where the last attempt failed with this error class, such as server_error."),
]
OfDeliveryState = Annotated[
    str | None,
    typer.Option("--state", help="Only in this state, such as dead, blocked or retrying.", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Even where a later event was delivered, and this would undo it.")]
Backfill = Annotated[
    bool,
    typer.Option("--backfill", help="Of --route: also what was delivered, and what it would take now and never took."),
]
All = Annotated[bool, typer.Option("--all", help="All of them; needed without any filter.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without it only the plan is shown.")]


def replay(
    seqs: Seqs = None,
    *,
    reason: Reason = None,
    route: OfRoute = None,
    seq: OfSeq = None,
    source: OfSource = None,
    entity: ThisEntity = None,
    destination: OfDestination = None,
    api: OfApi = None,
    event_type: OfEventType = None,
    state: OfDeliveryState = None,
    cause: OfCause = None,
    status: OfStatus = None,
    error: OfError = None,
    since: Since = None,
    until: Until = None,
    force: Force = False,
    backfill: Backfill = False,
    everything: All = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Replay dead or ended deliveries. Shows the plan; --yes does it.

    Without events, --entity or --backfill, only dead letters are replayed. Exits with 1 when there is nothing to replay.
    Attempts that wait are not dead: `relay retry` makes them due at once.

    Examples:
      relay replay --cause exhausted --reason "CRM is back"
      relay replay --destination crm --status 503 --since 2d --reason "CRM is back"
      relay replay --seq 42 --reason "mapping fixed" --yes
      relay replay 42 43 57 --route to-crm --reason "mapping fixed" --yes
      relay replay --route crm --backfill --since 2026-01-01 --reason "CRM was restored from a backup"
    """
    chosen = _selection(
        route=route,
        seq=seq,
        seqs=seqs,
        source=source,
        entity=entity,
        destination=destination,
        api=api,
        event_type=event_type,
        state=state,
        cause=cause,
        status=status,
        error=error,
        since=since,
        until=until,
        force=force,
        backfill=backfill,
        everything=everything,
    )
    texts = Texts("would be replayed", "replayed", "replaying", "nothing to replay")
    carry_out("replay", texts, chosen, reason, yes=yes, as_json=as_json)


def retry(
    seqs: Seqs = None,
    *,
    reason: Reason = None,
    route: OfRoute = None,
    seq: OfSeq = None,
    source: OfSource = None,
    entity: ThisEntity = None,
    destination: OfDestination = None,
    api: OfApi = None,
    event_type: OfEventType = None,
    cause: OfFailure = None,
    status: OfStatus = None,
    error: OfError = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make waiting attempts due at once, such as after a repair. Shows the plan; --yes does it.

    Each delivery keeps its attempts and its place in its lane. Pauses, circuit breakers and rate limits hold as always.
    Exits with 1 when nothing waits for a later attempt.

    Examples:
      relay retry --destination crm --reason "CRM is back"
      relay retry --cause server_error --since 1h --reason "CRM is back" --yes
      relay retry --seq 42 --reason "account fixed" --yes
      relay retry --all --reason "the network is back" --yes
    """
    chosen = _selection(
        route=route,
        seq=seq,
        seqs=seqs,
        source=source,
        entity=entity,
        destination=destination,
        api=api,
        event_type=event_type,
        cause=cause,
        status=status,
        error=error,
        since=since,
        until=until,
        everything=everything,
    )
    texts = Texts("would be due now", "due now", "retrying", "no attempt waits for later")
    carry_out("retry", texts, chosen, reason, yes=yes, as_json=as_json)


def cancel(
    seqs: Seqs = None,
    *,
    reason: Reason = None,
    route: OfRoute = None,
    seq: OfSeq = None,
    source: OfSource = None,
    entity: ThisEntity = None,
    destination: OfDestination = None,
    api: OfApi = None,
    event_type: OfEventType = None,
    state: OfDeliveryState = None,
    cause: OfCause = None,
    status: OfStatus = None,
    error: OfError = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """End deliveries for good, open or dead. Shows the plan; --yes does it.

    Deliveries in flight are left as they are. Exits with 1 when there is nothing to cancel.

    Examples:
      relay cancel --seq 42 --reason "a test account"
      relay cancel --route crm --state dead --reason "the CRM has them from a backup" --yes
      relay cancel --route old-crm --reason "switched off" --yes
    """
    chosen = _selection(
        route=route,
        seq=seq,
        seqs=seqs,
        source=source,
        entity=entity,
        destination=destination,
        api=api,
        event_type=event_type,
        state=state,
        cause=cause,
        status=status,
        error=error,
        since=since,
        until=until,
        everything=everything,
    )
    texts = Texts("would be cancelled", "cancelled", "cancelling", "nothing to cancel")
    carry_out("cancel", texts, chosen, reason, yes=yes, as_json=as_json)


def unblock(
    seqs: Seqs = None,
    *,
    reason: Reason = None,
    route: OfRoute = None,
    seq: OfSeq = None,
    source: OfSource = None,
    entity: ThisEntity = None,
    destination: OfDestination = None,
    api: OfApi = None,
    event_type: OfEventType = None,
    cause: OfCause = None,
    status: OfStatus = None,
    error: OfError = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let lanes continue past the dead head that blocks them; it stays dead. Shows the plan; --yes does it.

    Exits with 1 when nothing is blocked.

    Examples:
      relay unblock --entity USER/IDNUMBER1234 --reason "fixed by hand"
      relay unblock --route orders --reason "agreed with shipping" --yes
    """
    chosen = _selection(
        route=route,
        seq=seq,
        seqs=seqs,
        source=source,
        entity=entity,
        destination=destination,
        api=api,
        event_type=event_type,
        cause=cause,
        status=status,
        error=error,
        since=since,
        until=until,
        everything=everything,
    )
    texts = Texts("would be unblocked", "unblocked", "unblocking", "nothing is blocked")
    carry_out("unblock", texts, chosen, reason, yes=yes, as_json=as_json)


def _selection(
    *,
    route: str | None,
    seq: int | None,
    seqs: list[int] | None,
    source: str | None,
    entity: str | None,
    destination: str | None,
    api: str | None,
    event_type: str | None,
    cause: str | None,
    status: int | None,
    error: str | None,
    since: datetime | None,
    until: datetime | None,
    state: str | None = None,
    force: bool = False,
    backfill: bool = False,
    everything: bool = False,
) -> Selection:
    from relay.operations.asks import Selection

    if seqs and len(seqs) > MOST_SEQS:
        fail(f"name at most {MOST_SEQS} events: {len(seqs)} are given")
    entity_type, entity_id = parse_entity(entity)
    return Selection(
        route=route,
        seq=seq,
        seqs=tuple(seqs) if seqs else None,
        source=source,
        entity_type=entity_type,
        entity_id=entity_id,
        destination=destination,
        api=api,
        event_type=event_type,
        cause=cause,
        status=status,
        error=error,
        since=since,
        until=until,
        state=state,
        force=force,
        backfill=backfill,
        everything=everything,
    )
