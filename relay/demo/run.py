"""Runs of the demo: `relay demo` shows what happens until it is stopped, `relay demo --once` ends with a verdict."""

from __future__ import annotations

import itertools
import os
import random
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from inbox.cli.terminal import say
from relay.demo.commercial import CallMade
from relay.demo.compare import Mismatch, compare
from relay.demo.events import DemoEvent, DemoEvents, Stopped
from relay.demo.scenario import A_MOMENT_SECONDS, ChangeMade, Scenario
from relay.demo.screen import Bars, DemoScreen, panel, summary_of
from relay.demo.stack import FAIL_SHARE, PAGE_USER, Stack
from relay.demo.webhooks import WebhookSent
from relay.demo.workspace import Folder

LIVE_USERS, LIVE_GROUPS = 6, 2
BURST = 30
"""After so many changes, and so many again and again, a few follow that no webhook reports; commands find them."""
_BURST_PAUSE_SECONDS, _LIVE_PAUSE_SECONDS = 0.3, 4.0
_LIVE_PATIENCE_SECONDS = 20.0
_ROWS_TO_PIN = 24
"""Rows of a terminal in which the addresses stay below what happens; a smaller one has no room for both."""

USERS, GROUPS, CHANGES = 20, 5, 240
KILL_AFTER, RESTART_AFTER = 60, 100
"""The relay is killed after so many changes, and a new one started after so many."""
AGREE_SECONDS = 90.0
"""The longest time until nothing is left to do."""
_LOST_SHARE = 0.05
_FREE_USERS = 3
_PAUSE_SECONDS = 0.03
_CATCH_SECONDS, _CATCH_POLL_SECONDS, _CATCH_ENOUGH = 2.0, 0.005, 3

_POLL_SECONDS = 0.2
_UNAVAILABLE = 503
_SUCCESSES = range(200, 300)
_COUNTED = (
    *("entities", "fields", "changes", "created", "updated", "deleted", "webhooks", "webhooks_rejected", "calls"),
    *("calls_failed_503", "in_flight_when_killed", "unreported", "swept", "orphans", "in_sync", "not_in_sync"),
)
_LOGGED = ("duplicates", "delivered", "superseded", "rearmed", "replayed", "unchanged")
_INTRODUCTION = """\
[bold]Inbox Relay[/] keeps a commercial service in sync with an identity service.
  [bold]change[/]   somebody edits a user or a group in the identity service
  [cyan]webhook[/]  which reports it; the receiver stores that, and only then answers 200
  [magenta]call[/]     the relay fetches the entity, finds its counterpart, and POSTs,
           PATCHes or DELETEs it; one call in ten fails on purpose
  [blue]relay[/]    it read something too old, or nothing new was to be sent
  [bold yellow]command[/]  `relay sweep` finds missed webhooks, `relay plan` compares all
"""


class DemoRun:
    """The events, the counts and the view of one run; `start` adds the stack and the scenario. Main thread only."""

    def __init__(self, view: DemoScreen | Bars, seed: int) -> None:
        self.view, self.seed = view, seed
        self.counts: Counter[str] = Counter()
        self._is_outage_asked = False
        self.chosen: set[str] = set()  # ids of the entities that `miss_and_find` has changed
        self.events = DemoEvents(self._on_event)

    @contextmanager
    def start(
        self,
        given: Path | None,
        database_url: str | None,
        *,
        users: int,
        groups: int,
        lost_share: float = 0.0,
        with_page: bool = False,
    ) -> Iterator[None]:
        """Run the stack while it is open. Raises as `Stack`. A part that fails leaves the folder with its logs."""
        self.folder = Folder(given)
        with ExitStack() as exits:
            exits.callback(self.folder.close)
            exits.push(self._keep_after_failure)
            self.stack = Stack(
                exits,
                self.events,
                lambda part: self.view.say(f"starting {part}"),
                self.folder.path,
                database_url,
                seed=self.seed,
                lost_share=lost_share,
                with_page=with_page,
            )
            rng = random.Random(self.seed)  # noqa: S311  # reproducible, not secret
            self.scenario = Scenario(self.stack.identity, rng, users=users, groups=groups)
            yield

    def _keep_after_failure(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, Stopped):
            self.folder.keep = True

    def change(self) -> None:
        """Make the scenario's next change."""
        self._made(self.scenario.step())

    def pause(self, seconds: float) -> None:
        """Let time pass. Raises Stopped after a signal, and DemoError when the receiver or the relay has ended."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.events.wait(min(left, _POLL_SECONDS))
            for note in self.stack.ledger.notes():
                self.events.handle(note)
            self.view.advance(self.counts["changes"], self.stack.ledger.progress())
            self.stack.check()

    def until(self, done: Callable[[], bool], seconds: float) -> None:
        """Waits, at most so long. Raises as `pause`."""
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            self.pause(_POLL_SECONDS)

    def miss_and_find(self, is_calm: Callable[[], bool], patience: float) -> list[Mismatch]:
        """Make changes that no webhook reports, a deletion among them, and find them by the relay's own commands.

        `is_calm` tells when users can be chosen whose earlier changes have ended, so that it is certain what follows;
        `patience` is how many seconds to wait for it. Raises as `pause`, and DemoError when a command fails.
        """
        stack, scenario, counts = self.stack, self.scenario, self.counts
        self.chosen.clear()
        self.until(is_calm, patience)
        self.pause(A_MOMENT_SECONDS)
        self._made(*scenario.change_unreported(self.busy()))
        stack.commercial.fail_share = 0.0  # a command makes its calls once
        counts["swept"] += stack.commands.sweep()
        self.until(is_calm, patience)
        self._made(*scenario.edit_quietly(self.busy()))
        self.until(is_calm, patience)
        self._made(scenario.delete_unreported(self.busy()))
        counts["orphans"] += stack.commands.replay_orphans(stack.ledger.busy_entities())
        self.until(stack.is_settled, patience)
        compared, differences = compare(stack.identity, stack.commercial, scenario.deleted)
        counts["entities"], counts["fields"] = len(compared), sum(map(len, compared))
        counts["in_sync"], counts["not_in_sync"] = stack.commands.plan()
        stack.commercial.fail_share = FAIL_SHARE
        return differences

    def ask_outage(self) -> None:
        """Ask for a stop of the commercial service, or for its start; safe in a signal handler."""
        self._is_outage_asked = not self._is_outage_asked

    def switch_commercial(self) -> None:
        """Stop or start the commercial service as was asked. Never while commands run that need it.

        Raises:
            DemoError: it can't be started again.
        """
        if self._is_outage_asked and self.stack.is_commercial_up:
            self.stack.stop_commercial()
            self.view.say("stopped the commercial service: its calls fail from now on; the page shows what follows")
        elif not self._is_outage_asked and not self.stack.is_commercial_up:
            self.stack.start_commercial()
            self.view.say("started the commercial service again: see on the page what is left to repair")

    def busy(self) -> set[str]:
        """Return ids of entities with an open delivery, and of those that `miss_and_find` has changed."""
        return self.stack.ledger.busy_entities() | self.chosen

    def numbers(self) -> dict[str, int]:
        """Return what was counted here, at the services and in the database."""
        self.events.wait(0)
        facts, progress = self.stack.ledger.facts(), self.stack.ledger.progress()
        return {
            **{name: self.counts[name] for name in _COUNTED},
            **{name: facts[name] for name in _LOGGED},
            **{name: progress[name] for name in ("events", "dead", "still_open")},
            "webhooks_unsent": self.stack.webhooks.pending(),
            "rescued": facts["abandoned"],
            "failed_attempts": facts["attempt_failed"] - facts["stale"],
            "stale_reads": facts["stale"],
        }

    def _made(self, *changes: ChangeMade) -> None:
        for change in changes:
            self.chosen.add(change.entity_id)
            self.counts.update(("changes", f"{change.action}d"))
            self.counts["unreported"] += not change.is_reported and change.action != "delete"
            self.view.show_change(change)

    def _on_event(self, event: DemoEvent) -> None:
        match event:
            case CallMade(status=status):
                self.counts["calls"] += 1
                self.counts["calls_failed_503"] += status == _UNAVAILABLE
            case WebhookSent(status=status):
                self.counts["webhooks"] += 1
                self.counts["webhooks_rejected"] += status not in _SUCCESSES
        self.view.show(event)


def run_live(console: Console, seed: int, folder: Path | None, database_url: str | None) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP, then stop everything in order: `relay demo`.

    Raises:
        DemoError: something does not start, or ends by itself.
        ConfigError: the database can't be used.
    """
    console.print(_INTRODUCTION)
    run = DemoRun(DemoScreen(console), seed)
    with run.events.stopping():
        try:
            with (
                run.start(folder, database_url, users=LIVE_USERS, groups=LIVE_GROUPS, with_page=True),
                run.events.on_outage_signal(run.ask_outage),
            ):
                _keep_changing(run, console)
        except Stopped as stopped:
            say(f"stopped in order after {stopped}; {run.folder.ending}", on=console)


def _keep_changing(run: DemoRun, console: Console) -> None:
    """Make a burst of changes, then one now and then. Never returns."""
    box = panel(_places(run))
    pins = console.is_terminal and console.height >= _ROWS_TO_PIN
    console.print()
    try:
        with Live(box, console=console, auto_refresh=False, transient=True) if pins else nullcontext():
            for number in itertools.count(1):
                run.change()
                run.pause(_BURST_PAUSE_SECONDS if number <= BURST else _LIVE_PAUSE_SECONDS)
                if number == BURST and not pins:
                    console.print(box)
                run.switch_commercial()
                if number % BURST == 0 and run.stack.is_commercial_up:
                    run.until(run.stack.is_settled, _LIVE_PATIENCE_SECONDS)
                    if run.stack.is_settled():  # not while the backlog of an outage is delivered
                        run.miss_and_find(run.stack.is_settled, _LIVE_PATIENCE_SECONDS)
    except Stopped:
        console.print("\n[bold]stopping[/] the page, the webhooks, the receiver, the relay, the services")
        raise


def run_once(console: Console, seed: int, folder: Path | None, database_url: str | None) -> dict[str, Any]:
    """Change a lot, kill the relay, wait until both services agree, and stop everything: `relay demo --once`.

    Raises:
        DemoError: something does not start, or ends by itself.
        ConfigError: the database can't be used.
        Stopped: SIGINT, SIGTERM or SIGHUP came; everything has been stopped.
    """
    began = time.monotonic()
    bars = Bars(console, CHANGES)
    run = DemoRun(bars, seed)

    def is_calm() -> bool:
        return not run.stack.webhooks.pending() and len(run.scenario.free_users(run.busy())) >= _FREE_USERS

    with (
        run.events.stopping(),
        bars.progress,
        run.start(folder, database_url, users=USERS, groups=GROUPS, lost_share=_LOST_SHARE),
    ):
        bars.say(f"everything is in {run.folder.path}; the seed is {seed}")
        for number in range(1, CHANGES + 1):
            run.change()
            # Before the kill changes come in a burst, so that the relay has its hands full.
            if not KILL_AFTER - USERS < number <= KILL_AFTER:
                run.pause(_PAUSE_SECONDS)
            if number == KILL_AFTER:
                _kill_relay(run)
            elif number == RESTART_AFTER:
                run.stack.start_relay()
                bars.say(f"relay {run.stack.relay.pid} works; the killed one's leases end after 15 s")
        differences = run.miss_and_find(is_calm, AGREE_SECONDS)
        seconds = round(time.monotonic() - began, 1)
        summary = summary_of(differences, run.numbers(), seed=seed, seconds=seconds, folder=str(run.folder.path))
        run.folder.keep |= not summary["agree"]
        bars.say(f"stopping the receiver, the relay and the services; {run.folder.ending}")
    return summary


def _kill_relay(run: DemoRun) -> None:
    """Kill it while it works on something, so that there is something to take over."""
    ledger, pid = run.stack.ledger, run.stack.relay.pid
    deadline = time.monotonic() + _CATCH_SECONDS
    while ledger.progress()["in_flight"] < _CATCH_ENOUGH and time.monotonic() < deadline:
        run.events.wait(_CATCH_POLL_SECONDS)
    run.stack.kill_relay()
    caught = run.counts["in_flight_when_killed"] = ledger.progress()["in_flight"]
    run.view.say(f"killed relay {pid} (SIGKILL) over {caught} deliveries; changes go on")


def _places(run: DemoRun) -> list[tuple[str, str]]:
    """List the address of each part, and commands to inspect it."""
    stack = run.stack
    page = f"{stack.page_url}  (sign in as {PAGE_USER}, password {stack.page_password})"
    return [
        *([("page", page)] if stack.page_url else []),
        ("identity", f"{stack.identity_url}/api/rest/v1/user  (Basic demo:demo)"),
        ("receiver", f"{stack.receiver_url}/webhooks/trivore  (pid {stack.receiver.pid})"),
        ("relay", f"pid {stack.relay.pid}, its log is {stack.relay.log.name} in the folder"),
        ("commercial", f"{stack.commercial_url}/contacts and /teams  (Bearer demo)"),
        ("folder", f"{run.folder.path}{'' if run.folder.keep else ', removed at the end'}"),
        ("look into it", f"export INBOX_CONFIG={shlex.quote(str(stack.configuration_path))}"),
        ("", f"{_command('inbox')} list"),
        ("", f"{_command('relay')} status"),
        ("break it", f"kill -USR1 {os.getpid()}  stops commercial; once more starts it"),
        ("end it", "Ctrl-C; until then a user or a group changes every few seconds"),
    ]


def _command(name: str) -> str:
    """Spell a command of this installation: by name when the shell finds this very one, or else by path."""
    own = Path(sys.executable).parent / name
    unset = "env -u INBOX_DATABASE_URL " if "INBOX_DATABASE_URL" in os.environ else ""
    if shutil.which(name) == str(own):
        return unset + name
    relative = os.path.relpath(own)
    return unset + shlex.quote(str(own) if relative.startswith("..") else relative)
