"""`relay demo`: runs the product with both services, prints each change, webhook and call, and compares the services."""

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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Template

from rich.console import Console
from rich.text import Text
from sqlalchemy import text

from inbox.clock import Clock, SystemClock
from inbox.db import engine, migrate
from inbox.observe.visible import visible
from relay.accounts import hash_password
from relay.demo.scenario import ChangeMade, Scenario
from relay.demo.services import GROUP, USER, CommercialService, IdentityService, WebhookSender, serve
from relay.store.database import Database

CHANGES, KILL_AFTER = 40, 25
"""Number of changes to users and groups, and the number after which the relay is killed."""
_PAUSE_SECONDS, _LIVE_PAUSE_SECONDS, _POLL_SECONDS = 0.3, 4.0, 0.2
_PATIENCE_SECONDS, _GRACE_SECONDS = 90.0, 25.0
_A_MOMENT_SECONDS = 1.1
"""Pause before unreported changes. With times in whole seconds, a sweep could mistake an unreported change for a reported one."""
_FAIL_SHARE, _LOST_SHARE = 0.1, 0.05
_PAGE_USER, _PAGE_PORT = "demo", 8025
_COLUMN = 24
_COLOURS = {"change": "bold", "webhook": "cyan", "call": "magenta", "command": "bold yellow"}
_ID = re.compile(r"[0-9a-f]{20}([0-9a-f]{4})")
_INTRODUCTION = "[bold]Inbox Relay[/] keeps two services in sync, while one call in ten fails on purpose."
ROUTES = ("users-to-contacts", "groups-to-teams")
_OPEN = text("SELECT count(*) FROM open_delivery WHERE state NOT IN ('dead', 'blocked')")


class DemoError(Exception):
    """The demo can't continue; the text has the reason and a remedy."""


def configuration(**values: str) -> str:
    """Make the text of `inbox.toml` from `database_url`, `users`, `token`, `identity_url` and `commercial_url`."""
    template = Template(Path(__file__).with_name("inbox.toml").read_text(encoding="utf-8"))
    return template.substitute({name: json.dumps(value, ensure_ascii=False) for name, value in values.items()})


class DemoScreen:
    """Prints a line for each event, from any thread."""

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        self.console, self._clock = console, clock or SystemClock()
        self.seen = Counter[str]()
        """Number of lines of each kind, and of failed calls."""

    def change(self, change: ChangeMade) -> None:
        """Show a change of the identity service."""
        fields = _assignments(change.fields) or ("no mapped field" if change.action == "update" else "")
        detail = fields if change.is_reported else f"no webhook: {fields}"
        self.line("change", change.action.upper(), change.name, detail)

    def webhook(self, payload: Mapping[str, str], status: int | None) -> None:
        """Show a webhook that was sent."""
        detail = "no answer; it is sent again" if status is None else ""
        self.line("webhook", payload["eventType"], f"{payload['entityType']} {payload['id']}", detail, status or 0)

    def call(self, method: str, path: str, status: int, changed: Mapping[str, str | None]) -> None:
        """Show a call to the commercial service, with the fields that changed."""
        is_on_purpose = status == 503  # noqa: PLR2004  # HTTP status
        self.seen["failed"] += is_on_purpose
        self.line(
            "call", method, path, "on purpose; the relay retries" if is_on_purpose else _assignments(changed), status
        )

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        self.console.print(Text(visible(sentence), "dim"), soft_wrap=True)

    def line(self, kind: str, verb: str, about: str, detail: str = "", status: int | None = None) -> None:
        """Print columns, truncated to a terminal's width unless it is a command."""
        self.seen[kind] += 1
        about = visible(_ID.sub(r"…\1", about))  # ids differ in their ends
        colour = "green" if status in range(200, 400) else "bold red"
        line = Text.assemble(
            (f"{self._clock.now():%H:%M:%S} ", "dim"),
            (f"{kind:<7} ", _COLOURS[kind]),
            f"{visible(verb):<6} ",
            (f"{'' if status is None else status or '---':<3} ", colour),
            f"{about:<{_COLUMN}} ",
            visible(detail),
        )
        line.rstrip()
        if kind == "command":
            self.console.print(line, soft_wrap=True)
        else:
            self.console.print(line, no_wrap=True, overflow="ellipsis")


def _assignments(fields: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name}={'null' if value is None else value}" for name, value in fields.items())


class Demo:
    """The running parts of the demo. Main thread only."""

    def __init__(self, exits: ExitStack, screen: DemoScreen, folder: Path) -> None:
        """Start all parts; `exits` stops them in order."""
        self.screen, self.folder, self.children = screen, folder, dict[str, subprocess.Popen[bytes]]()
        others = {"INBOX_DATABASE_URL", "GUNICORN_CMD_ARGS"}  # they would override the file
        kept = {name: value for name, value in os.environ.items() if name not in others}
        own = {"INBOX_CONFIG": str(folder / "inbox.toml"), "WEB_CONCURRENCY": "2", "PYTHONUNBUFFERED": "1"}
        self._environment = {**kept, **own}
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
        self.commercial = CommercialService(fail_share=_FAIL_SHARE, on_call=screen.call)
        self.identity_url = exits.enter_context(serve(self.identity.app))
        self.commercial_url = exits.enter_context(serve(self.commercial.app))
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
        try:
            listener = socket.create_server(("127.0.0.1", port))
        except OSError:  # another program has it
            listener = socket.create_server(("127.0.0.1", 0))
        with listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        self._start(name, "gunicorn", "-c", f"python:{settings}", "--bind", address)
        return f"http://{address}"

    def _start(self, name: str, *arguments: str) -> None:
        """Start a program in its own process group: Ctrl-C in a terminal reaches only the demo, which then stops it."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(  # noqa: S603  # our own Python, our own arguments
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment,
                process_group=0,
            )

    def _stop(self) -> None:
        """Stop all programs with SIGTERM. If one takes too long, send SIGKILL to its whole process group."""
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            try:
                child.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)

    def pause(self, seconds: float) -> None:
        """Wait. Raises DemoError with the end of the log if a program has ended."""
        self._until(lambda: False, seconds)

    def settle(self) -> bool:
        """Wait until every webhook is accepted and the relay has no work left; return False when it takes too long."""
        return self._until(self._is_settled, _PATIENCE_SECONDS)

    def await_receiver(self) -> None:
        """Wait until the receiver listens."""
        self._until(self._is_listening, _PATIENCE_SECONDS)

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.receiver_url.rpartition(":")[2]))) == 0

    def await_call(self) -> None:
        """Wait for the relay's first call."""
        self._until(lambda: self.screen.seen["call"] > 0, _PATIENCE_SECONDS)

    def _until(self, done: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (is_done := done()) and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
            for name, child in self.children.items():
                if child.poll() is not None:
                    log = self.folder / f"{name}.log"
                    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
                    raise DemoError(f"the {name} has ended with status {child.returncode}; the end of {log}:\n{tail}")
        return is_done

    def _is_settled(self) -> bool:
        if self.webhooks.pending():
            return False
        with self._database.read() as transaction:
            return not transaction.execute(_OPEN)[0][0]

    def find_unreported(self, scenario: Scenario) -> bool:
        """Make unreported changes, and find them with the relay's own commands; return True when in sync."""
        self.settle()
        self.pause(_A_MOMENT_SECONDS)
        self.commercial.fail_share = 0.0  # a command makes its calls once
        for change in (scenario.edit(USER, report=False), scenario.edit(GROUP, report=False)):
            self.screen.change(change)
        self._run("sweep", "--source", "trivore", "--reason", "no webhook came", "--yes")
        self.settle()
        gone = scenario.delete(report=False)
        self.screen.change(gone)
        self._run("plan", "--route", ROUTES[0])
        entity = ("--entity", f"USER/{gone.entity_id}")
        self._run("replay", "--route", ROUTES[0], *entity, "--reason", "no webhook came", "--yes")
        self.settle()
        return sum(self._run("plan", "--route", route) for route in ROUTES) == len(ROUTES)

    def _run(self, *command: str) -> bool:
        """Run `relay COMMAND` and show its output; return True if it exits with 0."""
        self.screen.line("command", command[0], " ".join(command[1:]))
        ended = subprocess.run(  # noqa: S603  # our own
            [sys.executable, "-m", "relay", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            text=True,
            check=False,
            process_group=0,  # Ctrl-C in a terminal reaches only the demo
        )
        for line in ended.stdout.splitlines():
            self.screen.say(f"  {line}")
        return ended.returncode == 0


def run_demo(console: Console, folder: Path | None, *, stay: bool) -> bool:
    """Run until the verdict, or with `stay` until an interrupt, then stop everything. Return True if both services agree.

    Raises:
        DemoError: a program does not start, or ends by itself; the folder with the logs stays.
    """
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
            console.print("stopped")
    return is_well


def _judge(demo: Demo, scenario: Scenario) -> bool:
    """Make a round of changes, kill the relay while it works, and compare both services at the end."""
    screen = demo.screen
    screen.say(f"the page is at {demo.page_url}: sign in as {_PAGE_USER}, password {demo.page_password}")
    demo.await_receiver()
    for number in range(1, CHANGES + 1):
        screen.change(scenario.step())
        if number == 1:
            demo.await_call()
        if number == KILL_AFTER:
            demo.children["relay"].kill()
            demo.children["relay"].wait()
            demo.start_relay()
            screen.say("killed the relay (SIGKILL) and started another one, which takes over after 15 s")
        demo.pause(_PAUSE_SECONDS)
    is_well, seen = demo.find_unreported(scenario) and demo.settle(), screen.seen
    screen.console.print(
        f"\n{seen['change']} changes, {seen['webhook']} webhooks, {seen['call']} calls, {seen['failed']} failed on purpose"
    )
    records = len(demo.identity.all(USER)) + len(demo.identity.all(GROUP))
    agree = f"[bold green]Both services agree[/] on all fields of {records} users and groups."
    screen.console.print(agree if is_well else "[bold red]The services do not agree[/]")
    return is_well


def _stay(demo: Demo, scenario: Scenario) -> None:
    """Make a change every few seconds until an interrupt."""
    demo.commercial.fail_share = _FAIL_SHARE
    for name, value in (
        ("page", f"{demo.page_url}  (sign in as {_PAGE_USER}, password {demo.page_password})"),
        ("identity", f"{demo.identity_url}/api/rest/v1/user  (Basic demo:demo)"),
        ("commercial", f"{demo.commercial_url}/contacts and /teams  (Bearer demo)"),
        ("receiver", f"{demo.receiver_url}/webhooks/trivore  (pid {demo.children['receiver'].pid})"),
        ("relay", f"pid {demo.children['relay'].pid}, its log is relay.log in {demo.folder}"),
        ("to inspect", f"export INBOX_CONFIG={shlex.quote(str(demo.folder / 'inbox.toml'))}; relay status"),
        ("to stop", "Ctrl-C; until then a user or a group changes every few seconds"),
    ):
        demo.screen.console.print(Text(f"{name:<13}", "bold").append(visible(value), "none"), soft_wrap=True)
    while True:
        demo.screen.change(scenario.step())
        demo.pause(_LIVE_PAUSE_SECONDS)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """Make the demo's folder. A temporary one, which contains the token, is deleted at the end unless the demo fails."""
    folder = given.absolute() if given else Path(tempfile.mkdtemp(prefix="inbox-relay-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DemoError(f"{folder} is not empty: give another folder with --folder")
    yield folder
    if given is None:
        shutil.rmtree(folder, ignore_errors=True)


def _write_private(path: Path, content: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(content, encoding="utf-8")
    return path
