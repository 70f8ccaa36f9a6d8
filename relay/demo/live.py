"""`relay demo`: webhooks become PATCHes, line by line, until it is stopped."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from inbox.cli.terminal import cell, say
from relay.demo.happenings import Happenings, Stopped
from relay.demo.scenario import A_MOMENT_SECONDS, Scenario
from relay.demo.screen import Screen
from relay.demo.stack import Stack

USERS, GROUPS = 6, 2
BURST = 30
"""After so many changes, and so many again and again, a few follow that no webhook tells of, and are looked for."""
_BURST_PAUSE_SECONDS = 0.3
_PAUSE_SECONDS = 4.0
_LOOK_SECONDS = 0.2
_SETTLED_SECONDS = 20.0

_INTRODUCTION = """\
[bold]Inbox Relay[/] keeps a commercial service in step with an identity service.
  [bold]change[/]   somebody edits a user or a group in the identity service
  [cyan]webhook[/]  which tells the receiver; that stores it, and only then answers 200
  [magenta]call[/]     the relay fetches the entity, finds its counterpart, and POSTs,
           PATCHes or DELETEs it; one call in ten fails on purpose
  [blue]relay[/]    it read something too old, or nothing new was to be sent
  [bold yellow]command[/]  `relay sweep` finds what no webhook told, `relay plan` compares all
"""


def run_live(console: Console, *, folder: Path | None, database_url: str | None, seed: int) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP, then stop everything in order.

    Raises:
        DemoError: something does not start, or ends by itself.
        ConfigError: the database can't be used.
    """
    screen = Screen(console)
    happenings = Happenings(screen.happened)
    console.print(_INTRODUCTION)
    stack = Stack(
        happenings,
        folder=folder,
        database_url=database_url,
        luck=str(seed),
        starting=lambda part: say(f"starting {part}", on=console, style="dim"),
    )
    with happenings.stopping():
        try:
            with stack:
                _keep_changing(stack, screen, happenings, console, random.Random(seed))  # noqa: S311  # luck
        except Stopped as stopped:
            say(f"stopped in order after {stopped}; everything stays in the folder", on=console)


def _keep_changing(stack: Stack, screen: Screen, happenings: Happenings, console: Console, rng: random.Random) -> None:
    """Thirty changes to begin with, then one now and then. Never returns.

    Raises:
        Stopped: a signal came.
        DemoError: the receiver, the relay or a command has ended as it should not.
    """
    scenario = Scenario(stack.identity, rng, users=USERS, groups=GROUPS)
    watch = _Watch(stack, happenings)
    console.print()
    number = 0
    try:
        while True:
            screen.made(scenario.step())
            number += 1
            watch.wait(_BURST_PAUSE_SECONDS if number <= BURST else _PAUSE_SECONDS)
            if number == BURST:
                console.print(where(stack))
            if number % BURST == 0:
                _miss_and_find(stack, screen, watch, scenario)
    except Stopped:
        console.print("\n[bold]stopping[/] the webhooks, the receiver, the relay, the services")
        raise


class _Watch:
    """Lets time pass, and has what the relay notes meanwhile shown."""

    def __init__(self, stack: Stack, happenings: Happenings) -> None:
        self._stack, self._happenings = stack, happenings

    def wait(self, seconds: float) -> None:
        """Raises as `_keep_changing`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._happenings.wait(min(left, _LOOK_SECONDS))
            for note in self._stack.ledger.notes():
                self._happenings.hear(note)
            self._stack.check()
        self._happenings.wait(0)

    def wait_until_settled(self) -> None:
        """At most so long. Raises as `_keep_changing`."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        while not self._stack.is_settled() and time.monotonic() < deadline:
            self.wait(_LOOK_SECONDS)


def _miss_and_find(stack: Stack, screen: Screen, watch: _Watch, scenario: Scenario) -> None:
    """Changes that no webhook tells of, a deletion among them; the relay's own commands find them."""
    watch.wait_until_settled()
    watch.wait(A_MOMENT_SECONDS)
    untold = scenario.change_untold(stack.ledger.entities_under_way())
    for made in untold:
        screen.made(made)
    chosen = {made.entity_id for made in untold}
    with stack.well():
        stack.orders.sweep()
        watch.wait_until_settled()
        quiet = scenario.edit_quietly(chosen)
        for made in quiet:
            screen.made(made)
        watch.wait_until_settled()
        busy = stack.ledger.entities_under_way() | chosen | {made.entity_id for made in quiet}
        screen.made(scenario.delete_untold(busy))
        for orphan in stack.orders.orphans(stack.ledger.entities_under_way()):
            stack.orders.replay(orphan)
        watch.wait_until_settled()
        stack.orders.plan()


def where(stack: Stack) -> Padding:
    """What runs where, and how to look at it."""
    table = Table(box=None, pad_edge=False, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = (
        ("identity", f"{stack.identity_url}/api/rest/v1/user  (Basic demo:demo)"),
        ("receiver", f"{stack.receiver_url}/webhooks/trivore  (pid {stack.receiver.pid})"),
        ("relay", f"pid {stack.relay.pid}, its log is {stack.relay.log.name} in the folder"),
        ("commercial", f"{stack.commercial_url}/contacts and /teams  (Bearer demo)"),
        ("folder", str(stack.folder)),
        ("look into it", f"export INBOX_CONFIG={shlex.quote(str(stack.configuration_path))}"),
        ("", f"{_command('inbox')} list"),
        ("", f"{_command('relay')} status"),
        ("end it", "Ctrl-C; until then a user or a group changes every few seconds"),
    )
    for name, value in rows:
        table.add_row(name, cell(value))
    return Padding(table, (1, 0), expand=False)


def _command(name: str) -> str:
    """How to type a command of this installation: by name when the shell finds this very one, or else by path."""
    own = Path(sys.executable).parent / name
    unset = "env -u INBOX_DATABASE_URL " if "INBOX_DATABASE_URL" in os.environ else ""
    if shutil.which(name) == str(own):
        return f"{unset}{name}"
    relative = os.path.relpath(own)
    return unset + shlex.quote(str(own) if relative.startswith("..") else relative)
