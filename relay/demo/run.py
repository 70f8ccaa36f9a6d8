"""`relay demo`: the whole product with both services, a line on the screen for each change, webhook and call, and a verdict."""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.text import Text
from sqlalchemy import text

from inbox.clock import Clock, SystemClock
from inbox.db import engine, migrate
from inbox.observe.visible import visible
from relay.accounts import hash_password
from relay.demo.scenario import ChangeMade, Scenario, differences
from relay.demo.services import GROUP, USER, CallMade, CommercialService, IdentityService, WebhookSender, served
from relay.store.database import Database

CHANGES, KILL_AFTER = 40, 25
"""Changes of users and groups; the relay is killed after so many of them."""
_PAUSE_SECONDS, _LIVE_PAUSE_SECONDS, _POLL_SECONDS = 0.3, 4.0, 0.2
_PATIENCE_SECONDS, _GRACE_SECONDS = 90.0, 25.0
_A_MOMENT_SECONDS = 1.1
"""A sweep takes a reported and an unreported change for one where times are cut to the second."""
_FAIL_SHARE, _LOST_SHARE, _LATENCY_SECONDS = 0.1, 0.05, 0.015
_PAGE_USER, _PAGE_PORT = "demo", 8025
_WIDE, _WIDE_COLUMN, _NARROW_COLUMN = 100, 28, 20
_CLIENT_ERROR, _UNAVAILABLE = 400, 503
_OF_HUNDREDS = {2: "green", 3: "green", 4: "bold yellow"}
_COLOURS = {"change": "bold", "webhook": "cyan", "call": "magenta", "command": "bold yellow"}
_ID = re.compile(r"[0-9a-f]{20}([0-9a-f]{4})")
_INTRODUCTION = """\
[bold]Inbox Relay[/] keeps a commercial service in sync with an identity service.
  [bold]change[/]   a user or a group changes in the identity service
  [cyan]webhook[/]  which reports it; the receiver stores that, and only then answers 200
  [magenta]call[/]     the relay fetches the entity, finds its counterpart, and POSTs,
           PATCHes or DELETEs it; one call in ten fails on purpose
  [bold yellow]command[/]  `relay sweep` finds missed webhooks, `relay plan` compares all
"""
ROUTES = ("users-to-contacts", "groups-to-teams")
_OPEN = text("SELECT count(*) FROM open_delivery WHERE state NOT IN ('dead', 'blocked')")
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
        self._line("webhook", payload["eventType"], status or 0, about, Text(visible(detail), "dim"))

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

    def command(self, command: str, about: str, report: str = "") -> None:
        """Show a command that was started, or what it has reported."""
        self._line("command", command, None, about, Text(visible(report), "bold"))

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        self.console.print(Text(visible(sentence), "dim"))

    def _line(self, kind: str, verb: str, status: int | None, about: str, detail: Text) -> None:
        """Print columns, cut to a terminal's width; whole elsewhere. `detail` is made of visible text already."""
        width = self.console.width if self.console.is_terminal else None
        column = _WIDE_COLUMN if width is None or width >= _WIDE else _NARROW_COLUMN
        faint = "dim" if verb == "GET" else ""
        line = Text(end="").append(f"{self._clock.now():%H:%M:%S} ", "dim")
        line.append(f"{kind:<7} ", _COLOURS[kind]).append(f"{visible(verb):<6} ", faint)
        colour = "" if status is None else _OF_HUNDREDS.get(status // 100, "bold red")
        line.append(f"{'' if status is None else status or '---':<3} ", colour)
        about = visible(_ID.sub(r"…\1", about))  # the end of an id tells it from others
        line.append(f"{about:<{column}}", faint)
        if detail.plain:
            line.append(" ").append_text(detail)
        line.rstrip()
        if width is not None:
            line.truncate(width, overflow="ellipsis")
        self.console.print(line, soft_wrap=True)


def _assignments(fields: Mapping[str, Any]) -> str:
    shown = {visible(name): "null" if value is None else visible(str(value)) for name, value in fields.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


class Demo:
    """All parts of the demo, running. Main thread only."""

    def __init__(self, exits: ExitStack, screen: DemoScreen, folder: Path) -> None:
        """Start all parts; `exits` stops them in order."""
        self.screen, self.folder, self.children = screen, folder, dict[str, subprocess.Popen[bytes]]()
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
        self.identity = IdentityService(self.webhooks)
        self.commercial = CommercialService(fail_share=_FAIL_SHARE, latency=_LATENCY_SECONDS, on_call=screen.call)
        self.identity_url = exits.enter_context(served(self.identity.app))
        self.commercial_url = exits.enter_context(served(self.commercial.app))
        users = _write_private(folder / "users", f"{_PAGE_USER}:operator:{hash_password(self.page_password)}\n")
        urls = {"identity_url": self.identity_url, "commercial_url": self.commercial_url, "database_url": url}
        _write_private(folder / "inbox.toml", configuration(users=f"file:{users}", token=token, **urls))
        screen.say("starting the relay, the receiver and the page")
        exits.callback(self._stop)
        self.start_relay()
        self.receiver_url = self._serve("receiver", "inbox.gunicorn_settings", 0)
        self.page_url = self._serve("page", "relay.web.gunicorn_settings", _PAGE_PORT)
        self.webhooks.url = f"{self.receiver_url}/webhooks/trivore"

    def start_relay(self) -> None:
        """Start a relay."""
        self._start("relay", "relay", "run", "--verbose")

    def _serve(self, name: str, settings: str, port: int) -> str:
        # The socket is made here and passed on: no other program can take the port, and who connects early waits.
        with _listener(port) as listener:
            number = listener.fileno()
            self._start(name, "gunicorn", "-c", f"python:{settings}", "--bind", f"fd://{number}", pass_fds=[number])
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def _start(self, name: str, *arguments: str, pass_fds: Sequence[int] = ()) -> None:
        """Start a program in a process group of its own: Ctrl-C in a terminal reaches only the demo, which then stops it."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(  # noqa: S603  # our own Python, our own arguments
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=_environment(self.folder),
                pass_fds=pass_fds,
                process_group=0,
            )

    def _stop(self) -> None:
        """End all programs with SIGTERM, and one that takes too long with its whole group by SIGKILL."""
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            try:
                child.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)

    def pause(self, seconds: float) -> None:
        """Let time pass. Raises DemoError with the end of its log when a program has ended."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
            for name, child in self.children.items():
                if child.poll() is not None:
                    log = self.folder / f"{name}.log"
                    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
                    raise DemoError(f"the {name} has ended with status {child.returncode}; the end of {log}:\n{tail}")

    def until(self, done: Callable[[], bool]) -> bool:
        """Wait, at most `_PATIENCE_SECONDS`; return false when it took longer. Raises as `pause`."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
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
        self.commercial.fail_share = 0.0  # a command makes its calls once
        for change in (scenario.edit(USER, report=False), scenario.edit(GROUP, report=False)):
            self.screen.change(change)
        for row in json.loads(self._run("sweep", "--source", "trivore", "--json")[1]):
            counts = f"{row['compared']} compared, {row['missed']} missed, {row['added']} added"
            self.screen.command("sweep", row["entity_type"], counts)
        self.until(self.is_settled)
        self.screen.change(scenario.delete(report=False))
        found = json.loads(self._run("plan", "--route", ROUTES[0], "--json")[1])
        changes = {f"{row['entity_type']}/{row['entity_id']}": row["change"] for row in found}
        for entity, change in changes.items():
            self.screen.command("plan", entity, f"to {change}")
            self._run("replay", "--route", ROUTES[0], "--entity", entity, "--reason", "no webhook came", "--yes")
            self.screen.command("replay", entity, "delivered again")
        self.until(self.is_settled)
        in_sync = [self._plan(route) for route in ROUTES]
        return all(in_sync)

    def _plan(self, route: str) -> bool:
        status, output = self._run("plan", "--route", route)
        verdict = next((line for line in reversed(output.splitlines()) if "compare" in line), output)
        self.screen.command("plan", route, verdict)
        return status == 0

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


def _environment(folder: Path) -> dict[str, str]:
    """Return this process's environment without what would override the file."""
    others = {"INBOX_DATABASE_URL", "GUNICORN_CMD_ARGS"}
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return {**kept, "INBOX_CONFIG": str(folder / "inbox.toml"), "WEB_CONCURRENCY": "2", "PYTHONUNBUFFERED": "1"}


def run_demo(console: Console, folder: Path | None, *, stay: bool) -> bool:
    """Run until the verdict, then stop everything; with `stay` not before Ctrl-C, SIGTERM or SIGHUP. Return true when all is well.

    Raises:
        DemoError: something does not start, or ends by itself; the folder with the logs stays.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    console.print(_INTRODUCTION)
    is_well = False
    with _folder(folder) as path:
        try:
            with ExitStack() as exits:
                demo = Demo(exits, DemoScreen(console), path)
                scenario = Scenario(demo.identity, random.Random())  # noqa: S311  # luck
                is_well = _judge(demo, scenario)
                if stay:
                    _stay(demo, scenario)
        except KeyboardInterrupt:
            console.print("stopped in order")
    return is_well


def _judge(demo: Demo, scenario: Scenario) -> bool:
    """Make a round of changes, kill the relay over its work, and compare both services at the end."""
    screen = demo.screen
    screen.say(f"the page is at {demo.page_url}: sign in as {_PAGE_USER}, password {demo.page_password}")
    for number in range(1, CHANGES + 1):
        screen.change(scenario.step())
        if number == 1:
            demo.until(lambda: screen.calls > 0)  # the programs have started
        if number == KILL_AFTER:
            demo.children["relay"].kill()
            demo.children["relay"].wait()
            demo.start_relay()
            screen.say("killed the relay (SIGKILL), and started another: it takes over after 15 s")
        demo.pause(_PAUSE_SECONDS)
    in_sync = demo.find_unreported(scenario)
    found, counts = differences(demo.identity, demo.commercial), demo.counts()
    screen.console.print(
        f"\n{screen.webhooks} webhooks, {counts['events']} events, {counts['duplicates']} duplicates recognised;"
        f" {screen.calls} calls, {screen.failed_calls} failed on purpose;"
        f" {counts.get('delivered', 0)} delivered, {counts.get('superseded', 0)} superseded,"
        f" {counts.get('unchanged', 0)} with nothing new, {counts.get('dead', 0)} dead"
    )
    for difference in found:
        screen.console.print(Text(visible(difference)))
    is_well = in_sync and not found and demo.is_settled()
    records = len(demo.identity.all(USER)) + len(demo.identity.all(GROUP))
    agree = f"[bold green]Both services agree[/] in all fields of {records} users and groups."
    screen.console.print(agree if is_well else "[bold red]The services do not agree[/]")
    return is_well


def _stay(demo: Demo, scenario: Scenario) -> None:
    """Make a change now and then, until Ctrl-C; SIGUSR1 lets the commercial service fail all calls, and ends that."""

    def switch(_number: int, _frame: object) -> None:
        demo.commercial.fail_share = _FAIL_SHARE if demo.commercial.fail_share == 1.0 else 1.0

    demo.commercial.fail_share = _FAIL_SHARE
    signal.signal(signal.SIGUSR1, switch)
    for name, value in (
        ("page", f"{demo.page_url}  (sign in as {_PAGE_USER}, password {demo.page_password})"),
        ("identity", f"{demo.identity_url}/api/rest/v1/user  (Basic demo:demo)"),
        ("commercial", f"{demo.commercial_url}/contacts and /teams  (Bearer demo)"),
        ("receiver", f"{demo.receiver_url}/webhooks/trivore  (pid {demo.children['receiver'].pid})"),
        ("relay", f"pid {demo.children['relay'].pid}, its log is relay.log in {demo.folder}"),
        ("look into it", f"export INBOX_CONFIG={shlex.quote(str(demo.folder / 'inbox.toml'))}; relay status"),
        ("break it", f"kill -USR1 {os.getpid()}  fails all calls; once more ends that"),
        ("end it", "Ctrl-C; until then a user or a group changes every few seconds"),
    ):
        demo.screen.console.print(Text(f"{name:<13}", "bold").append(visible(value), "none"), soft_wrap=True)
    while True:
        demo.screen.change(scenario.step())
        demo.pause(_LIVE_PAUSE_SECONDS)


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
