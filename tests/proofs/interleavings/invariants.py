"""Invariants that hold after any order. Each promise yields the evidence against it: nothing is good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from relay.delivery import facts
from relay.store.leases import Claimed
from tests.helpers.agreement import Key, disagreements
from tests.helpers.reading import Row
from tests.helpers.relaying import POLICIES
from tests.proofs.interleavings.stage import Operation, Order, leases

Lane = tuple[str, str]


def kept(order: Order) -> None:
    """Hold every promise against what came of an order.

    Raises:
        AssertionError: a line for each that is broken.
    """
    found = {broken: list(evidence(order)) for broken, evidence in INVARIANTS.items()}
    lines = [f"{broken}: {evidence}" for broken, evidence in found.items() if evidence]
    assert not lines, "\n".join(lines)


def told(order: Order) -> Iterator[str]:
    """Yield the result that each operation got, in words."""
    for name, result in order.results.items():
        yield f"{name}: {_WORDS[order.operations[name].kind](result)}"


def _listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words)) or "nothing"


_WORDS: dict[str, Callable[[Any], str]] = {
    "sequence": str,
    "claim": lambda claimed: _listed(delivery.seq for delivery in claimed),
    "renew": lambda renewed: _listed(sorted(seq for seq, _, _ in renewed)),
    "give back": str,
    "record": lambda recorded: _listed("refused" if r.fact is None else facts.kind_of(r.fact) for r in recorded),
    "reap": lambda reaped: _listed(facts.kind_of(fact) for _, _, fact in reaped),
    "rebuild": lambda mended: _listed(found.finding for found in mended),
    "receive": lambda seqs: _listed("stored" if seq is not None else "known" for seq in seqs),
}


# The tables and the log.


def _errors(order: Order) -> Iterator[object]:
    yield from order.errors.items()


def _disagreements(order: Order) -> Iterator[object]:
    yield from disagreements(order.arrived, order.after.delivery_log, order.after.open_delivery)


def _needless_waits(order: Order) -> Iterator[object]:
    waiting = Counter(_lane(row) for row in order.after.open_delivery if row["state"] == "waiting")
    yield from (lane for lane, n in waiting.items() if n > 1 and POLICIES[lane[0]].ordering == "latest")


def _facts_nobody_was_told(order: Order) -> Iterator[object]:
    """Require that the log holds each fact that operations report, once, and no other: a refused result changes nothing."""
    told = Counter(
        [(r.delivery.seq, r.delivery.route, facts.kind_of(r.fact)) for r in _recorded(order)]
        + [(seq, route, facts.kind_of(fact)) for _, _, reaped in _done(order, "reap") for seq, route, fact in reaped]
    )
    written = Counter((row["seq"], row["route"], row["kind"]) for row in _new_facts(order))
    of_attempts = Counter({fact: n for fact, n in written.items() if fact[2] not in {"superseded", "took_over"}})
    if told != of_attempts:
        yield told, of_attempts


def _wrong_memory(order: Order) -> Iterator[object]:
    """The table `lane` remembers what was delivered, the last by its own time."""
    last = {_lane(row): (row["occurred_at"], row["seq"]) for row in order.before.lane}
    for delivery in (r.delivery for r in _recorded(order) if isinstance(r.fact, facts.DeliveredFact)):
        lane = (delivery.route, delivery.lane)
        last[lane] = max((delivery.occurred_at, delivery.seq), last.get(lane, (delivery.occurred_at, delivery.seq)))
    found = {_lane(row): (row["occurred_at"], row["seq"]) for row in order.after.lane}
    if last != found:
        yield last, found


# Leases.


def _trusted(order: Order) -> dict[Claimed, Lane]:
    """The leases under which somebody may go on working, by what each relay was told."""
    trusted = {
        (row["seq"], row["route"], row["lease_token"]): _lane(row)
        for row in order.before.open_delivery
        if row["state"] == "in_flight" and row["lease_until"] > order.now
    }
    for _, _, claimed in _done(order, "claim"):
        trusted |= {lease: (d.route, d.lane) for d, lease in zip(claimed, leases(claimed), strict=True)}
    for _, operation, renewed in _done(order, "renew"):
        held = zip(operation.deliveries, leases(operation.deliveries), strict=True)
        trusted |= {lease: (d.route, d.lane) for d, lease in held if lease in renewed}
    for kind in ("record", "give back"):
        for _, operation, _ in _done(order, kind):
            for lease in leases(operation.deliveries):
                trusted.pop(lease, None)
    return trusted


def _shared_lanes(order: Order) -> Iterator[object]:
    yield from (lane for lane, n in Counter(_trusted(order).values()).items() if n > 1)


def _lost_leases(order: Order) -> Iterator[object]:
    held = {
        (row["seq"], row["route"], row["lease_token"])
        for row in order.after.open_delivery
        if row["state"] == "in_flight" and row["lease_until"] > order.now
    }
    yield from _trusted(order).keys() - held


# Order.


def _overtaken(order: Order) -> Iterator[object]:
    """Earlier events that had their place in the lane before a later one was claimed for its first attempt."""
    for name, _, claimed in _done(order, "claim"):
        unplaced = _without_a_place(order, order.steps.index(name))
        for delivery in claimed:
            if delivery.attempt > 1:
                continue
            for row in order.after.open_delivery:
                if (
                    _lane(row) == (delivery.route, delivery.lane)
                    and (row["occurred_at"], row["seq"]) < (delivery.occurred_at, delivery.seq)
                    and row["state"] != "dead"
                    and (row["seq"], row["route"]) not in unplaced
                ):
                    yield name, delivery.seq, row


def _without_a_place(order: Order, step: int) -> set[Key]:
    """Return what had arrived but was not sequenced before this step. Sequencing follows the order of arrival."""
    placed = sum(result for name, _, result in _done(order, "sequence") if _last(order, name) < step)
    received = sorted(key for key, row in _by_key(order.before.open_delivery).items() if row["state"] == "received")
    return set(received[placed:])


def _superseded_by_older(order: Order) -> Iterator[object]:
    rows = _by_key(order.before.open_delivery)
    for fact in _new_facts(order):
        if fact["kind"] == "superseded":
            old, new = rows[fact["seq"], fact["route"]], rows[fact["detail"]["by"], fact["route"]]
            if _lane(old) != _lane(new) or (old["occurred_at"], old["seq"]) > (new["occurred_at"], new["seq"]):
                yield old, new


INVARIANTS: dict[str, Callable[[Order], Iterator[object]]] = {
    "an operation failed": _errors,
    "the log and the table disagree": _disagreements,
    "more than one waits": _needless_waits,
    "the log has what nobody was told": _facts_nobody_was_told,
    "the lane remembers something else": _wrong_memory,
    "two trust a lease of one lane": _shared_lanes,
    "a lease that is trusted is not there": _lost_leases,
    "a later one was claimed first": _overtaken,
    "superseded by an older one": _superseded_by_older,
}


def _done(order: Order, kind: str) -> Iterator[tuple[str, Operation, Any]]:
    for name, result in order.results.items():
        if order.operations[name].kind == kind:
            yield name, order.operations[name], result


def _recorded(order: Order) -> list[Any]:
    return [one for _, _, result in _done(order, "record") for one in result if one.fact is not None]


def _new_facts(order: Order) -> list[Row]:
    known = {row["id"] for row in order.before.delivery_log}
    return [row for row in order.after.delivery_log if row["id"] not in known]


def _by_key(rows: list[Row]) -> dict[Key, Row]:
    return {(row["seq"], row["route"]): row for row in rows}


def _lane(row: Row) -> Lane:
    return (row["route"], row["lane"])


def _last(order: Order, name: str) -> int:
    return max(number for number, step in enumerate(order.steps) if step == name)
