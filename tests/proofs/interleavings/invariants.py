"""Invariants that hold after any order: those of the model, and what more is known of an order than of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from relay.delivery import facts
from relay.delivery.lifecycle import State
from tests.proofs.interleavings.stage import Order
from tests.proofs.model.history import Key
from tests.proofs.model.invariants import broken


def kept(order: Order) -> None:
    """Hold every promise against what came of an order.

    Raises:
        AssertionError: a line for each that is broken.
    """
    found = {
        "an operation failed": list(order.errors.items()),
        "more than one waits": needless_waits(order),
        "a later one was claimed first": list(overtaken(order)),
        **broken(order.snapshot),
    }
    lines = [f"{kind}: {evidence}" for kind, evidence in found.items() if evidence]
    assert not lines, "\n".join(lines)


def told(order: Order) -> Iterator[str]:
    """Yield the result that each operation got, in words."""
    for name, result in order.results.items():
        yield f"{name}: {_WORDS[order.operations[name].name](result)}"


def _listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words)) or "nothing"


def _claimed(found: Any) -> str:  # noqa: ANN401  # gates and deliveries
    return _listed(delivery.seq for delivery in found[1])


_WORDS: dict[str, Callable[[Any], str]] = {
    "sequence": str,
    "claim": _claimed,
    "claim_suspect": _claimed,
    "renew": lambda renewed: _listed(sorted(seq for seq, _, _ in renewed)),
    "give_back": str,
    "record": lambda recorded: _listed("refused" if r.fact is None else facts.kind_of(r.fact) for r in recorded),
    "reap": lambda reaped: _listed(facts.kind_of(fact) for _, _, fact in reaped),
    "rebuild": lambda done: _listed(found.finding for chunk in done for found in chunk.differences),
    "receive": lambda seqs: _listed("stored" if seq is not None else "known" for seq in seqs),
}


def needless_waits(order: Order) -> list[object]:
    """In `latest` the newest one waits alone."""
    rows = order.snapshot.after.values()
    waiting = Counter(row.lane for row in rows if (row.route, row.state) == ("latest", State.WAITING))
    return [lane for lane, number in waiting.items() if number > 1]


def overtaken(order: Order) -> Iterator[object]:
    """Earlier events that had their place in the lane before a later one was claimed for its first attempt."""
    for name, operation in order.operations.items():
        if not operation.name.startswith("claim") or name in order.errors:
            continue
        unplaced = _without_a_place(order, order.steps.index(name))
        for delivery in order.results[name][1]:
            for key, row in order.snapshot.after.items():
                if (
                    delivery.attempt == 1
                    and (row.route, row.lane) == (delivery.route, delivery.lane)
                    and row.order < (delivery.occurred_at, delivery.seq)
                    and row.state is not State.DEAD
                    and key not in unplaced
                ):
                    yield name, delivery.seq, row


def _without_a_place(order: Order, step: int) -> set[Key]:
    """Return what had arrived but was not sequenced before this step. Sequencing follows the order of arrival."""
    last = {name: number for number, name in enumerate(order.steps)}
    placed = sum(
        result
        for name, result in order.results.items()
        if order.operations[name].name == "sequence" and last[name] < step
    )
    received = sorted(key for key, row in order.snapshot.before.items() if row.state is State.RECEIVED)
    return set(received[placed:])
