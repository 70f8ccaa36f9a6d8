"""The relay's own commands, run as a person or cron runs them: each is a process, and its output is read."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.demo.events import CommandRun
from relay.demo.processes import DemoError, spawn

SOURCE = "trivore"
ROUTES = ("users-to-contacts", "groups-to-teams")
_SECONDS = 60.0
_FINDING = 1
_VERDICT = re.compile(r"(?:(?P<differ>\d+) of )?(?P<all>\d+) entities.*")


@dataclass(frozen=True, slots=True)
class OrphanFound:
    """A counterpart whose entity is gone."""

    route: str
    entity_type: str
    entity_id: str


class RelayCommands:
    """Runs commands, one after the other, and passes on what each reports."""

    def __init__(self, folder: Path, environment: Mapping[str, str], show: Callable[[CommandRun], None]) -> None:
        self._folder, self._environment, self._show = folder, environment, show

    def sweep(self) -> int:
        """Asks the source for changes that no webhook reported; returns how many there were."""
        rows = self._sweep()
        for row in rows:
            counts = f"{row['compared']} compared, {row['missed']} missed, {row['added']} added"
            self._show(CommandRun("sweep", row["entity_type"], counts))
        return sum(row["missed"] for row in rows)

    def orphans(self, busy: Collection[str]) -> list[OrphanFound]:
        """Compares all ids of both sides; returns the counterparts whose entity is gone, but those that are busy."""
        found = [
            OrphanFound(row["route"], row["entity_type"], row["entity_id"])
            for row in self._sweep("--full")
            if row["finding"].startswith("orphan") and row["entity_id"] not in busy
        ]
        for orphan in found:
            about = f"{orphan.entity_type} {orphan.entity_id}"
            self._show(CommandRun("sweep", about, "an orphan: its entity is gone"))
        return found

    def replay(self, orphan: OrphanFound) -> None:
        """Replays the events of its entity: the relay fetches it, learns that it is gone, and deletes the counterpart."""
        entity = f"{orphan.entity_type}/{orphan.entity_id}"
        chosen = ("--route", orphan.route, "--source", SOURCE, "--entity", entity)
        self._run(("replay", *chosen, "--reason", "an orphan", "--yes", "--json"))
        self._show(CommandRun("replay", f"{orphan.entity_type} {orphan.entity_id}", "delivered again"))

    def plan(self) -> tuple[int, int]:
        """Compares all entities of both sides, field by field; returns how many are in sync, and how many are not.

        Raises:
            DemoError: the output doesn't say so.
        """
        for route in ROUTES:
            self._show(CommandRun("plan", f"--route {route}"))
        in_sync = not_in_sync = 0
        for route, output in zip(ROUTES, self._run(*(("plan", "--route", route) for route in ROUTES)), strict=True):
            verdict = next((line for line in output.splitlines() if _VERDICT.search(line)), "")
            found = _VERDICT.search(verdict)
            if found is None:
                raise DemoError(f"`relay plan --route {route}` has no verdict:\n{output}")
            differ = int(found["differ"] or 0)
            in_sync, not_in_sync = in_sync + int(found["all"]) - differ, not_in_sync + differ
            self._show(CommandRun("plan", route, verdict))
        return in_sync, not_in_sync

    def _sweep(self, *options: str) -> list[dict[str, Any]]:
        arguments = ("--source", SOURCE, *options)
        self._show(CommandRun("sweep", " ".join(arguments)))
        rows: list[dict[str, Any]] = json.loads(self._run(("sweep", *arguments, "--json"))[0])
        return rows

    def _run(self, *commands: tuple[str, ...]) -> list[str]:
        """Starts these at once and returns their output.

        Raises:
            DemoError: one failed; the text has its errors.
        """
        pipe = subprocess.PIPE
        running = [
            spawn(["-m", "relay", *command], self._folder, self._environment, output=pipe, errors=pipe)
            for command in commands
        ]
        try:
            return [_output(command, process) for command, process in zip(commands, running, strict=True)]
        finally:
            for process in running:
                process.kill()
                process.wait()


def _output(command: tuple[str, ...], process: subprocess.Popen[bytes]) -> str:
    """What a command has printed; of a listing as JSON, that alone."""
    try:
        output, errors = (printed.decode() for printed in process.communicate(timeout=_SECONDS))
    except subprocess.TimeoutExpired:
        raise DemoError(f"`relay {' '.join(command)}` has not ended within {_SECONDS:.0f} s") from None
    has_crashed = process.returncode == _FINDING and errors.startswith("Traceback")  # Python's own status for it
    if process.returncode not in {0, _FINDING} or has_crashed:
        raise DemoError(f"`relay {' '.join(command)}` ended with status {process.returncode}:\n{errors}")
    return output if "--json" in command else f"{output}{errors}"
