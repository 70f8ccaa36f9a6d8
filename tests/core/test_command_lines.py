"""The command lines: imports, options, tables and the status."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from relay.cli.dead import describe_groups, group_by_cause, suggest_exhausted
from relay.cli.listings import ListCommand, list_rows
from relay.cli.main import app
from relay.cli.options import login_name
from relay.cli.output import fit_table, put_json, show
from relay.cli.status import format_status, list_next
from relay.delivery.gates import make_entity_key
from relay.findings import Finding, get_route_state, list_findings
from relay.store.overview import FiringAlert, HeldGate, Overview, RelayState
from relay.store.route_states import RouteState
from tests.helpers.planted import HOSTILE
from tests.helpers.storing import START

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)

# --- Imports of the command lines


LOADED = """
import sys
from importlib import import_module
name, unwanted, *sys.argv[1:] = sys.argv[1:]
try:
    import_module({"inbox": "relay.cli.inbox", "relay": "relay.cli.main"}[name]).main()
except SystemExit:
    pass
print("loaded:", *(module for module in unwanted.split() if module in sys.modules))
"""

CALLS = {
    "requests", "urllib3", "jwt", "cryptography", "prometheus_client", "relay.destinations", "relay.http",
    "relay.demo.run", "relay.demo.services", "opentelemetry",
}  # fmt: skip
SERVES = {"falcon", "gunicorn", "httptools", "uvicorn", "inbox.receiver", "relay.daemon.loop", "relay.sweep"}
MIGRATES = {"alembic", "mako", "sqlalchemy.orm"}
READS = MIGRATES | {"inbox.db", "inbox.loader", "inbox.sources", "jmespath", "relay.store", "sqlalchemy"}


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        ("inbox --help", CALLS | SERVES | READS),
        ("relay --help", CALLS | SERVES | READS),
        ("relay status", CALLS | SERVES | MIGRATES),
        ("relay run --drain", MIGRATES | {"falcon", "gunicorn", "inbox.receiver", "opentelemetry", "uvicorn"}),
    ],
)
def test_a_command_imports_no_more_than_it_needs(command: str, unwanted: set[str], tmp_path: Path) -> None:
    (tmp_path / "inbox.toml").write_text('[database]\nurl = "sqlite:///inbox.db"\n')
    name, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-c", LOADED, name, " ".join(sorted(unwanted)), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


def test_a_user_without_a_name_is_named_by_the_uid(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)

    def raise_unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", raise_unknown)
    assert login_name() == f"uid {os.getuid()}"
    monkeypatch.setenv("LOGNAME", "kim")
    assert login_name() == "kim"


# --- Listings on a terminal and in a pipe


LISTING = ListCommand("deliveries", "events", "seq state entity received_at lane last_error")
COLUMNS = LISTING.names()
ROW = {
    "seq": 7,
    "state": "dead",
    "entity_type": "USER",
    "entity_id": "IDNUMBER1234",
    "last_error": "the call was answered 503: " + "out of order " * 10,
    "received_at": NOW - timedelta(minutes=3),
    "lane": "USER|IDNUMBER1234",
}


def test_chosen_columns_come_in_the_order_of_their_names_and_may_be_named_by_their_headings() -> None:
    assert LISTING.names("received, error,seq") == ["received_at", "last_error", "seq"]


@given(
    st.lists(
        st.fixed_dictionaries({"seq": st.integers(), "last_error": st.text(), "entity_type": st.text()}), min_size=1
    ),
    st.integers(1, 200),
)
def test_no_line_is_wider_than_the_terminal(rows: list[dict[str, object]], width: int) -> None:
    least = max(3, *(len(str(row["seq"])) for row in rows))  # the first column is always shown
    for line in fit_table(rows, COLUMNS, width, NOW)[0]:
        assert cell_len(line.plain) <= max(width, least)
        assert line.plain.isprintable()


def test_colours_are_left_out_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    show([ROW], COLUMNS)
    assert "\x1b[31m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    show([ROW], COLUMNS)
    assert "\x1b[3" not in capsys.readouterr().out
    monkeypatch.delenv("FORCE_COLOR")
    show([ROW], COLUMNS)
    assert "\x1b" not in capsys.readouterr().out


def test_json_has_every_field_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    row = {**ROW, "last_error": "two\nlines \x1b\u2028"}
    for indent in (2, None):
        put_json(row, indent=indent)
        written = capsys.readouterr().out
        assert json.loads(written) == {**row, "received_at": "2026-11-26T11:57:00.000000Z"}
    assert written.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"columns": "lanes,seq"}, "there is no column 'lanes'; did you mean 'lane'?"),
        ({"columns": ""}, "there is no column ''; valid here: entity, error, lane, last_error, "),
        ({"as_json": True, "as_ndjson": True}, "--json and --ndjson exclude each other"),
        ({"as_json": True, "wide": True}, "JSON always has every field"),
        ({"as_ndjson": True, "columns": "seq"}, "JSON always has every field"),
    ],
)  # fmt: skip
def test_wrong_list_options_exit_with_2(wrong: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {"limit": None, "columns": None, "wide": False, "as_json": False, "as_ndjson": False}
    with pytest.raises(typer.Exit) as ended:
        list_rows(LISTING, lambda row, _now: row, **{**given, **wrong})
    assert ended.value.exit_code == 2
    assert said in capsys.readouterr().err


def a_dead(seq: int, cause: str, **more: object) -> dict[str, Any]:
    usual = {
        "state": "dead",
        "route": "to-crm",
        "error": "forward answered 503",
        "entity_type": "USER",
        "last_status": 503,
    }
    died_at = NOW - timedelta(minutes=seq)
    return {**usual, "seq": seq, "cause": cause, "entity_id": f"u{seq}", "died_at": died_at, **more}


def test_dead_letters_are_grouped_by_cause_with_the_next_commands() -> None:
    rows = [a_dead(n, "exhausted", error=f"error {n} " * 20, entity_id="x" * 90) for n in range(1, 31)]
    rows += [a_dead(40, "mapping", state="blocked"), a_dead(50, "payload_gone", entity_id=HOSTILE)]
    lines = [line.plain for line in describe_groups(group_by_cause(rows), {"status": 503}, 9, 80, NOW)]
    assert all(cell_len(line) <= 80 and line.isprintable() for line in lines)
    assert lines[0] == "exhausted on to-crm: 30 dead letters, first died 30 min ago, last 1 min ago"
    shown = [line.split()[0] for line in lines if line.startswith("   ") and line.split()[0].isdecimal()]
    assert shown == ["1", "2", "3", "40", "50"]
    assert "  and 27 more: filter by --route and --cause" in lines
    assert [line.strip().partition(" --reason")[0] for line in lines if line.startswith("    relay")] == [
        "relay replay --route to-crm --cause exhausted --status 503",
        "relay replay --route to-crm --cause mapping --status 503",
        "relay cancel --route to-crm --cause payload_gone --status 503",
        "relay unblock --route to-crm --cause mapping --status 503",
    ]


def test_a_cause_that_is_retried_first_points_at_the_exhausted() -> None:
    exhausted = [a_dead(1, "exhausted"), a_dead(2, "exhausted"), a_dead(3, "exhausted", last_status=None)]
    (hint,) = suggest_exhausted("server_error", exhausted)
    assert all(part in hint for part in ("503 (2)", "no response (1)", "`relay dead --cause exhausted`"))
    assert [*suggest_exhausted("mapping", exhausted), *suggest_exhausted("server_error", [])] == []


# --- `relay status` for people: lines that fit, the words of states, and the next commands. Pure


RUNNING = RelayState("r1", "host.example.com", 7, "1.0", "running", START, START, 1.0, 3, {})
QUIET = RouteState("crm", is_configured=True)
NO_RELAY = Finding("no_relay", "critical", "no relay has sent a heartbeat for 15 s", remedy="relay run")


def seen(**parts: Any) -> Overview:  # noqa: ANN401  # fields of Overview
    empty: dict[str, Any] = dict.fromkeys(("routes", "gates", "relays", "alerts", "commands", "sweeps"), ())
    return Overview(START, **{**empty, "relays": (RUNNING,), "routes": (QUIET,), **parts})


def shown(overview: Overview, *checked: Finding, width: int | None = 80) -> list[str]:
    return [line.plain for line in format_status(overview, checked, list_findings(overview, checked), width=width)]


def crm(**counts: Any) -> RouteState:  # noqa: ANN401  # fields of RouteState
    return msgspec.structs.replace(QUIET, **counts)


PAUSED = HeldGate("destination", "crm", "paused", "maintenance " * 20, "kim", START, None, ("crm",))


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
    assert get_route_state(route, ()) == state
    assert get_route_state(route, [Finding("stuck", "critical", "", "crm")]) == "stuck"


def steps(overview: Overview, *checked: Finding) -> list[str]:
    return [each.remedy for each in list_next(list_findings(overview, checked))]


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
        (held("destination", "crm", "limited"), (), []),
        (
            held(*make_entity_key("shop", "A", "u 1|2")),
            (),
            ["relay resume --source shop --entity 'A/u 1|2' --reason '…'"],
        ),
        (seen(routes=(crm(dead=2),)), (), ["relay dead --route crm"]),
        (seen(routes=(crm(retrying=1, next_due_at=LATER),)), (), ["relay retry --route crm --reason '…'"]),
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
            seen(routes=(crm(open=3, is_configured=False, new_name="my crm"),)),
            (),
            ["relay replay --route 'my crm' --backfill --open-on crm --reason '…'"],
        ),
        (seen(alerts=(FiringAlert("sweep_failed", "shop USER", START, "503"),)), (), ["relay sweep --source shop"]),
    ],
)
def test_each_problem_has_its_command(overview: Overview, checked: tuple[Finding, ...], commands: list[str]) -> None:
    assert steps(overview, *checked) == commands
    for command in commands:
        parse_command(command)


@pytest.mark.parametrize(
    ("state", "days", "level"),
    [
        ("paused", 2.9, "information"), ("paused", 3.1, "warning"), ("open", 0.04, "information"),
        ("open", 0.05, "warning"), ("half_open", 0.05, "warning"), ("retired", 0, "warning"),
    ],
)  # fmt: skip
def test_a_gate_that_has_not_been_closed_for_long_is_information(state: str, days: float, level: str) -> None:
    gates = [msgspec.structs.replace(PAUSED, name=f"d{n}", state=state, since=START) for n in range(4)]
    gates[-1] = msgspec.structs.replace(gates[-1], since=START - timedelta(days=days))
    alerts = tuple(FiringAlert("breaker_open", gate.title, START, "503") for gate in gates)
    first, *_, rest = list_findings(seen(gates=tuple(gates), alerts=alerts), (), 2)
    assert (first.subject, first.level, rest.remedy) == (
        f"destination d{3 if days > 0.04 and level == 'warning' else 0}",
        level,
        "relay status --wide",
    )


def test_information_alone_is_well() -> None:
    overview = seen(routes=(crm(open=2, retrying=1, next_due_at=LATER),), gates=(PAUSED,))
    assert [each.level for each in list_findings(overview, ())] == ["information", "information"]
    assert shown(overview)[0] == "well: 1 relay running, 2 open"


def parse_command(line: str) -> None:
    """Parse a command as the command line does."""
    command: Any = typer.main.get_command(app)
    _, name, *words = shlex.split(line)
    command.commands[name].make_context(line, words)  # raises a usage error
