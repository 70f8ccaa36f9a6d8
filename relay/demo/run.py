"""`relay demo`: the whole product with both services, a line on the screen for each change, webhook and call."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from string import Template
from typing import Any

import requests
from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from sqlalchemy import text

from inbox.clock import Clock, SystemClock
from inbox.db import engine, migrate
from inbox.observe.visible import visible
from relay.demo.scenario import ChangeMade, Scenario, differences
from relay.demo.services import GROUP, USER, CallMade, CommercialService, IdentityService, WebhookSender, served
from relay.store.database import Database
from relay.web.access.accounts import hash_password

CHANGES, KILL_AFTER = 40, 25
"""Changes in a round; with `--once` the relay is killed after so many of them."""
_PAUSE_SECONDS, _LIVE_PAUSE_SECONDS, _POLL_SECONDS = 0.3, 4.0, 0.2
_PATIENCE_SECONDS, _START_SECONDS, _GRACE_SECONDS = 90.0, 30.0, 25.0
_A_MOMENT_SECONDS = 1.1
"""A sweep takes a reported and an unreported change for one where times are cut to the second."""
_FAIL_SHARE, _SLOW_SHARE, _LOST_SHARE, _LATENCY_SECONDS = 0.1, 0.1, 0.05, 0.015
_PAGE_USER, _PAGE_PORT = "demo", 8025
_ROWS_TO_PIN = 24
"""Rows of a terminal in which the addresses stay below what happens."""
_WIDE, _WIDE_COLUMN, _NARROW_COLUMN = 100, 28, 20
_CLIENT_ERROR, _SERVER_ERROR, _UNAVAILABLE = 400, 500, 503
_COLOURS = {"change": "bold", "webhook": "cyan", "call": "magenta", "relay": "blue", "command": "bold yellow"}
_NOTES = {"same": ("nothing new: nothing is sent", "dim"), "stale": ("too old: it is read again", "yellow")}
_ID = re.compile(r"[0-9a-f]{20}([0-9a-f]{4})")
_INTRODUCTION = """\
[bold]Inbox Relay[/] keeps a commercial service in sync with an identity service.
  [bold]change[/]   a user or a group changes in the identity service
  [cyan]webhook[/]  which reports it; the receiver stores that, and only then answers 200
  [magenta]call[/]     the relay fetches the entity, finds its counterpart, and POSTs,
           PATCHes or DELETEs it; one call in ten fails on purpose
  [blue]relay[/]    it read something too old, or nothing new was to be sent
  [bold yellow]command[/]  `relay sweep` finds missed webhooks, `relay plan` compares all
"""
ROUTES = ("users-to-contacts", "groups-to-teams")
_OPEN = text("SELECT count(*) FROM open_delivery WHERE state NOT IN ('dead', 'blocked')")
_NOTED = text("""
SELECT l.id, l.kind, i.entity_type, i.entity_id FROM delivery_log l JOIN inbox i ON i.seq = l.seq
WHERE l.id > :after AND (l.kind = 'unchanged' OR l.detail ->> 'error_class' = 'stale') ORDER BY l.id
""")
_COUNTS = text("""
SELECT kind AS name, count(*) AS number FROM delivery_log GROUP BY kind
UNION ALL SELECT 'events', count(*) FROM inbox
UNION ALL SELECT 'duplicates', coalesce(sum(times), 0) FROM duplicate_request
""")


class DemoError(Exception):
    """The demo can't go on; the text says why, and what to do."""


def configuration(**values: str) -> str:
    """Make the text of `inbox.toml` from `database_url`, `users`, `token`, `identity_url` and `commercial_url`."""
    template = Template(Path(__file__).with_name("inbox.toml").read_text(encoding="utf-8"))
    return template.substitute({name: json.dumps(value, ensure_ascii=False) for name, value in values.items()})


class DemoScreen:
    """Prints a line for each event, from any thread."""

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        self.console, self._clock = console, clock or SystemClock()
        self._names: dict[str, str] = {}  # of entities, by id
        self.calls = self.failed_calls = self.webhooks = 0

    def change(self, change: ChangeMade) -> None:
        """Show a change of the identity service."""
        self._names[change.entity_id] = change.name
        detail = Text(_assignments(change.fields))
        if not change.fields and change.action == "update":
            detail = Text("nothing the other side has", "dim")
        if not change.is_reported:
            detail = Text("no webhook", "red").append(": " if detail.plain else "").append_text(detail)
        self._line("change", change.action.upper(), None, change.name, detail)

    def webhook(self, payload: Mapping[str, str], status: int | None) -> None:
        """Show a webhook that was sent."""
        self.webhooks += 1
        detail = "no answer; it is sent again" if status is None else self._names.get(payload["id"], "")
        about = f"{payload['entityType']} {payload['id']}"
        self._line("webhook", payload["eventType"], status or "---", about, Text(visible(detail), "dim"))

    def call(self, call: CallMade) -> None:
        """Show a call to the commercial service. The relay sends every mapped field; those that are new are shown."""
        self.calls += 1
        if call.status == _UNAVAILABLE:
            self.failed_calls += 1
            detail = Text("on purpose; it is tried again", "red")
        elif call.status >= _CLIENT_ERROR:
            detail = Text("refused", "yellow")
        elif call.method == "DELETE":
            detail = Text(visible(self._names.get(call.external_id or "", "")), "dim")
        elif call.changed or call.external_id is None:
            detail = Text(_assignments(call.changed))
        else:
            detail = Text("nothing new", "dim")
        self._line("call", call.method, call.status, call.path, detail)

    def note(self, why: str, about: str) -> None:
        """Show what no call shows: the relay had nothing new to send (`same`), or what it read was too old (`stale`)."""
        self._line("relay", why, None, about, Text(*_NOTES[why]))

    def command(self, command: str, about: str, report: str = "") -> None:
        """Show a command that was started, or what it has reported."""
        self._line("command", command, None, about, Text(visible(report), "bold"))

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        self.console.print(Text(visible(sentence), "dim"))

    def _line(self, kind: str, verb: str, status: int | str | None, about: str, detail: Text) -> None:
        """Print columns, cut to a terminal's width; whole elsewhere. `detail` is made of visible text already."""
        width = self.console.width if self.console.is_terminal else None
        column = _WIDE_COLUMN if width is None or width >= _WIDE else _NARROW_COLUMN
        faint = "dim" if verb == "GET" else ""
        line = Text(end="").append(f"{self._clock.now():%H:%M:%S} ", "dim")
        line.append(f"{kind:<7} ", _COLOURS[kind]).append(f"{visible(verb):<6} ", faint)
        line.append(f"{status or '':<3} ", _status_colour(status))
        about = visible(_ID.sub(r"…\1", about))  # the end of an id tells it from others
        line.append(f"{about:<{column}}", faint)
        if detail.plain:
            line.append(" ").append_text(detail)
        line.rstrip()
        if width is not None:
            line.truncate(width, overflow="ellipsis")
        self.console.print(line, soft_wrap=True)


def _status_colour(status: int | str | None) -> str:
    if status is None:
        return ""
    if not isinstance(status, int) or status >= _SERVER_ERROR:
        return "bold red"
    return "bold yellow" if status >= _CLIENT_ERROR else "green"


def _assignments(fields: Mapping[str, Any]) -> str:
    shown = {visible(name): "null" if value is None else visible(str(value)) for name, value in fields.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


class Child:
    """A running `python -m ARGUMENT...` that logs to `NAME.log` in the folder.

    It leads a process group of its own, so that Ctrl-C in a terminal reaches only the demo, which then stops it.
    """

    def __init__(self, name: str, folder: Path, *arguments: str, listener: socket.socket | None = None) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own Python, our own arguments
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_environment(folder),
                pass_fds=[listener.fileno()] if listener else [],
                process_group=0,
            )
        self.pid = self._process.pid

    def check(self) -> None:
        """Raise DemoError with the end of its log when it has ended."""
        if self._process.poll() is not None:
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
            status = self._process.returncode
            raise DemoError(f"the {self.name} has ended with status {status}; the end of {self.log}:\n{tail}")

    def stop(self) -> None:
        """End it with SIGTERM, and with its whole group by SIGKILL if it takes too long."""
        self._process.terminate()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it with SIGKILL: it has no chance to tidy up."""
        self._process.kill()
        self._process.wait()


def _environment(folder: Path) -> dict[str, str]:
    """Return this process's environment without what would override the file."""
    kept = {
        name: value for name, value in os.environ.items() if name not in {"INBOX_DATABASE_URL", "GUNICORN_CMD_ARGS"}
    }
    return {**kept, "INBOX_CONFIG": str(folder / "inbox.toml"), "WEB_CONCURRENCY": "2", "PYTHONUNBUFFERED": "1"}


class Demo:
    """All parts of the demo, running. Main thread only."""

    def __init__(self, exits: ExitStack, screen: DemoScreen, folder: Path) -> None:
        """Start all parts; `exits` stops them in order. Raises DemoError when one does not start."""
        self.screen, self.folder, self._children = screen, folder, dict[str, Child]()
        self._last_note = 0
        url = f"sqlite:///{folder / 'inbox.db'}"
        made = engine.connect(url, application="relay-demo")
        exits.callback(made.dispose)
        migrate.upgrade(made)
        self._database = Database(made)
        token, self.page_password = secrets.token_urlsafe(16), secrets.token_urlsafe(12)
        self.webhooks = WebhookSender(
            headers={"X-Webhook-Token": token},
            on_webhook=screen.webhook,
            loses_answer=lambda: random.random() < _LOST_SHARE,  # noqa: S311  # luck
        )
        exits.callback(self.webhooks.close)
        self.identity = IdentityService(self.webhooks, is_slow=lambda: random.random() < _SLOW_SHARE)  # noqa: S311
        self.commercial = CommercialService(fail_share=_FAIL_SHARE, latency=_LATENCY_SECONDS, on_call=screen.call)
        self.identity_url = exits.enter_context(served(self.identity.app))
        self.commercial_url = exits.enter_context(served(self.commercial.app))
        hashed = hash_password(self.page_password)
        users = _write_private(folder / "users", f"{_PAGE_USER}:operator:{hashed}\n")
        urls = {"identity_url": self.identity_url, "commercial_url": self.commercial_url, "database_url": url}
        _write_private(folder / "inbox.toml", configuration(users=f"file:{users}", token=token, **urls))
        screen.say("starting the relay, the receiver and the page")
        exits.callback(lambda: self.child("relay").stop())
        self.start_relay()
        self.receiver_url = self._serve(exits, "receiver", "inbox.gunicorn_settings", 0, "/health/ready")
        self.page_url = self._serve(exits, "page", "relay.web.gunicorn_settings", _PAGE_PORT, "/health/live")
        self.webhooks.url = f"{self.receiver_url}/webhooks/trivore"

    def start_relay(self) -> None:
        """Start a relay."""
        self._children["relay"] = Child("relay", self.folder, "relay", "run", "--verbose")

    def child(self, name: str) -> Child:
        """Return the receiver, the relay or the page."""
        return self._children[name]

    def _serve(self, exits: ExitStack, name: str, settings: str, port: int, health: str) -> str:
        # The socket is made here and passed on, so no other program can take the port meanwhile.
        with _listener(port) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            arguments = ("gunicorn", "-c", f"python:{settings}", "--bind", f"fd://{listener.fileno()}")
            self._children[name] = Child(name, self.folder, *arguments, listener=listener)
        exits.callback(self._children[name].stop)
        with requests.Session() as session:
            session.trust_env = False  # no proxy between parts of one host
            if not self.until(lambda: _answers(session, url + health), _START_SECONDS):
                raise DemoError(f"the {name} does not answer; see {self._children[name].log}")
        return url

    def pause(self, seconds: float) -> None:
        """Let time pass, and show what the relay has noted. Raises DemoError when a part has ended."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
            with self._database.read() as transaction:
                notes = transaction.execute(_NOTED, after=self._last_note)
            for note in notes:
                self._last_note = note.id
                self.screen.note(
                    "same" if note.kind == "unchanged" else "stale", f"{note.entity_type} {note.entity_id}"
                )
            for child in self._children.values():
                child.check()

    def until(self, done: Callable[[], bool], seconds: float = _PATIENCE_SECONDS) -> bool:
        """Wait, at most so long; return false when it took longer. Raises as `pause`."""
        deadline = time.monotonic() + seconds
        while not (is_done := done()) and time.monotonic() < deadline:
            self.pause(_POLL_SECONDS)
        return is_done

    def is_settled(self) -> bool:
        """Return true when every webhook was accepted and the relay has nothing left to do."""
        if self.webhooks.pending():
            return False
        with self._database.read() as transaction:
            return not transaction.execute(_OPEN)[0][0]

    def counts(self) -> dict[str, int]:
        """Count events, duplicates, and facts of each kind."""
        with self._database.read() as transaction:
            return {row.name: row.number for row in transaction.execute(_COUNTS)}

    def find_unreported(self, scenario: Scenario) -> bool:
        """Make changes that no webhook reports, and find them by the relay's own commands; return true when in sync."""
        self.until(self.is_settled)
        self.pause(_A_MOMENT_SECONDS)
        fail_share, self.commercial.fail_share = self.commercial.fail_share, 0.0  # a command makes its calls once
        for change in (scenario.edit(USER, report=False), scenario.edit(GROUP, report=False)):
            self.screen.change(change)
        for row in self._sweep():
            counts = f"{row['compared']} compared, {row['missed']} missed, {row['added']} added"
            self.screen.command("sweep", row["entity_type"], counts)
        self.until(self.is_settled)
        self.screen.change(scenario.delete(report=False))
        for row in self._sweep("--full"):
            entity = f"{row['entity_type']}/{row['entity_id']}"
            self.screen.command("sweep", entity, row["finding"])
            self._run("replay", "--route", row["route"], "--entity", entity, "--reason", "an orphan", "--yes")
            self.screen.command("replay", entity, "delivered again")
        self.until(self.is_settled)
        in_sync = [self._plan(route) for route in ROUTES]
        self.commercial.fail_share = fail_share
        return all(in_sync)

    def _plan(self, route: str) -> bool:
        status, output = self._run("plan", "--route", route)
        verdict = next((line for line in reversed(output.splitlines()) if "compare" in line), output)
        self.screen.command("plan", route, verdict)
        return status == 0

    def _sweep(self, *options: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self._run("sweep", "--source", "trivore", *options, "--json")[1])
        return rows

    def _run(self, *command: str) -> tuple[int, str]:
        """Run `relay COMMAND` as a person would; return its status and output."""
        self.screen.command(command[0], " ".join(command[1:5]))
        ended = subprocess.run(  # noqa: S603  # our own
            [sys.executable, "-m", "relay", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(self.folder),
            text=True,
            check=False,
            process_group=0,  # Ctrl-C in a terminal reaches only the demo
        )
        if ended.returncode > 1 or "Traceback" in ended.stderr:
            raise DemoError(f"`relay {' '.join(command)}` ended with status {ended.returncode}:\n{ended.stderr}")
        return ended.returncode, ended.stdout if "--json" in command else ended.stdout + ended.stderr


def run_demo(console: Console, folder: Path | None, *, once: bool) -> bool:
    """Run until Ctrl-C, SIGTERM or SIGHUP, or with `once` until the verdict; stop everything; return true when all is well.

    Raises:
        DemoError: something does not start, or ends by itself; the folder with the logs stays.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    console.print(_INTRODUCTION)
    with _folder(folder) as path:
        try:
            with ExitStack() as exits:
                demo = Demo(exits, DemoScreen(console), path)
                scenario = Scenario(demo.identity, random.Random())  # noqa: S311  # luck
                is_well = _run_once(demo, scenario) if once else _run_on(demo, scenario)
        except KeyboardInterrupt:
            console.print("stopped in order")
            is_well = not once
    return is_well


def _run_once(demo: Demo, scenario: Scenario) -> bool:
    """Make a round of changes, kill the relay over its work, and compare both services at the end."""
    for number in range(1, CHANGES + 1):
        demo.screen.change(scenario.step())
        if number == KILL_AFTER:
            demo.child("relay").kill()
            demo.start_relay()
            demo.screen.say("killed the relay (SIGKILL), and started another: it takes over after 15 s")
        demo.pause(_PAUSE_SECONDS)
    in_sync = demo.find_unreported(scenario)
    found, counts, screen = differences(demo.identity, demo.commercial), demo.counts(), demo.screen
    screen.console.print(
        f"\n{screen.webhooks} webhooks, {counts['events']} events, {counts['duplicates']} duplicates recognised;"
        f" {screen.calls} calls, {screen.failed_calls} failed on purpose;"
        f" {counts.get('delivered', 0)} delivered, {counts.get('superseded', 0)} superseded,"
        f" {counts.get('unchanged', 0)} with nothing new, {counts.get('dead', 0)} dead"
    )
    for difference in found:
        screen.console.print(Text(visible(difference)))
    is_well = in_sync and not found and demo.is_settled()
    verdict = ("[bold green]Both services agree[/]", "[bold red]The services do not agree[/]")[not is_well]
    records = len(demo.identity.all(USER)) + len(demo.identity.all(GROUP))
    screen.console.print(f"{verdict} in all fields of {records} users and groups." if is_well else verdict)
    return is_well


def _run_on(demo: Demo, scenario: Scenario) -> bool:
    """Make a burst of changes, then one now and then, until Ctrl-C."""
    console, is_out = demo.screen.console, False

    def switch(_number: int, _frame: object) -> None:
        nonlocal is_out
        is_out = not is_out
        demo.commercial.fail_share = 1.0 if is_out else _FAIL_SHARE

    signal.signal(signal.SIGUSR1, switch)
    box, pins = _box(demo), console.is_terminal and console.height >= _ROWS_TO_PIN
    with Live(box, console=console, auto_refresh=False, transient=True) if pins else nullcontext():
        for number in itertools.count(1):
            demo.screen.change(scenario.step())
            demo.pause(_PAUSE_SECONDS if number <= CHANGES else _LIVE_PAUSE_SECONDS)
            if number == CHANGES and not pins:
                console.print(box)
            if number % CHANGES == 0 and not is_out:
                demo.find_unreported(scenario)
    return True


def _box(demo: Demo) -> Padding:
    """Make a table of the address of each part, and commands to inspect it."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("page", f"{demo.page_url}  (sign in as {_PAGE_USER}, password {demo.page_password})"),
        ("identity", f"{demo.identity_url}/api/rest/v1/user  (Basic demo:demo)"),
        ("receiver", f"{demo.receiver_url}/webhooks/trivore  (pid {demo.child('receiver').pid})"),
        ("relay", f"pid {demo.child('relay').pid}, its log is relay.log in {demo.folder}"),
        ("commercial", f"{demo.commercial_url}/contacts and /teams  (Bearer demo)"),
        ("look into it", f"export INBOX_CONFIG={shlex.quote(str(demo.folder / 'inbox.toml'))}"),
        ("", f"{_command('inbox')} list; {_command('relay')} status"),
        ("break it", f"kill -USR1 {os.getpid()}  fails all calls; once more ends that"),
        ("end it", "Ctrl-C; until then a user or a group changes every few seconds"),
    ):
        table.add_row(name, Text(visible(value)))
    return Padding(table, (1, 0), expand=False)


def _command(name: str) -> str:
    """Spell a command of this installation: by name when the shell finds this very one, or else by path."""
    own = Path(sys.executable).with_name(name)
    return name if shutil.which(name) == str(own) else shlex.quote(os.path.relpath(own))


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """Make the folder for everything. A temporary one is removed at the end, with the token in it, but after a failure."""
    folder = given.absolute() if given else Path(tempfile.mkdtemp(prefix="inbox-relay-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DemoError(f"{folder} is not empty, and stays as it is: name another folder with --folder")
    yield folder
    if given is None:
        shutil.rmtree(folder, ignore_errors=True)


def _write_private(path: Path, content: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(content, encoding="utf-8")
    return path


def _listener(wanted: int) -> socket.socket:
    """Listen on this port, or on any where another program has it."""
    try:
        return socket.create_server(("127.0.0.1", wanted))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


def _answers(session: requests.Session, url: str) -> bool:
    try:
        return session.get(url, timeout=2).ok
    except requests.RequestException:
        return False
