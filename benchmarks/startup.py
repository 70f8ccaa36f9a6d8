"""Start of `relay --help`, against the import of the libraries that every command needs."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.harness import AsJson, Rounds, Side, report, start
from benchmarks.rows import ROWS

_HELP = (sys.executable, "-c", "from relay.cli.main import main; main()", "--help")
_IMPORT = (sys.executable, "-c", "import rich, sqlalchemy, typer")


def main(*, rounds: Rounds = 20, as_json: AsJson = False) -> None:
    """Time `relay --help` and the import in turn, each in a new process."""
    ours, theirs = Side("relay --help"), Side("import rich, sqlalchemy, typer", bar=ROWS["help"].bar)
    for command in (_HELP, _IMPORT):
        _milliseconds(command)
    for _ in range(rounds):
        ours.rates.append(_milliseconds(_HELP))
        theirs.rates.append(_milliseconds(_IMPORT))
    report("Start of a command", [ours, theirs], {}, as_json=as_json, unit="ms")


def _milliseconds(command: tuple[str, ...]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.monotonic() - began)


if __name__ == "__main__":
    start(main)
