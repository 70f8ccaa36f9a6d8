"""The plan of an act: the changes that it would make now, and their consequences. An act is carried out as its plan was shown.

A plan that was shown is frozen: its act leaves alone what has arrived, failed or died since, and a replay whatever has changed.
So it can only have shrunk when it is confirmed, which in a living system it does all the time. One that has grown all the
same, or is about other routes, is shown again.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar, cast

import msgspec
from sqlalchemy import text

from inbox.config.mistakes import nearest
from inbox.db import erasure
from inbox.db.dialect import rows_param
from inbox.db.erasure import ErasurePlan, ErasureSubject, held_up_by
from inbox.db.reads import has_source
from inbox.errors import BadFilter, NothingThere, UnusableCommand
from inbox.events.states import OPEN_STATES
from inbox.events.timestamps import rfc3339
from relay.delivery.gates import Gate
from relay.operations.asks import (
    KindsOfRows,
    OneCommand,
    OneEntity,
    OneGate,
    OneSource,
    Rejections,
    Selection,
)
from relay.operations.table import Operation
from relay.store import gates, retention
from relay.store.operator import commands, readmit
from relay.store.operator.execution import unknown_name
from relay.store.operator.plan import LEFT_OUT, Group, bounded
from relay.store.operator.room import MOST_OPEN
from relay.store.operator.selection import Act, Choice
from relay.store.operator.tasks import types_of
from relay.store.overview import HeldGate, read_held_gates
from relay.store.transaction import Transaction
from relay.web.reading import MOST_COUNTED as MOST_BEHIND
from relay.web.reading import AnyMembers, Reading

MOST_COUNTED = 10_000
"""Deliveries that a plan examines."""
LONGEST_SECONDS = 1.0
"""Time after which a plan ends with what it has examined."""
LISTED = 10
_READ_AGAIN = 40
"""Rejected requests that a plan reads."""


class PlanFigure(msgspec.Struct, frozen=True):
    """A number of things that an act is about."""

    name: str
    count: int
    note: str = ""


class ActPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The changes that an act would make now. Making a plan changes nothing, and locks nothing."""

    kind: str
    selection: AnyMembers
    """The subject of the command: the JSON of `relay_command.selection`."""
    count: int | None = None
    """Number of deliveries or rows; None where an act has no such number."""
    is_whole: bool = True
    """False: there are more than `count`, and no more were examined."""
    groups: tuple[Group, ...] = ()
    """The deliveries by route, state and cause; the largest first."""
    deliveries: tuple[AnyMembers, ...] = ()
    """The first deliveries, in the order of arrival."""
    left_out: dict[str, int] = {}
    """Sentences about selected deliveries or rows that stay as they are, and how many each is about."""
    figures: tuple[PlanFigure, ...] = ()
    """Numbers of rows by kind, where an act is about no delivery."""
    consequences: tuple[str, ...] = ()
    """Consequences, in sentences."""
    obstacle: str | None = None
    """Reason why it can't be done now."""
    needs_everything: bool = False
    """True: no condition narrows it, so `everything` has to be confirmed."""
    as_of: str | None = None
    """Time of the plan: what joins the selection later is left alone."""
    plan: str = ""
    """Send it back as `plan`: exactly this is done, and nothing when it has changed."""


class Agreed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The essence of a plan that was shown, as the field `plan` of its act has it."""

    digest: str
    """Of the selection, and of everything that must be the same."""
    most: int | None = None
    """Deliveries or rows at most; None: any number."""
    as_of: datetime | None = None
    until_fact: int | None = None
    """Of a replay: the newest fact."""

    @classmethod
    def parse(cls, written: str | None) -> Agreed | None:
        """Read the field; None where it is none, as in a form that was changed."""
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(written or ""), type=cls)
        except (ValueError, msgspec.DecodeError):
            return None

    def allows(self, now: Agreed | None) -> bool:
        """Tell whether the plan of now is this one, or less of the same."""
        if now is None or now.digest != self.digest:
            return False
        return self.most is None or (now.most is not None and now.most <= self.most)


def _sealed(plan: ActPlan, traits: object, *, as_of: datetime | None = None, until_fact: int | None = None) -> ActPlan:
    """Return the plan with its field `plan`; `traits` must be the same when it is confirmed."""
    shown = msgspec.json.encode([plan.kind, plan.selection, traits], order="sorted")
    most = plan.count if plan.is_whole else None
    agreed = Agreed(hashlib.sha256(shown).hexdigest()[:32], most, as_of, until_fact)
    written = base64.urlsafe_b64encode(msgspec.json.encode(agreed)).decode()
    return msgspec.structs.replace(plan, plan=written, as_of=None if as_of is None else rfc3339(as_of))


def make_plan(reading: Reading, operation: Operation, asked: Any, agreed: Agreed | None) -> ActPlan:  # noqa: ANN401  # `asks`
    """Make the plan of an operation; one that was `agreed` to is made as of then.

    Raises:
        BadFilter: the selection makes no sense.
        NothingThere: there is no such command.
    """
    try:
        return _PLANS[operation.asks](reading, operation.kind, asked, agreed)
    except UnusableCommand as error:
        raise BadFilter(str(error)) from None


Frozen = TypeVar("Frozen", Selection, Rejections)


def _frozen(transaction: Transaction, asked: Frozen, agreed: Agreed | None) -> tuple[Frozen, datetime]:
    """Return a selection that leaves alone what comes after its plan, and the time of the plan.

    Without it, an act on a failing route would take along deaths that nobody has seen, or ask again for ever.
    """
    now = transaction.now()
    as_of = now if agreed is None or agreed.as_of is None else min(agreed.as_of, now)
    until = as_of if asked.until is None else min(asked.until, as_of)
    return msgspec.structs.replace(asked, until=until, everything=asked.is_empty), as_of


# --- deliveries

_CONSEQUENCES: Mapping[str, tuple[str, ...]] = {
    "replay": (
        "Each goes back to its place in its lane, by the time of its event. Later events of the lane that are open wait for it.",
        "Where the route's ordering is latest, a newer event that waits is delivered in its place.",
        f"At most {MOST_OPEN:,} replayed deliveries of a route are open at a time, so new events need not wait behind them.",
    ),
    "retry": (
        "The next attempt of each is due at once. Each keeps its attempts and its place in its lane.",
        "Pauses, circuit breakers and rate limits hold as always.",
    ),
    "cancel": (
        "They end for good, and their events never reach the destination unless somebody replays them.",
        "Later events of their lanes go on. Deliveries in flight are left as they are.",
    ),
    "unblock": (
        "Later events of each lane pass its dead delivery, and may reach the destination before it.",
        "The dead delivery stays dead and can be replayed.",
    ),
}
_NEWEST_FACT = text("SELECT coalesce(max(id), 0) AS id FROM delivery_log")
_FORCED = "With force, a replay overwrites the last delivered state with an older one."
_BACKFILL = "A backfill delivers again what was delivered, and what the route would take now and never took."


def _plan_deliveries(reading: Reading, kind: str, asked: Selection, agreed: Agreed | None) -> ActPlan:
    """Plan a replay, retry, cancel or unblock, of at most `MOST_COUNTED` deliveries."""
    with reading.database.read() as transaction:
        chosen, as_of = _frozen(transaction, asked, agreed)
        until_fact = int(transaction.execute(_NEWEST_FACT)[0].id) if kind == "replay" else None
    if until_fact is not None:
        shown = None if agreed is None else agreed.until_fact
        until_fact = until_fact if shown is None else min(until_fact, shown)
        chosen = msgspec.structs.replace(chosen, until_fact=until_fact)
    choice = Choice(cast("Act", kind), chosen, reading.config)
    mistake = choice.mistake or unknown_name(reading.database, choice)
    if mistake is not None:
        raise BadFilter(mistake)
    end = time.monotonic() + LONGEST_SECONDS
    found = bounded(reading.database, choice, listed=LISTED, most=MOST_COUNTED, is_late=lambda: time.monotonic() > end)
    planned, routes = found.plan, {group.route for group in found.plan.groups}
    made = ActPlan(
        kind=kind,
        selection=msgspec.to_builtins(chosen),
        count=planned.count,
        is_whole=found.is_whole,
        groups=planned.groups,
        deliveries=planned.deliveries,
        left_out={LEFT_OUT[why]: number for why, number in planned.left_out.items()},
        consequences=(
            *_CONSEQUENCES[kind],
            *([_FORCED] if chosen.force else ()),
            *([_BACKFILL] if chosen.backfill else ()),
            *dict.fromkeys(_held_back(reading, routes)),
        ),
        obstacle=None if planned.count or not found.is_whole else "no delivery matches: there is nothing to do",
        needs_everything=asked.is_empty,
    )
    return _sealed(made, sorted(routes) if found.is_whole else [], as_of=as_of, until_fact=until_fact)


def _held_back(reading: Reading, routes: set[str]) -> Iterator[str]:
    """Name the gates that hold deliveries of these routes back whatever the act does."""
    for each in _held_gates(reading):
        if each.kind != "entity" and routes.intersection(each.routes):
            held = "paused" if each.state == "paused" else "held back"
            yield f"The {each.kind} {each.name} is {held}: nothing of it is delivered until that ends."


def _held_gates(reading: Reading) -> list[HeldGate]:
    """Read the gates that stay closed for longer than a moment."""
    return [each for each in read_held_gates(reading.database, reading.policies) if each.state != "limited"]


# --- gates, sweeps and commands


def _plan_gate(reading: Reading, kind: str, asked: OneGate, _agreed: Agreed | None) -> ActPlan:
    """Plan a pause, or its end."""
    gate = Gate(**msgspec.structs.asdict(asked))
    if mistake := gates.mistake_in(reading.database, gate, kind, reading.config):
        raise BadFilter(mistake)
    held = {each.state: each for each in _held_gates(reading) if (each.kind, each.name) == gate.key}
    if kind == "pause":
        obstacle = f"it is paused already, by {held['paused'].by}" if "paused" in held else None
        consequences = (
            "Nothing behind it is delivered until somebody resumes it. Webhooks are still accepted, and wait.",
            "Calls that run now finish. No attempt is used up.",
        )
    else:
        obstacle = None if held else "nothing holds it back"
        consequences = (
            "The pause ends, and its circuit breaker closes; deliveries go on in their order.",
            "Attempts that failed before wait until they are due; a retry makes them due at once.",
        )
    made = ActPlan(
        kind=kind,
        selection=msgspec.to_builtins(gate),
        figures=() if gate.entity_id is not None else (_behind(reading, gate),),
        consequences=(*map(_held_words, held.values()), *consequences),
        obstacle=obstacle,
    )
    return _sealed(made, sorted(held))


def _held_words(held: HeldGate) -> str:
    if held.state == "paused" and held.since is not None:
        return f"{held.by} paused it on {rfc3339(held.since, 'seconds')}: {held.why}"
    until = "" if held.until is None else f" until {rfc3339(held.until, 'seconds')}"
    kind = "held" if held.state == "held" else f"held by its circuit breaker, which is {held.state}"
    return f"It is {kind}{until}: {held.why}"


def _behind(reading: Reading, gate: Gate) -> PlanFigure:
    """Count the open deliveries that pass a gate, up to one more than `MOST_BEHIND`."""
    routes = sorted(name for name, policy in reading.policies.items() if gate.key in policy.gates)
    with reading.database.read() as transaction:
        names = transaction.sql.rows("routes", name="text")
        states = " UNION ALL ".join(  # each state has an index of its own
            f"SELECT * FROM (SELECT 1 AS one FROM open_delivery o WHERE o.state = '{state}' AND o.route IN"
            f" (SELECT routes.name FROM {names}) LIMIT :most) AS of_{state}"
            for state in OPEN_STATES
        )
        statement = text(f"SELECT count(*) AS count FROM (SELECT 1 FROM ({states}) AS found LIMIT :most) AS counted")
        given = rows_param({"name": name} for name in routes)
        found = int(transaction.execute(statement, routes=given, most=MOST_BEHIND + 1)[0].count)
    return PlanFigure("open deliveries behind it", found, "counted up to 500" if found > MOST_BEHIND else "")


def _plan_sweep(reading: Reading, kind: str, asked: OneSource, _agreed: Agreed | None) -> ActPlan:
    """Plan a sweep."""
    types = types_of(reading.config, asked.source, asked.entity_type)
    consequences = (
        f"A relay asks {asked.source} for changes of {', '.join(types)} since the last sweep, and compares them with the inbox.",
        "Changes that no webhook reported become events, and are delivered in their order.",
    )
    return _sealed(ActPlan(kind=kind, selection=msgspec.to_builtins(asked), consequences=consequences), list(types))


def _plan_turn(reading: Reading, kind: str, asked: OneCommand, _agreed: Agreed | None) -> ActPlan:
    """Plan the stop of a command, or that it goes on."""
    if commands.progress(reading.database, asked.command) is None:
        raise NothingThere(f"there is no command {asked.command}")
    goes_on = "It goes on where it was stopped." if kind == "continue" else "A stopped command can go on later."
    consequences = (f"Everything that it has done stays done. {goes_on}",)
    return ActPlan(kind=kind, selection=msgspec.to_builtins(asked), consequences=consequences)


# --- rows


def _plan_prune(reading: Reading, kind: str, asked: KindsOfRows, _agreed: Agreed | None) -> ActPlan:
    """Plan a round of retention; what expires meanwhile goes, too."""
    wanted = asked.kinds or ()
    for name in wanted:
        if name not in retention.STEPS:
            why = f"there is no kind of [retention] {name!r}; {nearest(name, retention.STEPS)}"
            raise BadFilter(why, field="kinds")
    with reading.database.read() as transaction:
        plans = retention.plan(transaction, reading.config.retention, transaction.now())
    made = ActPlan(
        kind=kind,
        selection=msgspec.to_builtins(asked),
        figures=tuple(
            PlanFigure(each.kind, each.rows, f"{'' if each.are_all else 'or more; '}older than {each.age}")
            for each in plans
            if not wanted or each.kind in wanted
        ),
        consequences=(
            "A relay deletes the expired rows of every kind for good, as it does by itself."
            + (" The answer counts the chosen kinds." if wanted else ""),
        ),
    )
    return _sealed(made, [[each.kind, each.age] for each in plans])


def _plan_erase(reading: Reading, kind: str, asked: OneEntity, _agreed: Agreed | None) -> ActPlan:
    """Plan the erasure of an entity. It is confirmed as it was shown, to the last row."""
    subject = ErasureSubject(**msgspec.structs.asdict(asked))
    if subject.source not in reading.config.sources and not has_source(reading.database.engine, subject.source):
        raise BadFilter(f"there is no source {subject.source!r}; {nearest(subject.source, reading.config.sources)}")
    planned = erasure.plan(reading.database.engine, subject, quick=True)
    figures = [
        PlanFigure("events", planned.events),
        PlanFigure("payloads", planned.payloads, "no replay is possible any more"),
        PlanFigure("facts", planned.facts, "calls, errors and reasons go; states and times stay"),
        PlanFigure("duplicate requests", planned.duplicates, "bodies go, the count stays"),
        PlanFigure("lanes", planned.lanes, "the next event of the entity begins a new one"),
        PlanFigure("pauses", planned.pauses, "later events are delivered"),
        *(PlanFigure(f"rows of {table} that name it", number) for table, number in sorted(planned.naming.items())),
    ]
    made = ActPlan(
        kind=kind,
        selection=msgspec.to_builtins(subject),
        count=planned.events,
        is_whole=not planned.has_more_events,
        figures=tuple(each for each in figures if each.count),
        left_out={"events of it were erased before": planned.erased_before} if planned.erased_before else {},
        consequences=tuple(_erasure_consequences(planned)),
        obstacle=_erasure_obstacle(planned),
    )
    return _sealed(made, [[each.name, each.count] for each in figures])


def _erasure_consequences(planned: ErasurePlan) -> Iterator[str]:
    yield "Nothing brings it back. The reason must not name the entity, as it is kept for good."
    if not planned.is_whole:
        yield "Only a part of the rejected requests was searched; the erasure searches all."
    if planned.has_more_events:
        yield (
            f"The numbers are of its {erasure.COUNTED_EVENTS:,} newest events. The erasure takes all, unless one of them is open."
        )


def _erasure_obstacle(planned: ErasurePlan) -> str | None:
    if planned.open:
        return held_up_by(planned.open)
    if planned.open_commands:
        numbers = ", ".join(map(str, planned.open_commands))
        return f"commands that name the entity are still at work ({numbers}); ask again when they have ended"
    if planned.is_empty and not planned.erased_before:
        return "there is nothing to erase: type and id are compared letter by letter"
    return None


def _plan_readmit(reading: Reading, kind: str, asked: Rejections, agreed: Agreed | None) -> ActPlan:
    """Plan a readmission: the first requests are read again by the present configuration."""
    with reading.database.read() as transaction:
        chosen, as_of = _frozen(transaction, asked, agreed)
    planned = readmit.plan(reading.database, reading.config, readmit.filter_of(chosen), most=_READ_AGAIN)
    made = ActPlan(
        kind=kind,
        selection=msgspec.to_builtins(chosen),
        count=min(planned.matching, readmit.MOST_COUNTED),
        is_whole=planned.matching <= readmit.MOST_COUNTED,
        figures=(
            PlanFigure("requests read again for this plan", planned.examined),
            PlanFigure("of these would be readmitted", planned.readable),
        ),
        left_out={f"would stay rejected: {why}": number for why, number in planned.rejected.items()},
        consequences=(
            "The present configuration reads each again. What it can read becomes events, and is delivered in order.",
            "One that was sent again meanwhile is a duplicate, and is not delivered twice.",
        ),
        obstacle=None if planned.matching else "no rejected request matches that was kept whole and not readmitted yet",
        needs_everything=asked.is_empty,
    )
    return _sealed(made, None, as_of=as_of)


_PLANS: Mapping[type[msgspec.Struct], Callable[[Reading, str, Any, Agreed | None], ActPlan]] = {
    Selection: _plan_deliveries,
    OneGate: _plan_gate,
    OneSource: _plan_sweep,
    OneCommand: _plan_turn,
    KindsOfRows: _plan_prune,
    OneEntity: _plan_erase,
    Rejections: _plan_readmit,
}
