"""The relay's own commands, given as a person gives them, or cron: each is a process, and what it says is read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.demo.happenings import Ordered
from relay.demo.processes import DemoError

SOURCE = "trivore"
ROUTES = ("users-to-contacts", "groups-to-teams")
_SECONDS = 60.0
_FINDING = 1
_IN_STEP = re.compile(r"in step: (\d+) entities")
_NOT_IN_STEP = re.compile(r"(\d+) of (\d+) entities are not in step")


@dataclass(frozen=True, slots=True)
class Orphan:
    """A counterpart whose entity is gone."""

    route: str
    entity_type: str
    entity_id: str


class Orders:
    """Gives commands, one after the other, and tells what each has said."""

    def __init__(self, folder: Path, environment: Mapping[str, str], tell: Callable[[Ordered], None]) -> None:
        self._folder, self._environment, self._tell = folder, dict(environment), tell

    def sweep(self) -> int:
        """Have the source asked for what no webhook has told; how many changes that was."""
        self._tell(Ordered("sweep", f"--source {SOURCE}"))
        (said,) = self._run(("sweep", "--source", SOURCE, "--json"))
        rows: list[dict[str, Any]] = json.loads(said)
        for row in rows:
            counted = f"{row['compared']} compared, {row['missed']} missed, {row['added']} added"
            self._tell(Ordered("sweep", row["entity_type"], counted))
        return sum(row["missed"] for row in rows)

    def orphans(self, under_way: Collection[str]) -> list[Orphan]:
        """Have all ids of both sides compared; the counterparts whose entity is gone, but those ids that are under way."""
        self._tell(Ordered("sweep", f"--source {SOURCE} --full"))
        (said,) = self._run(("sweep", "--source", SOURCE, "--full", "--json"))
        found = [
            Orphan(row["route"], row["entity_type"], row["entity_id"])
            for row in json.loads(said)
            if row["finding"].startswith("orphan") and row["entity_id"] not in under_way
        ]
        for orphan in found:
            self._tell(Ordered("sweep", f"{orphan.entity_type} {orphan.entity_id}", "an orphan: its entity is gone"))
        return found

    def replay(self, orphan: Orphan) -> None:
        """Have the events of its entity taken up again: the relay asks, hears that it is gone, and deletes."""
        entity = f"{orphan.entity_type}/{orphan.entity_id}"
        chosen = ("--route", orphan.route, "--source", SOURCE, "--entity", entity)
        self._run(("replay", *chosen, "--reason", "an orphan", "--yes", "--json"))
        about = f"{orphan.entity_type} {orphan.entity_id}"
        self._tell(Ordered("replay", about, "asked about again"))

    def plan(self) -> tuple[int, int]:
        """Have all entities of both sides compared, field by field: how many are in step, and how many are not.

        Raises:
            DemoError: it does not say so.
        """
        for route in ROUTES:
            self._tell(Ordered("plan", f"--route {route}"))
        agree = differ = 0
        for route, said in zip(ROUTES, self._run(*(("plan", "--route", route) for route in ROUTES)), strict=True):
            if found := _IN_STEP.search(said):
                agree += int(found[1])
                self._tell(Ordered("plan", route, found[0]))
            elif found := _NOT_IN_STEP.search(said):
                differ += int(found[1])
                agree += int(found[2]) - int(found[1])
                self._tell(Ordered("plan", route, found[0]))
            else:
                raise DemoError(f"`relay plan --route {route}` did not tell what is in step:\n{said}")
        return agree, differ

    def _run(self, *commands: tuple[str, ...]) -> list[str]:
        """What these say, started at once.

        Raises:
            DemoError: one went wrong; the text has what it said.
        """
        running = [
            subprocess.Popen(  # noqa: S603  # our own Python, our own arguments
                [sys.executable, "-m", "relay.demo.child", str(os.getpid()), "-m", "relay", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._folder,
                env=self._environment,
                text=True,
                process_group=0,
            )
            for command in commands
        ]
        try:
            return [_said(command, process) for command, process in zip(commands, running, strict=True)]
        finally:
            for process in running:
                process.kill()
                process.wait()


def _said(command: tuple[str, ...], process: subprocess.Popen[str]) -> str:
    """Of a listing as JSON, that alone."""
    try:
        output, errors = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise DemoError(f"`relay {' '.join(command)}` has not ended within {_SECONDS:.0f} s") from None
    has_broken = process.returncode == _FINDING and errors.startswith("Traceback")  # Python's own status for it
    if process.returncode not in {0, _FINDING} or has_broken:
        raise DemoError(f"`relay {' '.join(command)}` ended with status {process.returncode}:\n{errors}")
    return output if "--json" in command else f"{output}{errors}"
