"""Follows a page of `docs/recipes/` as a reader would: its files, a real receiver and relay, its commands, its output.

The blocks of a page, in their order:

- `toml` becomes `inbox.toml`; the receiver starts (`inbox serve`). There is one on each page.
- `python` and `json` become the file that the last words before them name (`… handlers.py:`).
- `sh` is run in the folder of these files: our commands in this process, others by bash. Then a relay delivers what there is.
- `text` at once after `sh` is its output; `…` stands for anything.
- `http` is a request that a service got: its first line, some of its headers with `Host`, and its body or `…`.

Services are named by the URL that the page has, such as `https://tracker.example.com`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Protocol
from unittest import mock

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.loader.load import read_config
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.store.database import Database
from tests.docs.pages import PAGES, Block, blocks, expected_after, shows
from tests.helpers.processes import invoke
from tests.helpers.receiver import serve_receiver
from tests.helpers.scripted import Seen

_FILE = re.compile(r"\b([\w-]+\.(?:json|py|txt))\b")
_URL_LINE = re.compile(r'^(?:url|base_url) = "([^"]*)".*$', re.MULTILINE)
_ALLOWED = "allow_private = true\nallow_http = true"
_RECEIVER = "http://127.0.0.1:8000"


class Service(Protocol):
    """A server of a test, such as a `ScriptedServer`."""

    url: str
    seen: list[Seen]


class Walk:
    """A reader of one page, with a folder, a receiver and a relay of his own."""

    def __init__(self, page: str, folder: Path, database_url: str, services: Mapping[str, Service]) -> None:
        self.folder = folder
        self._page = page
        self._database_url = database_url
        self._services = services
        self._matched: set[int] = set()
        self._now = SystemClock().now()
        self._stack = contextlib.ExitStack()
        self.urls = {name: service.url for name, service in services.items()}

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
        """End the receiver, and forget the functions of the page."""
        self._stack.close()
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                del sys.modules[name]

    def _configure(self, text: str, where: str) -> None:
        (self.folder / "inbox.toml").write_text(self._reachable(text, where), encoding="utf-8")
        port = self._stack.enter_context(serve_receiver(self._database_url, read_config()))
        self.urls[_RECEIVER] = f"http://127.0.0.1:{port}"

    def _reachable(self, text: str, where: str) -> str:
        """Put the services of the test in place of the page's, which are on the internet and have TLS."""
        given = os.environ.values()
        found = {name for name in self._services if any(value.startswith(self.urls[name]) for value in given)}

        def allowed(match: re.Match[str]) -> str:
            value = match[1]
            actual = os.environ.get(value.removeprefix("env:"), "") if value.startswith("env:") else value
            here = {name for name, url in self.urls.items() if actual.startswith((name, url))}
            found.update(here)
            return f"{match[0]}\n{_ALLOWED}" if here else match[0]

        reachable = self.of_this_machine(_URL_LINE.sub(allowed, text))
        assert found >= self._services.keys(), f"{where} has no url of {sorted(self._services.keys() - found)}"
        return reachable

    def _write(self, block: Block, where: str) -> None:
        named = _FILE.findall(block.after)
        assert named, f"{where}: name the file before its block"
        if block.info == "json":
            json.loads(block.text)
        (self.folder / named[-1]).write_text(block.text, encoding="utf-8")

    def _run(self, script: str, expected: str | None, where: str) -> None:
        actual = re.sub(r"\binbox send\b", self._sending, self.of_this_machine(script))
        output, status = "", 0
        for line in actual.replace("\\\n", " ").splitlines():
            shown, status = _typed(line)
            output += shown
        for name, url in self.urls.items():
            output = output.replace(url, name)
        assert expected is not None or status == 0, f"{where} ended with {status}:\n{output}"
        assert expected is None or shows(expected, output), f"{where} showed:\n{output}\ninstead of:\n{expected}"
        if any(word in script for word in ("inbox send", "--yes", "relay sweep")):
            self._drain()

    def _sending(self, _command: re.Match[str]) -> str:
        """To the receiver here, each a second after the one before: a reader types one command after the other."""
        self._now += timedelta(seconds=1)
        return f"inbox send --url {self.urls[_RECEIVER]} --at {self._now:%Y-%m-%dT%H:%M:%SZ}"

    def _drain(self) -> None:
        """Deliver what is due."""
        engine = engines.connect(self._database_url, application="tests")
        Relay(Database(engine), prepare(read_config()), grace_seconds=20).run(drain=True)
        engine.dispose()

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
        raise AssertionError(f"{where}: no such request came, but:\n{came}")

    def of_this_machine(self, text: str) -> str:
        """The text with the services of the test in place of the page's."""
        for name, url in self.urls.items():
            text = text.replace(name, url)
        return text


def _typed(line: str) -> tuple[str, int]:
    """Run a command. Returns what it shows, and its exit status; one of ours runs in this process, up to its `||`."""
    ours, _, otherwise = line.partition(" || ")
    shown, rest = "", line
    if line.startswith(("inbox ", "relay ")):
        ended = invoke(*shlex.split(ours), COLUMNS="200")
        shown = ended.stdout + ended.stderr
        if not ended.status or not otherwise:
            return shown, ended.status
        rest = f"(exit {ended.status}) || {otherwise}"
    done = subprocess.run(
        ["bash", "-c", rest], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
    )
    return shown + done.stdout, done.returncode


def _same_body(expected: str, body: str) -> bool:
    """Compare bodies; of two that are JSON, neither order of keys nor white space counts."""
    try:
        return shows(_canonical(expected), _canonical(body))
    except ValueError:
        return shows(expected, body)


def _canonical(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True, indent=1, ensure_ascii=False)


def follow(page: str, folder: Path, database_url: str, services: Mapping[str, Service], **environment: str) -> Path:
    """Follow `docs/recipes/PAGE.md`; `environment` has the variables that it says to set. Gives the folder of its files."""
    here = folder / "here"
    here.mkdir()
    walk = Walk(f"docs/recipes/{page}.md", here, database_url, services)
    variables = {name: walk.of_this_machine(value) for name, value in environment.items()}
    variables |= {"INBOX_DATABASE_URL": database_url, "INBOX_CONFIG": "inbox.toml"}
    with contextlib.chdir(here), mock.patch.dict(os.environ, variables), contextlib.closing(walk):
        walk.follow()
    return here
