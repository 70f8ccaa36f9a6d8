"""No command writes a hostile value of the database or of another system to the terminal unescaped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import typer
from sqlalchemy import insert, text, update

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db.schema import relay_command, relay_node
from relay.cli import listings, status
from relay.cli.options import run as run_app
from tests.helpers.planted import HOSTILE, MARK, harm_of, plant, text_columns
from tests.helpers.processes import APPS, Ended, invoke, site
from tests.helpers.relaying import give_up
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.tables import rows
from tests.helpers.webhooks import SYNC_CONFIG, body, config_text, moment

CONFIG = (
    SYNC_CONFIG
    + """
gone = "skip"
map = {{ name = "entity.name" }}
[[sources.trivore.sweeps]]
api = "identity"
path = "/user"
entity_type = "USER"
params = {{ since = "{{since}}", start = "{{start}}", count = "{{count}}" }}
pages = {{ by = "start", count = 9 }}
"""
)

CASES: Mapping[str, tuple[str, ...]] = {
    "inbox init": ("--source HOSTILE --force",),
    "inbox list": (
        *("", "--json", "--state dead", "--wide", "--columns HOSTILE", "--ndjson"),
        *("--error HOSTILE", "--body HOSTILE", "--sender-id HOSTILE"),
    ),
    "inbox show": ("1", "1 --json", "1000", "1000 --json"),
    "inbox tail": ("--since 2000-01-01", "--since 2000-01-01 --ndjson", "--since 2000-01-01 --wide", "--source HOSTILE"),
    "inbox commands": ("", "--json", "--wide", "1", "1 --json", "--kind HOSTILE"),
    "inbox copy": ("--to sqlite:///HOSTILE/target.db", "--to sqlite:///target.db --json", "--to HOSTILE"),
    "inbox prune": ("", "--json", "--kind HOSTILE"),
    "inbox erase": ("--source trivore --entity HOSTILE", "--source HOSTILE --entity HOSTILE --json"),
    "inbox doctor": ("", "--json", "--only HOSTILE"),
    "inbox rejected": ("", "--json", "--id 1", "--id 1 --json", "--cause HOSTILE"),
    "inbox readmit": ("--all", "--all --json", "--id 1 --reason x", "--all --reason x --yes"),
    "relay dead": ("", "--json", "--wide", "--route HOSTILE"),
    "relay tail": ("--since 2000-01-01", "--since 2000-01-01 --ndjson", "--since 2000-01-01 --wide", "--kind HOSTILE"),
    "relay status": ("", "--json", "--wide", "--check", "--check --here", "--check --json"),
    "relay pause": ("--entity HOSTILE --source trivore --reason HOSTILE --yes", "--route HOSTILE"),
    "relay resume": ("--entity HOSTILE --source trivore", "--route HOSTILE"),
    "relay plan": ("--route user-to-crm", "--route user-to-crm --json", "--route HOSTILE"),
    "relay sweep": ("--source trivore", "--source HOSTILE"),
    "relay verify": ("", "--json"),
    "relay unblock": ("--all --reason x", "--all --reason x --json", "--entity HOSTILE --reason HOSTILE --yes"),
    "relay replay": ("--all --reason x", "--all --json", "--seq 1 --reason HOSTILE --yes", "--entity HOSTILE --reason x"),
    "relay cancel": ("--seq 1 --reason x", "--route HOSTILE --reason x --json", "--entity HOSTILE --reason HOSTILE --yes"),
    "relay retry": ("--all --reason x", "--all --reason x --json", "--seq 1 --reason HOSTILE --yes", "--api HOSTILE --reason x"),
    "relay rebuild": ("--reason HOSTILE --yes", "--json"),
}  # fmt: skip
"""Options for each command; HOSTILE stands for a pasted hostile argument."""

WITHOUT_VALUES = {
    *("inbox serve", "relay run", "relay web"),  # they write logs: of a relay below, of the others with their tests
    *(
        "inbox migrate",
        "inbox roles",
        "inbox schema",
        "relay stop",
        "relay continue",
    ),  # they show only words of the code and numbers
    *("relay web passwd", "relay web token"),  # they show only a validated name
    *("relay demo", "relay demo identity", "relay demo commercial"),  # tests/demo/test_demo.py
    *("inbox check", "inbox send"),  # tests/process/test_check.py, and below
}


def commands_of(command: object, path: str) -> Iterator[str]:
    """Yield the paths of all commands below `command`, and of groups that are commands themselves."""
    inner = getattr(command, "commands", {})
    if not inner or getattr(command, "invoke_without_command", False):
        yield path
    for name, each in inner.items():
        yield from commands_of(each, f"{path} {name}")


def test_every_command_of_both_sides_has_its_case_here() -> None:
    found = {path for name, app in APPS.items() for path in commands_of(typer.main.get_command(app), name)}
    assert found == CASES.keys() | WITHOUT_VALUES


# --- a database with the hostile value in every column


READMITTABLE = text(
    "INSERT INTO rejected_request (received_at, source, status, cause, reason, headers, body_sha256, body)"
    " SELECT received_at, 'trivore', 422, cause, reason, '{}', body_sha256, :body FROM rejected_request"
)
"""Adds a rejected request that can be readmitted."""


@pytest.fixture(scope="module")
def planted(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "inbox.db"
    shutil.copy(sqlite_template, path)
    engine = engines.connect(f"sqlite:///{path}", application="tests")
    give_up(engine, f"sqlite:///{path}", [(HOSTILE, moment(n)) for n in range(2)], reason=HOSTILE)
    with engine.begin() as connection:  # the second blocks its lane
        connection.exec_driver_sql("UPDATE open_delivery SET state = 'blocked' WHERE seq = 2")
    assert plant(engine) >= text_columns()
    with engine.begin() as connection:
        connection.execute(READMITTABLE, {"body": body(HOSTILE, moment(9), eventType=HOSTILE[:90])})
    engine.dispose()
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    """A service whose every response has the hostile value."""
    item = {"id": HOSTILE, "name": HOSTILE, "meta": {"lastModified": "2026-01-01T00:00:00Z"}}
    with serving(answer(200, {**item, "items": [{**item, "name": "other"}], "resources": [item]})) as made:
        yield made


def configure(folder: Path, database_url: str, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "inbox.toml").write_text(config_text(database_url) + CONFIG.format(url=server.url), encoding="utf-8")
    monkeypatch.setenv("INBOX_CONFIG", str(folder / "inbox.toml"))
    monkeypatch.setenv("COLUMNS", "20000")
    monkeypatch.setattr(status, "_LOOK_AGAIN_SECONDS", 0)
    monkeypatch.setattr(listings, "wait_for_more", interrupt)


def interrupt() -> None:
    """Press Ctrl-C once a tail has shown all rows."""
    raise KeyboardInterrupt


@pytest.fixture
def copied(planted: Path, tmp_path: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a configured copy of the planted database with a running relay."""
    shutil.copy(planted, tmp_path / "inbox.db")
    engine = engines.connect(f"sqlite:///{tmp_path}/inbox.db", application="tests")
    with engine.begin() as connection:
        connection.execute(update(relay_node).values(heartbeat_at=SystemClock().now()))
    engine.dispose()
    configure(tmp_path, f"sqlite:///{tmp_path}/inbox.db", server, monkeypatch)
    return f"sqlite:///{tmp_path}/inbox.db"


def run(command: str, options: str) -> Ended:
    pasted = options.replace("--entity HOSTILE", "--entity USER/HOSTILE")
    return invoke(*command.split(), *(word.replace("HOSTILE", HOSTILE) for word in pasted.split()))


def check(command: str, options: str, *, terminal: bool) -> Ended:
    """Run a command and check that its output is harmless and valid JSON where that was asked for."""
    ran = run(command, options)
    for written in (ran.stdout, ran.stderr):
        assert harm_of(written, terminal=terminal) == [], (command, options, written)
    if "--json" in options and ran.stdout:
        json.loads(ran.stdout)
    if "--ndjson" in options:
        assert [json.loads(line) for line in ran.stdout.splitlines()]
    return ran


@pytest.mark.parametrize("terminal", [False, True], ids=["file", "terminal"])
@pytest.mark.parametrize("command", CASES)
@pytest.mark.usefixtures("copied")
def test_no_command_writes_control_characters_hidden_text_or_markup(
    command: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*(("FORCE_COLOR", "1") if terminal else ("NO_COLOR", "1")))
    shown = ""
    for options in CASES[command]:
        ran = check(command, options, terminal=terminal)
        shown += ran.stdout + ran.stderr
    assert f"{MARK} " in shown, "the value was not shown at all"
    assert "[link=https://evil.example]" in shown, "the markup was interpreted"
    assert ":warning:" in shown


def test_hostile_values_cannot_forge_a_line_of_a_relays_log(
    copied: str, tmp_path: Path, server: ScriptedServer
) -> None:
    engine = engines.connect(copied, application="tests")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alert SET told_at = NULL")
        asked = {"kind": "pause", "selection": {"route": HOSTILE}, "reason": HOSTILE}
        connection.execute(insert(relay_command).values(asked))
    assert run("relay replay", "--cause mapping --reason x --yes").status == 0
    with site(tmp_path, config_text(copied, f"{server.url}/{{") + CONFIG.format(url=server.url)) as place:
        relay = place.relay("--drain", "--verbose")
        assert relay.ends() == 0, relay.output
    engine.dispose()
    assert harm_of(relay.output) == []
    assert MARK in relay.output
    assert [line for line in relay.output.splitlines() if not line.startswith(("  ", "20", "Traceback"))] == []


def test_hostile_entities_can_be_replayed(copied: str) -> None:
    engine = engines.connect(copied, application="tests")
    assert run("relay replay", "--entity HOSTILE --reason HOSTILE --yes").status == 0
    (command,) = rows(engine, "SELECT kind, state, reason, affected FROM relay_command WHERE id > 1")
    assert command == {"kind": "replay", "state": "done", "reason": HOSTILE, "affected": 2}
    engine.dispose()


def test_inbox_send_escapes_the_response(
    tmp_path: Path, server: ScriptedServer, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, f"sqlite:///{planted}", server, monkeypatch)
    for options in (f"trivore --url {server.url}", "HOSTILE", "trivore --entity HOSTILE --url HOSTILE"):
        ran = check("inbox send", options, terminal=False)
        assert MARK in ran.stdout + ran.stderr


def test_the_text_of_an_unexpected_exception_is_escaped_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

    @app.command()
    def broken() -> None:
        raise RuntimeError(HOSTILE)

    monkeypatch.setattr("sys.argv", ["broken"])
    with pytest.raises(SystemExit, match="1"):
        run_app(app)
    shown = capsys.readouterr().err
    assert MARK in shown
    assert harm_of(shown) == []
    assert "\nall is well" not in shown


@pytest.mark.parametrize("command", ["inbox show", "inbox list --before", "inbox rejected --id", "relay cancel --seq"])
def test_a_number_beyond_64_bits_is_wrong_use(command: str) -> None:
    ended = invoke(*command.split(), str(2**63))
    assert (ended.status, "Invalid value" in ended.stderr) == (2, True)
