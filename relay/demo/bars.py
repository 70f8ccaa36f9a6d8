"""How far `relay demo --once` has come: two bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from inbox.clock import SystemClock
from inbox.logs.visible import visible_text
from relay.demo import ledger

_SAY_EVERY_SECONDS = 5.0


class Bars:
    """A context manager: the bars are there while it is open. Main thread only."""

    def __init__(self, console: Console, changes: int) -> None:
        self._clock = SystemClock()
        self._changes, self._total = 0, changes
        self._said_at = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._made = self._progress.add_task("changes made", total=changes)
        self._ended = self._progress.add_task("deliveries ended", total=changes)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays, above the bars."""
        self._said_at = time.monotonic()
        at = (f"{self._clock.now():%H:%M:%S}", "dim")
        self._progress.console.print(Text.assemble(at, " ", visible_text(text)))

    def changed(self, number: int) -> None:
        """So many changes have been made."""
        self._changes = number
        self._progress.update(self._made, completed=number)

    def settled(self, progress: ledger.Progress) -> None:
        """The relay has come so far."""
        ended = progress.events - progress.open.total()
        self._progress.update(self._ended, completed=ended, total=max(self._total, progress.events))
        if self._progress.disable and time.monotonic() - self._said_at >= _SAY_EVERY_SECONDS:
            self.say(f"{self._changes} of {self._total} changes made, {ended} of {progress.events} deliveries ended")
