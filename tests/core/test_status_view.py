"""`relay status` for people: lines that fit, the words of states, and the next commands. Pure."""

from __future__ import annotations

import shlex
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import typer
from rich.cells import cell_len

from relay.cli.main import app
from relay.cli.status import lines_of, next_of
from relay.delivery.gates import entity_key
from relay.findings import Finding, findings, state_of
from relay.store.overview import FiringAlert, HeldGate, Overview, RelayState
from relay.store.route_states import RouteState
from tests.helpers.hostile import HOSTILE, harm_of
from tests.helpers.storing import START

RUNNING = RelayState("r1", "host.example.com", 7, "1.0", "running", START, START, 1.0, 3, {})
QUIET = RouteState("crm", is_configured=True)
NO_RELAY = Finding("no_relay", "critical", "no relay has sent a heartbeat for 15 s", remedy="relay run")


def seen(**parts: Any) -> Overview:  # noqa: ANN401  # fields of Overview
    empty: dict[str, Any] = dict.fromkeys(("routes", "gates", "relays", "alerts", "commands", "sweeps"), ())
    return Overview(START, **{**empty, "relays": (RUNNING,), "routes": (QUIET,), **parts})


def shown(overview: Overview, *checked: Finding, width: int | None = 80) -> list[str]:
    return [line.plain for line in lines_of(overview, checked, findings(overview, checked), width=width)]


def crm(**counts: Any) -> RouteState:  # noqa: ANN401  # fields of RouteState
    return msgspec.structs.replace(QUIET, **counts)


BUSY = crm(open=10_021, ready=10_000, dead=2, blocked=1, retrying=18, at_least=("ready",), in_per_minute=1234.5)
PAUSED = HeldGate("destination", "crm", "paused", "maintenance " * 20, "kim", START, None, ("crm",))
COMMAND = {
    "id": 7, "kind": "replay", "state": "failed", "affected": 0, "failed": 0, "asked_at": START, "asked_by": "kim",
    "answer": "no " * 60,
}  # fmt: skip
SWEEP = {"source": "trivore", "entity_type": "USER", "swept_at": START, "last_missed": 0, "error": "503 " * 40}
EVERYTHING = seen(
    routes=(BUSY, msgspec.structs.replace(BUSY, route="a-route-with-a-name-of-more-than-forty-characters")),
    gates=(PAUSED,),
    alerts=(FiringAlert("backlog_old", "crm", START, "route crm is behind: seq 7 has waited for 900 s " * 3),),
    commands=(COMMAND,),
    sweeps=(SWEEP,),
)


def test_where_all_is_well_it_is_a_few_lines() -> None:
    assert shown(seen()) == [
        "well: 1 relay running, nothing open",
        "",
        "Routes",
        "  route  state",
        "  crm    ok",
        "",
        "Relays",
        "  host              pid  health   heartbeat  in flight  started  version",
        "  host.example.com    7  running  now                3  now      1.0",
    ]


def test_it_is_not_well_while_somebody_has_to_do_something() -> None:
    overview = seen(routes=(crm(open=2, dead=2),))
    assert findings(overview, ())
    assert shown(overview)[0] == "not well: 1 relay running, 2 open"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_but_a_command_to_copy(width: int) -> None:
    trouble = Finding("step_failed", "critical", "step claim fails: " + "ValueError: year is out of range " * 9)
    lines = shown(EVERYTHING, trouble, width=width)
    wide = [line for line in lines if cell_len(line) > width and not line.startswith("    relay ")]
    assert wide == []
    told = " ".join(" ".join(lines).split())
    assert " ".join(trouble.sentence.split()) in told, "a sentence breaks between words, and is whole"


def test_elsewhere_values_are_whole_and_times_absolute() -> None:
    text = "\n".join(shown(EVERYTHING, width=None))
    assert ("maintenance " * 20).strip() in text
    assert "2026-01-01T00:00:00.000Z" in text
    assert "10000+" in text


def test_a_count_that_ended_early_says_so() -> None:
    (line,) = (line for line in shown(EVERYTHING, width=200) if line.startswith("  crm "))
    assert "10,021+" in line
    assert "10,000+" in line
    assert shown(EVERYTHING)[0].startswith("not well: 1 relay running, 20,042 or more open")


def test_of_very_many_a_terminal_gets_a_few_and_their_number() -> None:
    routes = tuple(crm(route=f"r{n:03}", open=int(n < 30), dead=int(n < 30)) for n in range(100))
    gates = tuple(msgspec.structs.replace(PAUSED, name=f"d{n}", why="maintenance") for n in range(5000))
    alerts = tuple(FiringAlert("backlog_old", "crm", START, f"behind {n}") for n in range(100))
    overview = seen(routes=routes, gates=gates, alerts=alerts)
    lines = shown(overview)
    assert len(lines) < 140
    assert [line for line in lines if line.startswith("  and ")] == [
        "  and 70 routes with nothing open", "  and 4,980 more", "  and 80 more"
    ]  # fmt: skip
    assert steps(overview)[-2:] == ["relay resume --destination d2 --reason '…'", "relay status --wide"]
    assert "relay dead" in steps(overview)
    assert len(shown(overview, width=None)) > 5000, "a program gets all"


def test_hostile_values_harm_no_terminal() -> None:
    row = {**COMMAND, "answer": HOSTILE, "asked_by": HOSTILE, "kind": HOSTILE}
    overview = seen(
        routes=(crm(route=HOSTILE, dead=1, open=1, is_configured=False),),
        gates=(msgspec.structs.replace(PAUSED, name=HOSTILE, why=HOSTILE),),
        alerts=(FiringAlert("backlog_old", HOSTILE, START, HOSTILE),),
        commands=(row,),
        sweeps=({**SWEEP, "source": HOSTILE, "error": HOSTILE},),
    )
    for width in (80, None):
        lines = shown(overview, Finding("step_failed", "critical", HOSTILE), width=width)
        assert [line for line in lines if harm_of(line)] == []


@pytest.mark.parametrize(
    ("route", "state"),
    [
        (QUIET, "ok"),
        (crm(dead=2), "dead"),
        (crm(dead=2, retrying=1), "retrying"),
        (crm(retrying=1, ready=1), "busy"),
        (crm(in_flight=1), "busy"),
        (crm(blocked=1, ready=1), "blocked"),
        (crm(blocked=1, held_back_by=("destination crm",)), "held back"),
    ],
)
def test_the_state_of_a_route_is_the_worst_of_it(route: RouteState, state: str) -> None:
    assert state_of(route, ()) == state
    assert state_of(route, [Finding("stuck", "critical", "", "crm")]) == "stuck"


def steps(overview: Overview, *checked: Finding) -> list[str]:
    return [each.remedy for each in next_of(findings(overview, checked))]


def held(kind: str, name: str, state: str = "paused") -> Overview:
    return seen(gates=(msgspec.structs.replace(PAUSED, kind=kind, name=name, state=state),))


LATER = START + timedelta(hours=2)
MANY = tuple(crm(route=f"r{n}", dead=2, retrying=1, next_due_at=LATER) for n in range(4))


@pytest.mark.parametrize(
    ("overview", "checked", "commands"),
    [
        (seen(), (), []),
        (seen(), (NO_RELAY,), ["relay run"]),
        (held("destination", "crm"), (), ["relay resume --destination crm --reason '…'"]),
        (held("api", "identity", "open"), (), ["relay resume --api identity --reason '…'"]),
        (held("destination", "crm", "retired"), (), ["relay resume --destination crm --reason '…'"]),
        (held("destination", "crm", "limited"), (), []),
        (held("destination", "crm", "held"), (), []),
        (
            held(*entity_key("trivore", "USER", "u 1|2")),
            (),
            ["relay resume --source trivore --entity 'USER/u 1|2' --reason '…'"],
        ),
        (seen(routes=(crm(dead=2),)), (), ["relay dead --route crm"]),
        (seen(routes=(crm(retrying=1, next_due_at=LATER),)), (), ["relay retry --route crm --reason '…'"]),
        (seen(routes=(crm(retrying=1, next_due_at=START + timedelta(seconds=30)),)), (), []),
        (seen(routes=(crm(retrying=1, next_due_at=LATER, held_back_by=("destination crm",)),)), (), []),
        (
            seen(routes=MANY),
            (),
            [
                *(f"relay dead --route r{n}" for n in range(3)),
                "relay dead",
                *(f"relay retry --route r{n} --reason '…'" for n in range(3)),
                "relay retry --all --reason '…'",
            ],
        ),
        (seen(routes=(crm(open=3, is_configured=False),)), (), ["relay cancel --route crm --reason '…'"]),
        (
            seen(alerts=(FiringAlert("sweep_failed", "trivore USER", START, "503"),)),
            (),
            ["relay sweep --source trivore"],
        ),
    ],
)
def test_each_problem_has_its_command(overview: Overview, checked: tuple[Finding, ...], commands: list[str]) -> None:
    assert steps(overview, *checked) == commands
    for command in commands:
        understood(command)


@pytest.mark.parametrize(
    ("state", "days", "level"),
    [
        ("paused", 2.9, "information"),
        ("paused", 3.1, "warning"),
        ("open", 0.04, "information"),
        ("open", 0.05, "warning"),
        ("half_open", 0.05, "warning"),
        ("retired", 0, "warning"),
    ],
)
def test_a_gate_that_has_not_been_closed_for_long_is_information(state: str, days: float, level: str) -> None:
    gates = [msgspec.structs.replace(PAUSED, name=f"d{n}", state=state, since=START) for n in range(4)]
    gates[-1] = msgspec.structs.replace(gates[-1], since=START - timedelta(days=days))
    alerts = tuple(FiringAlert("breaker_open", gate.title, START, "503") for gate in gates)
    first, *_, rest = findings(seen(gates=tuple(gates), alerts=alerts), (), 2)
    assert (first.subject, first.level, rest.remedy) == (
        f"destination d{3 if days > 0.04 and level == 'warning' else 0}",
        level,
        "relay status --wide",
    )


def test_information_alone_is_well() -> None:
    overview = seen(routes=(crm(open=2, retrying=1, next_due_at=LATER),), gates=(PAUSED,))
    assert [each.level for each in findings(overview, ())] == ["information", "information"]
    assert shown(overview)[0] == "well: 1 relay running, 2 open"


def understood(line: str) -> None:
    """Parse a command as the command line does."""
    command: Any = typer.main.get_command(app)
    _, name, *words = shlex.split(line)
    command.commands[name].make_context(line, words)  # raises a usage error


def test_a_step_says_what_is_wrong_with_its_number() -> None:
    (step,) = findings(seen(routes=(crm(retrying=1, next_due_at=LATER),)), ())
    assert (step.sentence, step.fields) == ("route crm: 1 attempt waits, due in 2 h", {"route": "crm"})
    (step,) = findings(seen(routes=(crm(dead=10_000, at_least=("dead",)),)), ())
    assert step.sentence == "route crm: 10,000 or more deliveries are dead"


def test_retention_is_one_line_and_names_what_is_behind() -> None:
    row = {"kind": "events", "pruned_until": START, "behind_since": None, "behind_seconds": 0, "error": None}
    assert "  pruned: events until 2026-01-01" in shown(seen(retention=(row,)))
    behind = {**row, "behind_since": START, "behind_seconds": 3 * 86400, "error": "seq=7: theirs"}
    assert "  behind with events by 3 d; events: seq=7: theirs" in shown(seen(retention=(behind,)))
