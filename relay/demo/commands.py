"""The relay's own commands, run as a person or cron runs them: each is a process, and its output is read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from relay.demo.events import CommandRun
from relay.demo.processes import DemoError

SOURCE = "trivore"
ROUTES = ("users-to-contacts", "groups-to-teams")
_SECONDS = 60.0
_FINDING = 1
_VERDICT = re.compile(
    r"(?P<all>[\d,]+) entit(?:y|ies) compared: (?:in sync|(?P<differ>[\d,]+) differ)|no entity to compare"
)


class RelayCommands:
    """Runs commands and passes on what each reports. Methods raise DemoError when a command fails."""

    def __init__(self, folder: Path, environment: Mapping[str, str], show: Callable[[CommandRun], None]) -> None:
        self._folder, self._environment, self._show = folder, environment, show

    def sweep(self) -> int:
        """Ask the source for changes that no webhook reported; return how many there were."""
        rows = self._sweep()
        for row in rows:
            counts = f"{row['compared']} compared, {row['missed']} missed, {row['added']} added"
            self._show(CommandRun("sweep", row["entity_type"], counts))
        return sum(row["missed"] for row in rows)

    def replay_orphans(self, busy: Collection[str]) -> int:
        """Compare all ids of both sides, and replay the events of entities that are gone, but those that are busy.

        The relay fetches the entity, learns that it is gone, and deletes its counterpart. Returns how many there were.
        """
        rows = self._sweep("--full")
        orphans = [row for row in rows if row["finding"].startswith("orphan") and row["entity_id"] not in busy]
        for row in orphans:
            entity = row["entity_type"], row["entity_id"]
            self._show(CommandRun("sweep", " ".join(entity), "an orphan: its entity is gone"))
            chosen = ("--route", row["route"], "--source", SOURCE, "--entity", "/".join(entity))
            self._run("replay", *chosen, "--reason", "an orphan", "--yes", "--json")
            self._show(CommandRun("replay", " ".join(entity), "delivered again"))
        return len(orphans)

    def plan(self) -> tuple[int, int]:
        """Compare all entities of both sides, field by field; return how many are in sync, and how many are not."""
        for route in ROUTES:
            self._show(CommandRun("plan", f"--route {route}"))
        with ThreadPoolExecutor() as pool:
            outputs = list(pool.map(lambda route: self._run("plan", "--route", route), ROUTES))
        in_sync = not_in_sync = 0
        for route, output in zip(ROUTES, outputs, strict=True):
            verdict = next((line for line in output.splitlines() if _VERDICT.search(line)), "")
            found = _VERDICT.search(verdict)
            if found is None:
                raise DemoError(f"`relay plan --route {route}` has no verdict:\n{output}")
            compared, differ = (int((found[name] or "0").replace(",", "")) for name in ("all", "differ"))
            in_sync, not_in_sync = in_sync + compared - differ, not_in_sync + differ
            self._show(CommandRun("plan", route, verdict))
        return in_sync, not_in_sync

    def _sweep(self, *options: str) -> list[dict[str, Any]]:
        arguments = ("--source", SOURCE, *options)
        self._show(CommandRun("sweep", " ".join(arguments)))
        rows: list[dict[str, Any]] = json.loads(self._run("sweep", *arguments, "--json"))
        return rows

    def _run(self, *command: str) -> str:
        """Run `relay COMMAND` and return its output, with standard error unless it is JSON."""
        try:
            ended = subprocess.run(  # noqa: S603  # our own Python, our own arguments
                [sys.executable, "-m", "relay", *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=self._folder,
                env=self._environment,
                text=True,
                timeout=_SECONDS,
                check=False,
                process_group=0,  # Ctrl-C in a terminal reaches only the demo
            )
        except subprocess.TimeoutExpired:
            raise DemoError(f"`relay {' '.join(command)}` has not ended within {_SECONDS:.0f} s") from None
        has_crashed = ended.returncode == _FINDING and ended.stderr.startswith(
            "Traceback"
        )  # Python's own status for it
        if ended.returncode not in {0, _FINDING} or has_crashed:
            raise DemoError(f"`relay {' '.join(command)}` ended with status {ended.returncode}:\n{ended.stderr}")
        return ended.stdout if "--json" in command else f"{ended.stdout}{ended.stderr}"
