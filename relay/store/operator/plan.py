"""Plans: the changes that an operation would make now, for every channel. Planning changes and locks nothing."""

from __future__ import annotations

import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import msgspec

from inbox.clock import SystemClock
from inbox.config.mistakes import nearest
from inbox.config.model import Config, RetentionKind
from inbox.db import erasure, reads
from inbox.db.erasure import ErasureSubject
from inbox.db.reads import Row
from inbox.errors import NoSuchCommand, UnusableCommand
from inbox.events.states import MOST_REASON, RETRYING, State, says_why
from inbox.sources.normalize import ReadmitResult, make_readers
from relay.delivery.gates import Gate, format_gate, format_resume_command
from relay.delivery.policy import policies
from relay.filters import Filtered, list_unknown
from relay.operations.asks import KindsOfRows, OneCommand, OneEntity, OneGate, OneSource, Rejections, Selection
from relay.operations.table import OPERATIONS, require_order
from relay.store import gates, retention
from relay.store.database import Database
from relay.store.deliveries import Key, format_key
from relay.store.operator import commands, edits, readmit, selection
from relay.store.operator.changes import SKIP_REASONS, SkipReason, find_replayable
from relay.store.operator.selection import Act, Choice, list_keys
from relay.store.retention import compute_expiry
from relay.store.route_states import read_routes
from relay.store.work import Work, process_in_parts
from relay.words import describe_holds, describe_state, format_count

_PAGE = 500
_MOST_BEHIND = 500
"""The largest count of deliveries behind a gate, for each state."""
_MOST_NAMED = 3
"""Number of named events whose states an empty plan shows."""


class Bound(msgspec.Struct, frozen=True):
    """The limits of a plan; without limits it is exact, however long it takes."""

    rows: int | None = None
    """Maximum number of rows to examine."""
    until: float = float("inf")
    """Time of the monotonic clock at which to stop."""
    listed: int = 10
    """The number of rows to list."""

    def is_late(self) -> bool:
        """Return whether the time limit has passed."""
        return time.monotonic() > self.until


def quick(rows: int, seconds: float) -> Bound:
    """Return the limits of an interactive plan."""
    return Bound(rows, time.monotonic() + seconds)


class Group(msgspec.Struct, frozen=True):
    """The deliveries of a plan that have the same route, state and cause."""

    route: str
    state: str
    cause: str | None
    count: int
    first_due_at: datetime | None = None
    """The earliest due time of waiting attempts."""
    last_due_at: datetime | None = None


class SkippedRows(msgspec.Struct, frozen=True):
    """The deliveries or requests that an operation skips for one reason."""

    why: str
    """The reason as a word."""
    count: int
    text: str
    """The reason as a sentence about them."""

    @property
    def says(self) -> str:
        """The sentence with the count."""
        return f"{self.count:,} skipped: {self.text}"


def list_skipped(counts: Mapping[str, int]) -> tuple[SkippedRows, ...]:
    """Return the skipped rows, from the number for each reason."""
    return tuple(
        SkippedRows(why, number, SKIP_REASONS[cast("SkipReason", why)]) for why, number in counts.items() if number
    )


class PlanFigure(msgspec.Struct, frozen=True):
    """A number of rows affected by an operation."""

    name: str
    count: int
    note: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The changes that an operation would make now."""

    count: int | None = None
    """Number of deliveries or rows; None for operations without such a number."""
    is_whole: bool = True
    """False if there may be more than `count`, as not all were examined."""
    groups: tuple[Group, ...] = ()
    """The deliveries by route, state and cause; the largest first."""
    deliveries: tuple[Row, ...] = ()
    """The first deliveries, in order of arrival."""
    requests: tuple[Row, ...] = ()
    """The first rejected requests, as the current configuration reads them."""
    skipped: tuple[SkippedRows, ...] = ()
    """The deliveries or requests that match but will not be changed, by reason."""
    differences: tuple[edits.FieldDifference, ...] = ()
    """The fields that an edited body changes."""
    figures: tuple[PlanFigure, ...] = ()
    """Numbers of rows by kind."""
    consequences: tuple[str, ...] = ()
    """Sentences about the consequences of the operation."""
    warnings: tuple[str, ...] = ()
    """Sentences about this plan."""
    obstacle: str | None = None
    """The reason why the operation can't be done now, or has nothing to do."""
    instead: tuple[str, ...] = ()
    """Sentences that suggest another command."""

    @property
    def says(self) -> str:
        """The plan's sentences joined, such as the obstacle, without the consequences."""
        said = (self.obstacle, *(each.says for each in self.skipped), *self.warnings, *self.instead)
        return "; ".join(each for each in said if each is not None)

    @property
    def document(self) -> dict[str, Any]:
        """The plan as JSON."""
        return cast("dict[str, Any]", msgspec.to_builtins(self))

    @property
    def sample(self) -> dict[str, Any]:
        """The plan as JSON for `relay_command`, which viewers read and erasures keep: without values of bodies."""
        return msgspec.structs.replace(self, differences=()).document


def find_reason_mistake(asked: msgspec.Struct | None, reason: str | None) -> str | None:
    """Return the error in an operator's reason; None if it is valid."""
    if not says_why(reason) or reason is None:
        return "say why, in letters or digits: the reason is kept in the log"
    if len(reason) > MOST_REASON:
        return f"a reason has at most {MOST_REASON:,} characters"
    if isinstance(asked, OneEntity) and make_subject(asked).is_named_in(reason):
        return "the reason names the entity, but it is kept for good: say why without the id"
    return None


Seen = Callable[[int], None]


class _Planning(msgspec.Struct, frozen=True):
    database: Database
    config: Config
    kind: str
    asked: Any
    bound: Bound
    seen: Seen
    """Called with the number of rows examined so far."""

    @property
    def nothing(self) -> str:
        return OPERATIONS[self.kind].nothing


def plan(
    database: Database,
    config: Config,
    kind: str,
    asked: msgspec.Struct,
    bound: Bound,
    *,
    seen: Seen = lambda _: None,
) -> Plan:
    """Make the plan of an operation.

    Raises:
        UnusableCommand: the operation is invalid; the message suggests a correction.
    """
    require_meant(database, config, kind, asked)
    planned = _PLANS[OPERATIONS[kind].asks](_Planning(database, config, kind, asked, bound, seen))
    return msgspec.structs.replace(planned, consequences=OPERATIONS[kind].consequences)


def describe_nothing(database: Database, config: Config, kind: str, asked: msgspec.Struct, bound: Bound) -> str:
    """Return the answer of a command that found nothing to do: the reason, and the commands that may help."""
    planned = _PLANS[OPERATIONS[kind].asks](_Planning(database, config, kind, asked, bound, lambda _: None))
    return OPERATIONS[kind].nothing if planned.obstacle is None else planned.says


_LISTINGS: Mapping[type[msgspec.Struct], Filtered] = {
    Selection: "dead",
    Rejections: "rejected",
    OneEntity: "deliveries",
}
"""The listing whose filters have the same names as the fields."""


def require_meant(database: Database, config: Config, kind: str, asked: msgspec.Struct) -> None:
    """Check that an operation makes sense, and that everything it names exists.

    Raises:
        UnusableCommand: the operation is invalid; the message suggests a correction.
    """
    require_order(asked)
    mistake = field = None
    if isinstance(asked, Selection):
        mistake = Choice(cast("Act", kind), asked, config).mistake
    elif isinstance(asked, OneGate):
        mistake = gates.find_mistake(database, Gate(**msgspec.structs.asdict(asked)), kind, config)
    if mistake is None and (listing := _LISTINGS.get(type(asked))):
        given = {name: getattr(asked, name, None) for name in ("destination", "api", "cause", "route", "source")}
        field, mistake = next(list_unknown(listing, given, config, database.engine), (None, None))
    if mistake is not None:
        raise UnusableCommand(mistake, field=field)


def _plan_deliveries(it: _Planning) -> Plan:
    choice = Choice(cast("Act", it.kind), it.asked, it.config)
    found = preview(it.database, choice, it.bound, seen=it.seen)
    if not found.count and found.is_whole:
        instead = (*_suggest(it.database, choice), *_describe_move(it.asked, found))
        return msgspec.structs.replace(found, obstacle=it.nothing, instead=instead)
    edit = None
    if it.asked.edited_body is not None:
        edit = edits.examine_named(it.database, it.config, it.asked)
        if found.count != 1:
            raise UnusableCommand(edits.ask_for_route(group.route for group in found.groups), field="route")
    warnings = (
        *(found.warnings if edit is None else edit.warnings),
        *(["With force, a replay overwrites the last delivered state with an older one."] if it.asked.force else ()),
        *([_BACKFILL] if it.asked.backfill and it.asked.open_on is None else ()),
        *_describe_move(it.asked, found),
        *_list_gates(it, {group.route for group in found.groups}),
    )
    return msgspec.structs.replace(found, warnings=warnings, differences=() if edit is None else edit.differences)


_BACKFILL = "A backfill delivers delivered events again, and events that the route would take now but never took."


def _describe_move(asked: Selection, found: Plan) -> Iterator[str]:
    """Yield the next step of a renamed route: a cancel loses no change once nothing is left that was not moved."""
    if asked.open_on is None:
        return
    cancel = shlex.join(["relay", "cancel", "--route", asked.open_on])
    left = sum(each.count for each in found.skipped)
    if not found.is_whole:
        yield f"Run the replay until it finds nothing, before `{cancel}`"
    elif left:
        yield f"{left:,} stay on route {asked.open_on} only: run the replay again; `{cancel}` loses those still there"
    else:
        yield f"The deliveries of route {asked.open_on} stay open. After this replay, `{cancel}` ends them."


def preview(database: Database, choice: Choice, bound: Bound, *, seen: Seen = lambda _: None) -> Plan:
    """Count the deliveries that a command would change, examining each as the command itself will."""
    due: defaultdict[tuple[str, str, str | None], list[datetime | None]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    first: list[Row] = []
    edited: set[int] = set()
    examined, is_whole = 0, True
    after: int | None = 0
    while after is not None and is_whole:
        page = selection.read_page(_quiet(database, choice), choice, after=after, most=_PAGE, is_late=bound.is_late)
        left = _find_skipped(database, choice, list_keys(page.rows))
        skipped.update(left.values())
        skipped["unreadable"] += len(page.unreadable)
        for row in page.rows:
            if (row["seq"], row["route"]) not in left:
                state = RETRYING if row["is_later"] and row["attempts"] else row["state"]
                due[row["route"], state, row["cause"]].append(row["due_at"])
                first += [{**row, "state": state}] if len(first) < bound.listed else ()
        if choice.act == "replay":
            edited |= edits.find_edited(
                database, (seq for seq, route in list_keys(page.rows) if (seq, route) not in left)
            )
        examined, after = examined + len(page.rows), page.upto
        seen(examined)
        is_whole = after is None or not (bound.is_late() or examined >= (bound.rows or examined + 1))
    groups = [_group(key, times) for key, times in due.items()]
    count = sum(group.count for group in groups)
    left_over = _list_left(database, choice, count + skipped.total()) if is_whole else ()
    return Plan(
        count=count,
        is_whole=is_whole,
        groups=tuple(sorted(groups, key=lambda g: (-g.count, g.route, g.state, g.cause or ""))),
        deliveries=tuple(first),
        skipped=(*list_skipped(skipped), *left_over),
        warnings=tuple(edits.warn_of_edited(edited)),
    )


def _list_left(database: Database, choice: Choice, selected: int) -> tuple[SkippedRows, ...]:
    """Return the deliveries of a former route that are neither moved nor among the `selected`."""
    former, route = choice.selection.open_on, choice.selection.route
    if former is None:
        return ()
    with database.read() as transaction:
        found = selection.count_unmoved(transaction, former, route)
    in_flight = found.get(State.IN_FLIGHT, 0)
    left = {
        "in_flight": (in_flight, f"in flight on route {former}"),
        "not_taken": (sum(found.values()) - in_flight - selected, f"not taken by route {route}, or not selected"),
    }
    return tuple(SkippedRows(why, number, says) for why, (number, says) in left.items() if number > 0)


def _group(key: tuple[str, str, str | None], due: Sequence[datetime | None]) -> Group:
    times = [moment for moment in due if moment is not None]
    return Group(*key, len(due), min(times, default=None), max(times, default=None))


def _quiet(database: Database, choice: Choice) -> Work:
    """Return a context that reports nothing: a plan does not quarantine."""
    return Work(database, choice.config, {})


def _find_skipped(database: Database, choice: Choice, keys: Sequence[Key]) -> Mapping[Key, SkipReason]:
    """Find the deliveries on a page that the command will skip."""
    if choice.act != "replay":
        return {}

    def process(some: Sequence[Key]) -> Mapping[Key, SkipReason]:
        with database.read() as transaction:
            return find_replayable(transaction, choice, some, locked=False).skipped

    def quarantine_one(key: Key, _error: Exception) -> Mapping[Key, SkipReason]:
        return {key: "unreadable"}

    parts = process_in_parts(
        _quiet(database, choice), "commands", keys, process=process, quarantine_one=quarantine_one, name=format_key
    )
    return {key: why for part in parts for key, why in part.items()}


def _list_gates(it: _Planning, routes: set[str]) -> Iterator[str]:
    """Yield a sentence for each gate that still holds these deliveries back, with the command that opens it."""
    known = policies(it.config)
    passed = {key for route in routes if route in known for key in known[route].gates}
    for row in gates.read_closed_gates(it.database):
        if (row["kind"], row["name"]) in passed:
            yield f"{'; '.join(_holds(row))}. `{format_resume_command(row['kind'], row['name'])}` ends that"


def _holds(row: Row) -> Iterator[str]:
    return (f"{format_gate(row['kind'], row['name'])} {each}" for each in describe_holds(row, SystemClock().now()))


def _suggest(database: Database, choice: Choice) -> Iterator[str]:
    """Yield suggestions for a command that matches nothing: other commands, and the states of the events it names."""
    chosen = choice.selection
    if choice.act in {"replay", "unblock"} and _has_some(database, choice, "retry"):
        yield "attempts are waiting: `relay retry` with the same conditions makes them due at once"
    is_dead = choice.act in {"retry", "unblock"} and _has_some(database, choice, "replay")
    if is_dead:
        yield "there are dead letters: `relay replay` with the same conditions delivers them again"
    named = [*(() if chosen.seq is None else (chosen.seq,)), *(chosen.seqs or ())]
    for seq in named[:_MOST_NAMED]:
        event = reads.event(database.engine, seq)
        states = (
            [f"{describe_state(row, SystemClock().now())} on {row['route']}" for row in event["deliveries"]]
            if event
            else []
        )
        yield (
            f"event {seq} is {', '.join(states) or 'unrouted'}; `inbox show {seq}` has its history"
            if event
            else f"there is no event {seq}"
        )
    if choice.act == "retry" and not is_dead and not named:
        yield "a delivery that is due or in flight needs no retry: `relay status` says what holds it back"


def _has_some(database: Database, choice: Choice, act: Act) -> bool:
    """Return whether another act with the same conditions would match anything."""
    chosen = msgspec.structs.replace(
        choice.selection, state=None, until_fact=None, force=False, backfill=False, open_on=None
    )
    other = msgspec.structs.replace(choice, act=act, selection=chosen)
    return bool(selection.read_page(_quiet(database, other), other, after=0, most=1).rows)


def _plan_gate(it: _Planning) -> Plan:
    gate = Gate(**msgspec.structs.asdict(it.asked))
    held = _read_closed(it.database, gate)
    is_so = held is None if it.kind == "resume" else held is not None and held["paused_at"] is not None
    first = commands.find_open_turn(it.database, msgspec.to_builtins(it.asked))  # after it, the gate may differ
    figures, warnings = list[PlanFigure](), [] if held is None else [*_holds(held)]
    if first is not None:
        warnings.append(f"command {first[0]} ({first[1]}) comes first")
    if gate.entity_id is None:
        figure, retrying = _count_behind(it, gate)
        figures.append(figure)
        if retrying and it.kind == "resume":
            retry = f"{format_resume_command(*gate.key, act='retry')} --reason '…' --yes"
            warnings.append(f"{format_count(retrying, 'failed attempt')} wait until due: `{retry}` makes them due now")
    obstacle = it.nothing if is_so and first is None else None
    return Plan(figures=tuple(figures), warnings=tuple(warnings), obstacle=obstacle)


def describe_closed(database: Database, gate: Gate) -> tuple[str, ...]:
    """Return a sentence for each reason why a gate is closed; empty if it is open."""
    held = _read_closed(database, gate)
    return () if held is None else tuple(_holds(held))


def _read_closed(database: Database, gate: Gate) -> Row | None:
    return next((row for row in gates.read_closed_gates(database) if (row["kind"], row["name"]) == gate.key), None)


def _count_behind(it: _Planning, gate: Gate) -> tuple[PlanFigure, int]:
    """Count the open deliveries that pass a gate and the retries among them, in each state up to `_MOST_BEHIND`."""
    behind = {name for name, policy in policies(it.config).items() if gate.key in policy.gates}
    with it.database.snapshot() as transaction:
        routes, _ = read_routes(transaction, behind, {}, transaction.now(), _MOST_BEHIND)
    found = [route for route in routes if route.route in behind]
    note = "or more" if any(route.at_least for route in found) else ""
    waiting = sum(route.open - route.dead - route.blocked for route in found)
    return PlanFigure("open deliveries behind it", waiting, note), sum(route.retrying for route in found)


def _plan_sweep(it: _Planning) -> Plan:
    types = list_types(it.config, it.asked.source, it.asked.entity_type)
    asks = f"A relay asks {it.asked.source} for changes of {', '.join(types)} since the last sweep."
    return Plan(warnings=(asks,))


def list_types(config: Config, source: str, entity_type: str | None) -> Sequence[str]:
    """List the entity types that a sweep of this source covers.

    Raises:
        UnusableCommand: the source has no such sweep.
    """
    known: Mapping[str, object] = config.sources
    if source not in known:
        raise UnusableCommand(f"there is no source {source!r}; {nearest(source, known)}")
    types = sorted({table.entity_type for table in config.sources[source].sweeps})
    if not types:
        raise UnusableCommand(
            f"source {source} has no sweeps: [[sources.{source}.sweeps]] says how it is asked for changes"
        )
    if entity_type is not None and entity_type not in types:
        raise UnusableCommand(f"source {source} has no sweep of {entity_type!r}; {nearest(entity_type, types)}")
    return types if entity_type is None else [entity_type]


def _plan_prune(it: _Planning) -> Plan:
    ages = it.config.retention
    figures, is_whole = list[PlanFigure](), True
    with it.database.read() as transaction:
        now = retention.read_command_clock(transaction)
        for kind in parse_kinds(it.asked.kinds or ()):
            rows, are_all = retention.count_expired(transaction, kind, compute_expiry(ages, kind, now))
            note = f"{'' if are_all else 'or more; '}older than {ages.get_age(kind).shown}"
            figures.append(PlanFigure(kind, rows, note))
            is_whole = is_whole and are_all
    count = sum(each.count for each in figures)
    obstacle = it.nothing if is_whole and not count else None
    return Plan(count=count, is_whole=is_whole, figures=tuple(figures), obstacle=obstacle)


def parse_kinds(given: Sequence[str]) -> list[RetentionKind]:
    """List kinds of retention, by default all.

    Raises:
        UnusableCommand: a kind is unknown.
    """
    for name in given:
        if name not in retention.STEPS:
            raise UnusableCommand(f"there is no kind of [retention] {name!r}; {nearest(name, retention.STEPS)}")
    return [kind for kind in retention.STEPS if not given or kind in given]


def make_subject(asked: OneEntity) -> ErasureSubject:
    """Return the entity to erase."""
    return ErasureSubject(**msgspec.structs.asdict(asked))


def _plan_erase(it: _Planning) -> Plan:
    subject = make_subject(it.asked)
    found = erasure.plan(it.database.engine, subject)
    is_cut = found.counts["events"] >= erasure.COUNTED_EVENTS
    named = ("--source", subject.source, "--entity", f"{subject.entity_type}/{subject.entity_id}")
    obstacle, instead = found.obstacle, tuple[str, ...]()
    if obstacle is not None:
        instead = (f"`{shlex.join(['relay', 'cancel', *named])} --reason '…' --yes` cancels them",)
    elif not (found.counts["events"] or found.counts["pauses"]):
        is_known = bool(found.erased_before)
        obstacle = "nothing to erase: it is erased already" if is_known else it.nothing
        instead = (
            () if is_known else (f"`{shlex.join(['inbox', 'list', *named[:3], subject.entity_type])}` lists them",)
        )
    return Plan(
        count=found.counts["events"],
        is_whole=not is_cut,
        figures=tuple(
            PlanFigure(name, number, _OF_ERASED.get(name, "")) for name, number in found.counts.items() if number
        ),
        skipped=_list_erased(found.erased_before),
        warnings=(_OF_NEWEST,) if is_cut else (),
        obstacle=obstacle,
        instead=instead,
    )


def _list_erased(count: int) -> tuple[SkippedRows, ...]:
    return (SkippedRows("erased_before", count, "erased before"),) if count else ()


_OF_ERASED = {
    "payloads": "no replay is possible any more",
    "facts": "calls, URLs, errors and reasons go, states and times stay",
    "duplicate requests": "bodies go, the count stays",
    "lanes": "the next event of the entity begins a new one",
    "pauses": "later events are delivered",
}
_OF_NEWEST = f"The numbers cover its {erasure.COUNTED_EVENTS:,} newest events. The erasure covers all, unless one of them is open."


def _plan_readmit(it: _Planning) -> Plan:
    readers, read, rejected = make_readers(it.config), 0, Counter[str]()
    first: list[Row] = []
    after: int | None = 0
    while after is not None and read < (it.bound.rows or read + 1) and not it.bound.is_late():
        page = readmit.read_again(it.database, readers, it.asked, after)
        rejected.update(each.rejected for each in page if each.rejected is not None)
        first += map(_request, page[: max(it.bound.listed - len(first), 0)])
        read, after = read + len(page), page[-1].id if page else None
        it.seen(read)
    is_whole, count = after is None, read - rejected.total()
    return Plan(
        count=count,
        is_whole=is_whole,
        requests=tuple(first),
        skipped=tuple(SkippedRows("rejected", number, f"still rejected: {why}") for why, number in rejected.items()),
        obstacle=None if count or not is_whole else _UNREADABLE if read else it.nothing,
        instead=() if read or it.asked.id is None else (_describe_request(it.database, it.asked.id),),
    )


def _describe_request(database: Database, number: int) -> str:
    row = reads.read_row(database.engine, "rejected_request", number)
    if row is None:
        return f"there is no rejected request {number}"
    if row["readmitted_at"] is not None:
        return f"it was readmitted before, as event {row['readmitted_seq']}"
    return f"`inbox rejected --id {number}` shows it" if row["body"] is not None else "its body was not stored"


_UNREADABLE = "nothing to readmit: the present configuration rejects each of them, too; reload it after a change"


def _request(again: ReadmitResult) -> Row:
    """Return a request without its body, to save memory."""
    names = ("entity_type", "entity_id", "event_type", "occurred_at")
    events = [
        {name: getattr(event, name) for name in names} | {"routes": [one.route for one in event.enrolments]}
        for event in again.events
    ]
    told = {name: getattr(again, name) for name in ("id", "received_at", "source", "cause")}
    return told | {"events": events, "rejected": again.rejected}


def _plan_turn(it: _Planning) -> Plan:
    found = commands.read_command(it.database, it.asked.command)
    if found is None:
        raise NoSuchCommand(f"there is no command {it.asked.command}")
    obstacle = commands.find_obstacle(found, it.kind)
    return Plan(
        obstacle=obstacle, warnings=() if obstacle else (f"command {found.id} ({found.kind}) is {found.state}",)
    )


_PLANS: Mapping[type[msgspec.Struct], Callable[[_Planning], Plan]] = {
    Selection: _plan_deliveries,
    OneGate: _plan_gate,
    OneSource: _plan_sweep,
    OneEntity: _plan_erase,
    KindsOfRows: _plan_prune,
    Rejections: _plan_readmit,
    OneCommand: _plan_turn,
}


def format_dry_run_answer(kind: str, planned: Plan) -> str:
    """Return the answer to a dry run: a summary of its plan."""
    words = OPERATIONS[kind]
    number = f"{'' if planned.is_whole else 'at least '}{format_count(planned.count or 0, words.thing)}"
    said = [] if planned.obstacle is not None else [f"{number} would be {words.done}"]
    return "dry run: " + "; ".join([*said, *([planned.says] if planned.says else [])])
