"""The next thing to do about each problem of an overview: a command to copy, and the act or list of the page. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

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
MOST_NAMED = 3
"""So many routes or gates of one problem have a command of their own, at a terminal."""

Verb = Literal["run", "pause", "resume", "dead", "cancel", "retry", "sweep"]
"""Command of `relay` that helps: `run` starts a relay, `pause` and `dead` list, and the others change something."""


class NextStep(msgspec.Struct, frozen=True):
    """A problem, and the command for it."""

    text: str
    command: str
    verb: Verb
    fields: Mapping[str, str] = {}
    """Fields of the selection that the command is about, as `relay_command.selection` names them."""
    since: datetime | None = None
    why: str | None = None


def next_steps(seen: Overview, findings: Sequence[Trouble], most_named: int = MOST_NAMED) -> tuple[NextStep, ...]:
    """Return what to do, the most urgent first; empty when nothing needs a person.

    Args:
        seen: the state of everything.
        findings: results of the health check at the same time.
        most_named: largest number of routes or gates with the same problem that have a step each.
    """
    return (
        *_about_relays(findings),
        *_about_gates([gate for gate in seen.gates if gate.state not in _END_SOON], most_named),
        *_about_routes(seen, most_named),
        *_about_commands(seen),
        *_about_sweeps(seen),
    )


def _about_relays(findings: Sequence[Trouble]) -> Iterator[NextStep]:
    if any(trouble.finding == "no_relay" for trouble in findings):
        yield NextStep("no relay runs: start one", "relay run", "run")
    if any(trouble.finding == "crash_loop" for trouble in findings):
        yield NextStep("relays die soon after they start: start one here, and read why", "relay run --verbose", "run")


def _about_gates(gates: Sequence[HeldGate], most_named: int) -> Iterator[NextStep]:
    yield from map(_about_gate, gates[:most_named])
    if len(gates) > most_named:
        text = f"{counted(len(gates) - most_named, 'more gate')} let nothing through: list them all"
        yield NextStep(text, "relay pause", "pause")


def _about_gate(gate: HeldGate) -> NextStep:
    name = gate.title
    if gate.state == "paused":
        text = f"{name} is paused: resume it to deliver again"
    elif gate.state == "retired":
        text = f"{name} answered that it is gone (410): resume it once it is back"
    else:
        text = f"{name} is not called, its circuit breaker is open: resume it once it works again"
    why = ": ".join(part for part in (gate.by, gate.why) if part) or None
    return NextStep(text, resume_command(gate.kind, gate.name), "resume", gate.fields, gate.since, why)


def state_of(route: RouteState, findings: Iterable[Trouble]) -> str:
    """Return a route's state in a word: the worst that is true of it."""
    if any(trouble.finding == "stuck" and trouble.route == route.route for trouble in findings):
        return "stuck"
    if any(trouble.finding == "failing" and trouble.route == route.route for trouble in findings):
        return "failing"
    if route.held_back_by:
        return "held back"
    states = (
        ("blocked", route.blocked),
        ("busy", route.ready + route.in_flight + route.received),
        ("retrying", route.retrying),
        ("dead", route.dead),
        ("waiting", route.waiting),
    )
    return next((name for name, number in states if number), "ok")


class _Problem(msgspec.Struct, frozen=True):
    """A problem of deliveries that several routes may have."""

    count: str
    """Field of a route."""
    one: str
    many: str
    verb: Verb
    of_all: str = ""
    """Option that names all routes."""
    more: str = ""

    def steps(self, routes: Sequence[RouteState], most_named: int) -> Iterator[NextStep]:
        """Yield a step for each route, or one for all where there are many."""
        if len(routes) > most_named:
            number = sum(getattr(route, self.count) for route in routes)
            text = f"{number:,} {self.many}, on {len(routes)} routes"
            fields = {"everything": "true"} if self.of_all else {}
            yield NextStep(text, f"relay {self.verb}{self.of_all}{self.more}", self.verb, fields)
            return
        for route in routes:
            number = getattr(route, self.count)
            or_more = " or more" if self.count in route.at_least else ""
            text = f"route {route.route}: {number:,}{or_more} {self.one if number == 1 else self.many}"
            command = f"relay {self.verb} {_words('--route', route.route)}{self.more}"
            yield NextStep(text, command, self.verb, {"route": route.route})


def _about_routes(seen: Overview, most_named: int) -> Iterator[NextStep]:
    blocked = [route for route in seen.routes if route.blocked]
    yield from _Problem("blocked", "lane is blocked", "lanes are blocked", "dead").steps(blocked, most_named)
    dead = [route for route in seen.routes if route.dead]
    yield from _Problem("dead", "delivery is dead", "deliveries are dead", "dead").steps(dead, most_named)
    for route in seen.routes:
        if not route.is_configured and route.open:
            text = (
                f"{counted(route.open, 'delivery')} of route {route.route}, which inbox.toml lacks: end them for good"
            )
            command = f"relay cancel {_words('--route', route.route)}{_REASON}"
            yield NextStep(text, command, "cancel", {"route": route.route})
    later = [route for route in seen.routes if _waits_long(route, seen)]
    first = min((route.next_due_at for route in later if route.next_due_at), default=seen.at)
    when = f"the first is due {relative(first, seen.at)}"
    waits = _Problem(
        "retrying", f"attempt waits, due {relative(first, seen.at)}", f"attempts wait, {when}", "retry", " --all",
        _REASON,
    )  # fmt: skip
    yield from waits.steps(later, most_named)


def _waits_long(route: RouteState, seen: Overview) -> bool:
    """Tell whether the route's retries are far away, and no gate holds them back in any case."""
    return route.next_due_at is not None and route.next_due_at > seen.at + _SOON and not route.held_back_by


def _about_commands(seen: Overview) -> Iterator[NextStep]:
    for command in seen.commands:
        if command["state"] in {"asked", "running"} and not any(each.health == "running" for each in seen.relays):
            yield NextStep(f"command {command['id']} ({command['kind']}) waits for a relay", "relay run", "run")
            return


def _about_sweeps(seen: Overview) -> Iterator[NextStep]:
    failed = {row["source"]: row for row in seen.sweeps if row["error"]}
    for source, row in sorted(failed.items()):
        yield NextStep(
            f"source {source} can't be swept: try it now",
            f"relay sweep {_words('--source', source)}",
            "sweep",
            {"source": source},
            row["swept_at"],
            row["error"],
        )


def _words(*words: str) -> str:
    return shlex.join(words)
