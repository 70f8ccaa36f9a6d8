"""Follows a page of `docs/recipes/` as a reader would: its files, a real receiver and relay, its commands, its output.

The blocks of a page, in their order:

- `toml` becomes `inbox.toml`; the receiver starts (`inbox serve`). There is one on each page.
- `python` and `json` become the file that the last words before them name (`… handlers.py:`).
- `sh` is run in the folder of these files. Then `relay run --drain` delivers what there is.
- `text` at once after `sh` is its output; `…` stands for anything.
- `http` is a request that a service got: its first line, some of its headers with `Host`, and its body or `…`.

Services are named by the URL that the page has, such as `https://tracker.example.com`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from tests.docs.pages import PAGES, Block, blocks, expected_after, shows
from tests.helpers.processes import Program, free_port, is_ready
from tests.helpers.scripted import Seen
from tests.helpers.waiting import until

_PATIENCE_SECONDS = 60
_FILE = re.compile(r"\b([\w-]+\.(?:json|py|txt))\b")
_URL_LINE = re.compile(r'^(?:url|base_url) = "([^"]*)".*$', re.MULTILINE)
_ALLOWED = "allow_private = true\nallow_http = true"
_RECEIVER = "http://127.0.0.1:8000"
_BIN = Path(sys.executable).parent


class Service(Protocol):
    """A server of a test, such as a `ScriptedServer`."""

    url: str
    seen: list[Seen]


class Walk:
    """A reader of one page, with a folder, a receiver and a relay of his own."""

    def __init__(
        self,
        page: str,
        folder: Path,
        database_url: str,
        services: Mapping[str, Service],
        environment: Mapping[str, str],
    ) -> None:
        self.folder = folder
        self.output = ""
        """All that the page's commands have shown so far."""
        self._page = page
        self._services = services
        self._matched: set[int] = set()
        self._given = environment.keys()
        self._programs: list[Program] = []
        self._urls = {name: service.url for name, service in services.items()}
        self._environment = {
            **{name: value for name in ("PATH", "LD_LIBRARY_PATH") if (value := os.environ.get(name))},
            "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "INBOX_DATABASE_URL": database_url,
            **{name: self._of_this_machine(value) for name, value in environment.items()},
        }

    def follow(self) -> None:
        """Do all that the page says, and compare all that it shows."""
        read = blocks(PAGES[self._page])
        assert sum(block.info == "toml" for block in read) == 1, f"{self._page} needs one inbox.toml"
        for position, block in enumerate(read):
            where = f"{self._page}:{block.line}"
            match block.info:
                case "toml":
                    self._configure(block.text, where)
                case "python" | "json":
                    self._write(block, where)
                case "sh":
                    self._run(block.text, expected_after(read, position), where)
                case "http":
                    self._expect_request(block.text, where)
        self._run("inbox check", "… both sides would start…", self._page)

    def close(self) -> None:
        """End whatever still runs."""
        for program in self._programs:
            program.clean_up()

    def drain(self) -> str:
        """Deliver what is due, with a relay of its own; return its log."""
        relay = self._start("relay", "run", "--drain")
        assert relay.ends(within=_PATIENCE_SECONDS) == 0, relay.output
        return relay.output

    def _configure(self, text: str, where: str) -> None:
        (self.folder / "inbox.toml").write_text(self._reachable(text, where), encoding="utf-8")
        port = free_port()
        self._urls[_RECEIVER] = f"http://127.0.0.1:{port}"
        receiver = self._start("inbox", "serve", "--bind", f"127.0.0.1:{port}", "--workers", "1")
        until(lambda: not receiver.runs or is_ready(port), "the receiver is ready", within=_PATIENCE_SECONDS)
        assert receiver.runs, f"{where}:\n{receiver.output}"

    def _reachable(self, text: str, where: str) -> str:
        """Put the services of the test in place of the page's, which are on the internet and have TLS."""
        given = {value for name, value in self._environment.items() if name in self._given}
        found = {name for name in self._services if any(value.startswith(self._urls[name]) for value in given)}

        def allowed(match: re.Match[str]) -> str:
            value = match[1]
            actual = self._environment.get(value.removeprefix("env:"), "") if value.startswith("env:") else value
            here = {name for name, url in self._urls.items() if actual.startswith((name, url))}
            found.update(here)
            return f"{match[0]}\n{_ALLOWED}" if here else match[0]

        reachable = self._of_this_machine(_URL_LINE.sub(allowed, text))
        assert found >= self._services.keys(), f"{where} has no url of {sorted(self._services.keys() - found)}"
        return reachable

    def _write(self, block: Block, where: str) -> None:
        named = _FILE.findall(block.after)
        assert named, f"{where}: name the file before its block"
        if block.info == "json":
            json.loads(block.text)
        (self.folder / named[-1]).write_text(block.text, encoding="utf-8")

    def _run(self, script: str, expected: str | None, where: str) -> None:
        actual = re.sub(r"\binbox send\b", f"inbox send --url {self._urls[_RECEIVER]}", self._of_this_machine(script))
        done = subprocess.run(
            ["bash", "-c", actual],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        output = self._of_the_page(done.stdout)
        self.output += output
        assert expected is not None or done.returncode == 0, f"{where} ended with {done.returncode}:\n{output}"
        assert expected is None or shows(expected, output), f"{where} showed:\n{output}\ninstead of:\n{expected}"
        if any(word in script for word in ("inbox send", "curl", "--yes", "relay sweep")):
            self.drain()

    def _expect_request(self, text: str, where: str) -> None:
        head, _, body = text.partition("\n\n")
        line, *headers = head.splitlines()
        wanted = {name.lower(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
        service = self._services[f"https://{wanted.pop('host')}"]
        method, target = line.split()[:2]
        for seen in service.seen:
            fits = (
                id(seen) not in self._matched
                and (seen.method, seen.target) == (method, target)
                and all(name in seen.headers and shows(value, seen.headers[name]) for name, value in wanted.items())
                and _same_body(body, seen.body.decode())
            )
            if fits:
                self._matched.add(id(seen))
                return
        came = "\n".join(f"{seen.method} {seen.target} {seen.headers} {seen.body!r}" for seen in service.seen)
        raise AssertionError(f"{where}: no such request came, but:\n{came}\nlogs:\n{self._logs()}")

    def _logs(self) -> str:
        return "\n".join(f"{program.log.name}:\n{program.output}" for program in self._programs)

    def _start(self, command: str, *arguments: str) -> Program:
        program = Program(
            [_BIN / command, *arguments],
            log=self.folder.parent / f"{len(self._programs):02d}-{command}.log",
            environment=self._environment,
            folder=self.folder,
        )
        self._programs.append(program)
        return program

    def _of_this_machine(self, text: str) -> str:
        for name, url in self._urls.items():
            text = text.replace(name, url)
        return text

    def _of_the_page(self, text: str) -> str:
        for name, url in self._urls.items():
            text = text.replace(url, name)
        return text


def _same_body(expected: str, body: str) -> bool:
    """Compare bodies; of two that are JSON, neither order of keys nor white space counts."""
    try:
        return shows(_canonical(expected), _canonical(body))
    except ValueError:
        return shows(expected, body)


def _canonical(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True, indent=1, ensure_ascii=False)


@contextlib.contextmanager
def walking(
    page: str, folder: Path, database_url: str, services: Mapping[str, Service], **environment: str
) -> Iterator[Walk]:
    """A reader of `docs/recipes/PAGE.md`; `environment` has the variables that it says to set."""
    here = folder / "here"
    here.mkdir()
    walk = Walk(f"docs/recipes/{page}.md", here, database_url, services, environment)
    try:
        yield walk
    finally:
        walk.close()
