"""The next thing to do about each problem that `relay status` shows, as commands to copy. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import timedelta

import msgspec

from inbox.cli.wording import counted, relative
from relay.delivery.gates import resume_command
from relay.store.overview import HeldGate, Overview
from relay.store.route_states import RouteState
from relay.store.stuck_check import Trouble

_SOON = timedelta(minutes=1)
"""A retry that is due by then needs nobody."""
_END_SOON = frozenset({"limited", "held"})
"""States of a gate that end by themselves, as the endpoint or its rate wants it."""
_REASON = " --reason '…'"
_MOST_NAMED = 3
"""So many routes or gates of one problem have a command of their own."""


class NextStep(msgspec.Struct, frozen=True):
    """A problem, and the command for it."""

    text: str
    command: str


def next_steps(seen: Overview, findings: Sequence[Trouble]) -> tuple[NextStep, ...]:
    """Return what to do, the most urgent first; empty when nothing needs a person."""
    return (
        *_about_relays(findings),
        *_about_gates([gate for gate in seen.gates if gate.state not in _END_SOON]),
        *_about_routes(seen),
        *_about_commands(seen),
        *_about_sweeps(seen),
    )


def _about_relays(findings: Sequence[Trouble]) -> Iterator[NextStep]:
    if any(trouble.finding == "no_relay" for trouble in findings):
        yield NextStep("no relay runs: start one", "relay run")
    if any(trouble.finding == "crash_loop" for trouble in findings):
        yield NextStep("relays die soon after they start: start one here, and read why", "relay run --verbose")


def _about_gates(gates: Sequence[HeldGate]) -> Iterator[NextStep]:
    yield from map(_about_gate, gates[:_MOST_NAMED])
    if len(gates) > _MOST_NAMED:
        text = f"{counted(len(gates) - _MOST_NAMED, 'more gate')} let nothing through: list them all"
        yield NextStep(text, "relay pause")


def _about_gate(gate: HeldGate) -> NextStep:
    name = gate.title
    if gate.state == "paused":
        text = f"{name} is paused: let its deliveries through again"
    elif gate.state == "retired":
        text = f"{name} is gone for good: call it again, when it is back"
    else:
        text = f"{name} is not called for now: call it at once, when it is well again"
    return NextStep(text, resume_command(gate.kind, gate.name))


class _Problem(msgspec.Struct, frozen=True):
    """A problem of deliveries that several routes may have."""

    count: str
    """Field of a route."""
    one: str
    many: str
    command: str
    of_all: str = ""
    """Option that names all routes."""
    more: str = ""

    def steps(self, routes: Sequence[RouteState]) -> Iterator[NextStep]:
        """Yield a step for each route, or one for all where there are many."""
        if len(routes) > _MOST_NAMED:
            number = sum(getattr(route, self.count) for route in routes)
            text = f"{number:,} {self.many}, on {len(routes)} routes"
            yield NextStep(text, f"{self.command}{self.of_all}{self.more}")
            return
        for route in routes:
            number = getattr(route, self.count)
            or_more = " or more" if self.count in route.at_least else ""
            text = f"route {route.route}: {number:,}{or_more} {self.one if number == 1 else self.many}"
            yield NextStep(text, f"{self.command} {_words('--route', route.route)}{self.more}")


def _about_routes(seen: Overview) -> Iterator[NextStep]:
    blocked = [route for route in seen.routes if route.blocked]
    yield from _Problem("blocked", "lane is blocked", "lanes are blocked", "relay dead").steps(blocked)
    dead = [route for route in seen.routes if route.dead]
    yield from _Problem("dead", "delivery is dead", "deliveries are dead", "relay dead").steps(dead)
    for route in seen.routes:
        if not route.is_configured and route.open:
            text = (
                f"{counted(route.open, 'delivery')} of route {route.route}, which inbox.toml lacks: end them for good"
            )
            yield NextStep(text, f"relay cancel {_words('--route', route.route)}{_REASON}")
    later = [route for route in seen.routes if _waits_long(route, seen)]
    first = min((route.next_due_at for route in later if route.next_due_at), default=seen.at)
    when = f"the first is due {relative(first, seen.at)}"
    waits = _Problem(
        "retrying", f"attempt waits, due {relative(first, seen.at)}", f"attempts wait, {when}", "relay retry", " --all",
        _REASON,
    )  # fmt: skip
    yield from waits.steps(later)


def _waits_long(route: RouteState, seen: Overview) -> bool:
    """Tell whether the route's retries are far away, and no gate holds them back in any case."""
    return route.next_due_at is not None and route.next_due_at > seen.at + _SOON and not route.held_back_by


def _about_commands(seen: Overview) -> Iterator[NextStep]:
    for command in seen.commands:
        if command["state"] in {"asked", "running"} and not any(each.health == "running" for each in seen.relays):
            yield NextStep(f"command {command['id']} ({command['kind']}) waits for a relay", "relay run")
            return


def _about_sweeps(seen: Overview) -> Iterator[NextStep]:
    for source in sorted({row["source"] for row in seen.sweeps if row["error"]}):
        yield NextStep(f"source {source} can't be swept: try it now", f"relay sweep {_words('--source', source)}")


def _words(*words: str) -> str:
    return shlex.join(words)
