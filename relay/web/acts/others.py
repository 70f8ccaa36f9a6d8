"""Plans of acts that are about no delivery: pause, resume, sweep, prune, erase and readmit."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import text

from inbox.config.mistakes import nearest
from inbox.db import erasure
from inbox.db.dialect import rows_param
from inbox.db.erasure import ErasurePlan, ErasureSubject, held_up_by
from inbox.db.reads import Row, has_source
from inbox.errors import BadFilter, UnusableCommand
from inbox.events.states import OPEN_STATES
from inbox.events.timestamps import rfc3339
from relay.delivery.gates import Gate
from relay.store import gates, retention
from relay.store.operator import readmit
from relay.store.operator.tasks import types_of
from relay.store.retention import STEPS
from relay.store.transaction import Transaction
from relay.web.acts.forms import Given
from relay.web.acts.plan import ActPlan, PlanFigure, frozen, sealed
from relay.web.reading import MOST_COUNTED, Reading

_NEWEST_OF_ENTITY = 5000
"""Events of an entity among which open deliveries are counted."""
_OF_NEWEST = f"The numbers are of its {erasure.COUNTED_EVENTS:,} newest events. The erasure takes all, unless one of them is open."
_READ_AGAIN = 40
"""Rejected requests that a plan reads."""


def plan_gate(reading: Reading, kind: str, given: Given) -> ActPlan:
    """Plan a pause, or its end.

    Raises:
        BadFilter: it names no gate.
    """
    gate = Gate(**msgspec.structs.asdict(given.asked))
    if mistake := gates.mistake_in(reading.database, gate, kind, reading.config):
        raise BadFilter(mistake)
    held = next((row for row in gates.held_back(reading.database) if (row["kind"], row["name"]) == gate.key), None)
    with reading.database.read() as transaction:
        behind = _open_behind(transaction, reading, gate)
    state = "open" if held is None else "paused" if held["paused_at"] is not None else f"breaker {held['breaker']}"
    if kind == "pause":
        obstacle = f"it is paused already, by {held['paused_by']}" if state == "paused" and held else None
        consequences = (
            "Nothing behind it is delivered until somebody resumes it. Webhooks are still accepted, and wait.",
            "Calls that run now finish. No attempt is used up.",
        )
    else:
        obstacle = "nothing holds it back" if held is None else None
        consequences = (
            "The pause ends, and its circuit breaker closes; deliveries go on in their order.",
            "Attempts that failed before wait until they are due; a retry makes them due at once.",
        )
    figure = PlanFigure("open deliveries behind it", behind, "counted up to 500" if behind > MOST_COUNTED else "")
    made = ActPlan(
        kind=kind,
        selection=msgspec.to_builtins(gate),
        figures=(figure,),
        consequences=(*_held(held), *consequences),
        obstacle=obstacle,
    )
    return sealed(made, state)


def _held(held: Row | None) -> Sequence[str]:
    if held is None:
        return ()
    if held["paused_at"] is not None:
        return (f"{held['paused_by']} paused it on {rfc3339(held['paused_at'], 'seconds')}: {held['pause_reason']}",)
    if held["breaker"] != "closed":
        return (f"Its circuit breaker is {held['breaker']}: {held['breaker_cause']}",)
    return (f"It is held until {rfc3339(held['held_until'], 'seconds')}: {held['hold_reason']}",)


def _open_behind(transaction: Transaction, reading: Reading, gate: Gate) -> int:
    """Count the open deliveries that pass a gate, up to one more than `MOST_COUNTED`."""
    if gate.entity_id is not None:
        entity = {"source": gate.source, "type": gate.entity_type, "id": gate.entity_id}
        return int(transaction.execute(_OF_ENTITY, **entity, most=MOST_COUNTED + 1)[0].count)
    routes = sorted(name for name, policy in reading.policies.items() if gate.key in policy.gates)
    names = transaction.sql.rows("routes", name="text")
    states = " UNION ALL ".join(  # each state has an index of its own
        f"SELECT * FROM (SELECT 1 AS one FROM open_delivery o WHERE o.state = '{state}' AND o.route IN"
        f" (SELECT routes.name FROM {names}) LIMIT :most) AS of_{state}"
        for state in OPEN_STATES
    )
    statement = text(f"SELECT count(*) AS count FROM (SELECT 1 FROM ({states}) AS found LIMIT :most) AS counted")
    given = rows_param({"name": name} for name in routes)
    return int(transaction.execute(statement, routes=given, most=MOST_COUNTED + 1)[0].count)


_OF_ENTITY = text(f"""
SELECT count(*) AS count FROM (
    SELECT 1 FROM (
        SELECT i.seq FROM inbox i WHERE i.source = :source AND i.entity_type = :type AND i.entity_id = :id
        ORDER BY i.seq DESC LIMIT {_NEWEST_OF_ENTITY}) AS newest
    JOIN open_delivery o ON o.seq = newest.seq
    LIMIT :most) AS counted
""")


def plan_sweep(reading: Reading, kind: str, given: Given) -> ActPlan:
    """Plan a sweep.

    Raises:
        BadFilter: the source has no such sweep.
    """
    try:
        types = types_of(reading.config, given.asked.source, given.asked.entity_type)
    except UnusableCommand as error:
        raise BadFilter(str(error)) from None
    source, of_types = given.asked.source, ", ".join(types)
    consequences = (
        f"A relay asks {source} for changes of {of_types} since the last sweep, and compares them with the inbox.",
        "Changes that no webhook reported become events, and are delivered in their order.",
    )
    selection = msgspec.to_builtins(given.asked)
    return sealed(ActPlan(kind=kind, selection=selection, consequences=consequences), list(types))


def plan_prune(reading: Reading, kind: str, given: Given) -> ActPlan:
    """Plan a round of retention; what expires meanwhile goes, too.

    Raises:
        BadFilter: it names an unknown kind of rows.
    """
    wanted = given.asked.kinds or ()
    for name in wanted:
        if name not in STEPS:
            raise BadFilter(f"there is no kind of [retention] {name!r}; {nearest(name, STEPS)}", field="kinds")
    with reading.database.read() as transaction:
        plans = retention.plan(transaction, reading.config.retention, transaction.now())
    figures = tuple(
        PlanFigure(each.kind, each.rows, f"{'' if each.are_all else 'or more; '}older than {each.age}")
        for each in plans
        if not wanted or each.kind in wanted
    )
    made = ActPlan(
        kind=kind,
        selection=msgspec.to_builtins(given.asked),
        figures=figures,
        consequences=(
            "A relay deletes the expired rows of every kind for good, as it does by itself."
            + (" The answer counts the chosen kinds." if wanted else ""),
        ),
    )
    return sealed(made, [[each.kind, each.age] for each in plans])


def plan_erase(reading: Reading, kind: str, given: Given) -> ActPlan:
    """Plan the erasure of an entity.

    Raises:
        BadFilter: there is no such source.
    """
    subject = ErasureSubject(**msgspec.structs.asdict(given.asked))
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
        consequences=("Nothing brings it back. The reason must not name the entity, as it is kept for good.",)
        + (
            ()
            if planned.is_whole
            else ("Only a part of the rejected requests was searched; the erasure searches all.",)
        )
        + ((_OF_NEWEST,) if planned.has_more_events else ()),
        obstacle=_erasure_obstacle(planned),
    )
    return sealed(made, [[each.name, each.count] for each in figures], is_exact=True)


def _erasure_obstacle(planned: ErasurePlan) -> str | None:
    if planned.open:
        return held_up_by(planned.open)
    if planned.open_commands:
        numbers = ", ".join(map(str, planned.open_commands))
        return f"commands that name the entity are still at work ({numbers}); ask again when they have ended"
    if planned.is_empty and not planned.erased_before:
        return "there is nothing to erase: type and id are compared letter by letter"
    return None


def plan_readmit(reading: Reading, kind: str, given: Given) -> ActPlan:
    """Plan a readmission: the first requests are read again by the present configuration."""
    with reading.database.read() as transaction:
        now = transaction.now()
    as_of = now if given.as_of is None else min(given.as_of, now)
    needs_everything = given.asked.is_empty
    chosen = frozen(given.asked, as_of, everything=needs_everything)
    selected = readmit.filter_of(chosen)
    planned = readmit.plan(reading.database, reading.config, selected, most=_READ_AGAIN)
    is_whole = planned.matching <= readmit.MOST_COUNTED
    made = ActPlan(
        kind=kind,
        selection=msgspec.to_builtins(chosen),
        count=min(planned.matching, readmit.MOST_COUNTED),
        is_whole=is_whole,
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
        needs_everything=needs_everything,
        as_of=rfc3339(as_of),
    )
    return sealed(made, None)
