"""Fenced blocks of pages, a shell that runs them in order in one folder, and the worked examples applied to a checkout."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from typer.main import get_command

from inbox.db.migrate import head
from tests.helpers.processes import APPS, free_port, listens
from tests.helpers.waiting import until

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
}
"""Maps each page's path to its text."""

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PORT = re.compile(r"\b(8000|8301|8302)\b")
_LOOKS_ONLY = re.compile(r"(inbox (check|list|show)|relay (status|dead|replay|plan)|curl -s -H 'Authorization)\b")
"""Read-only commands, which are repeated until they show the expected output."""
_PATIENCE_SECONDS = 60.0


class Block(NamedTuple):
    """One fenced block."""

    info: str
    text: str
    line: int
    after: str
    """Text between the block before and this one."""


def blocks(text: str) -> list[Block]:
    found, end = [], 0
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[1].strip(), match[2], line, text[end : match.start()]))
        end = match.end()
    return found


def the_block(page: str, info: str, holding: str = "") -> str:
    """Return the text of the only block of kind `info` on a page that contains `holding`."""
    (found,) = (block.text for block in blocks(PAGES[page]) if block.info == info and holding in block.text)
    return found


def find_expected(page: list[Block], position: int) -> str | None:
    """Return the ```text block directly after a block, which has its expected output."""
    following = page[position + 1] if position + 1 < len(page) else None
    return following.text if following and following.info == "text" and not following.after.strip() else None


def parse_command(line: str) -> None:
    """Parse a command line of `inbox` or `relay`; an unknown word raises click's own error."""
    words = [word for word in shlex.split(line.partition(" > ")[0]) if not re.match(r"[A-Z_]+=", word)]
    command: Any = get_command(APPS[words.pop(0)])
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    command.make_context(line, words)


def shows(expected: str, output: str) -> bool:
    """Return whether the output is as expected; `…` matches any text, and white space any white space."""
    first, *others = (r"\s*".join(map(re.escape, part.split())) for part in expected.split("…"))
    # Atomic groups, as a mismatch would otherwise try every way to divide the text among the wildcards, for minutes.
    pattern = first + "".join(f"(?>.*?{part})" for part in others[:-1]) + "".join(f".*{part}" for part in others[-1:])
    return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None


class Shell:
    """A bash in its own folder with the project's commands on its PATH."""

    def __init__(
        self, folder: Path, environment: dict[str, str], log: IO[bytes], command: Sequence[str] = ("bash",)
    ) -> None:
        self._folder = folder
        self._ports: dict[str, str] = {}
        self._bash = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._log = log.name
        self._tell("set -eo pipefail")

    def replace_ports(self, text: str) -> str:
        """Replace the page's ports by ones that are free here."""
        return _PORT.sub(lambda match: self._ports.setdefault(match[1], str(free_port())), text)

    def run(self, block: Block, expected: str | None) -> str:
        """Run a block, wait until its programs listen and its output is as expected, and return the output."""
        script = self.replace_ports(block.text)
        receiver = self.replace_ports("8000")
        script = re.sub(r"\binbox serve\b(?! --bind)", f"inbox serve --bind 127.0.0.1:{receiver}", script)
        script = re.sub(r"\binbox send\b", f"inbox send --url http://127.0.0.1:{receiver}", script)
        script = re.sub(r" &$", f" >>{self._log} 2>&1 &", script, flags=re.MULTILINE)
        output = self._tell(script)
        for port in re.findall(r"(?:--bind 127.0.0.1:|--port )(\d+).* &$", script, re.MULTILINE):
            until(lambda: self.listens(int(port)), f"something listens on {port}", within=_PATIENCE_SECONDS)
        if expected is None:
            return output
        wanted = self.replace_ports(expected)
        again = all(_LOOKS_ONLY.match(line) for line in block.text.splitlines() if line[:1].isalpha())
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not shows(wanted, output):
            assert again, f"line {block.line} showed:\n{output}\ninstead of:\n{wanted}"
            assert time.monotonic() < deadline, f"line {block.line} still shows:\n{output}\ninstead of:\n{wanted}"
            time.sleep(0.1)
            output = self._tell(script)
        return output

    def listens(self, port: int) -> bool:
        """Return whether a program listens on this port."""
        return listens(port)

    def _tell(self, script: str) -> str:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        mark = f"--{time.monotonic_ns()}--"
        self._bash.stdin.write(f"{script}\necho; echo {mark}\n".encode())
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.decode().strip() == mark:
                return "".join(lines)
            lines.append(line.decode())
        raise AssertionError(
            f"{script}\nended with {self._bash.wait()}:\n{''.join(lines)}\n{Path(self._log).read_text()}"
        )

    def close(self) -> None:
        """End all started processes."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._bash.pid, number)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and self._bash.poll() is None:
                time.sleep(0.02)
        for stream in (self._bash.stdin, self._bash.stdout):
            assert stream is not None
            stream.close()
        self._bash.wait()


@contextmanager
def shell(folder: Path, *programs: Path, **variables: str) -> Iterator[Shell]:
    """Start a shell in `folder`/here, with the folders `programs` on its PATH and these variables."""
    here, tools, site = folder / "here", folder / "tools", folder / "site"
    here.mkdir()
    tools.mkdir()
    _tool(tools / "make", f'exec {shutil.which("make")} --dry-run -C "{ROOT}" "$@"')
    _tool(tools / "pip", _INSTALL.format(python=sys.executable, root=ROOT, copy=folder / "copy", site=site))
    path = [site / "bin", tools, Path(sys.executable).parent, *programs, *os.environ.get("PATH", "").split(os.pathsep)]
    environment = {
        "PATH": os.pathsep.join(map(str, path)),
        "PYTHONPATH": f"{site}{os.pathsep}{ROOT}",
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "PYTHONWARNINGS": "ignore",
        **variables,
    }
    with (folder / "background.log").open("wb") as log:
        opened = Shell(here, environment, log)
        try:
            yield opened
        finally:
            opened.close()


def _tool(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\nset -e\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


_INSTALL = """\
# `pip install .` of a copy of the checkout, into a folder that precedes all others
test "$*" = "install ."
mkdir "{copy}"
cp -r "{root}/inbox" "{root}/relay" "{root}/migrations" "{root}/pyproject.toml" "{root}/README.md" "{root}/LICENSE" "{copy}"
"{python}" -m pip install --quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check --target "{site}" \
  "{copy}"
"""


# --- The worked examples of the pages for contributors, applied to a copy of the checkout


def apply(page: str, folder: Path) -> None:
    """Apply the blocks of a page in `folder`."""
    text = PAGES[page]
    if page.endswith("column.md"):
        text = re.sub(r"0001|0002|1000", lambda number: _renumber(number[0]), text)
    for block in blocks(text):
        if block.info in {"python", "sql"}:
            path, content = _split_head(block.text)
            assert not (folder / path).exists(), f"{page}:{block.line} makes {path}, which is there"
            (folder / path).write_text(content, encoding="utf-8")
        elif block.info == "diff":
            path, changes = _split_head(block.text)
            change(folder / path, changes)


def _renumber(number: str) -> str:
    """Return the number of a page's migration after the newest one of the checkout."""
    newest = int(head())
    numbers = {"0001": newest, "0002": newest + 1, "1000": (newest // 1000 + 1) * 1000}
    return f"{numbers[number]:04}"


def _split_head(text: str) -> tuple[str, str]:
    """Split a block into the path in its first line and the rest."""
    first, _, rest = text.partition("\n")
    return first.split(" ", 1)[1], rest


def change(path: Path, changes: str) -> None:
    """Apply the changes of a `diff` block, which `@@` separates."""
    text = path.read_text(encoding="utf-8")
    for hunk in changes.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"{path.name} does not have this once:\n{old}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
