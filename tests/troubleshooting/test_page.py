"""Each message on docs/how-to/troubleshoot.md is one that the product gives, in the trouble that the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from inbox.errors import RequestError
from tests.docs.pages import PAGES
from tests.helpers.processes import APPS
from tests.troubleshooting.trouble import troubles

PAGE = PAGES["docs/how-to/troubleshoot.md"]
ENTRIES = dict(re.findall(r"^### ([^\n]+)\n\n(?:```text\n(.*?)```)?", PAGE, re.MULTILINE | re.DOTALL))
"""Each heading, and the message below it; empty where there is none."""

SAID_IN = {
    "401 for every webhook of a source": "rejected",
    "401 because of the signature": "rejected",
    "401 because of the clock": "rejected",
    "401 for an unknown source": "rejected",
    "404": "path",
    "413": "large",
    "415": "type",
    "422 or 400": "invalid",
    "503": "unavailable",
    "No webhook arrives at all": "empty",
    "A secret is not set": "secret-unset",
    "The schema is not migrated": "schema",
    "A mistake in inbox.toml": "mistake",
    "The database is down": "database",
    "SQLite is locked": "locked",
    "No relay runs": "no-relay",
    "No route takes the event": "list",
    "A route is paused": "status",
    "A circuit breaker is open": "status",
    "The next attempt is far away": "status",
    "A lane is blocked": "status",
    "Dead by `mapping`": "dead",
    "Dead by `exhausted`": "dead",
    "Dead by `rejected`": "dead",
    "Credentials are rejected": "list",
    "A private address is refused": "private",
    "TLS fails": "list",
    "The other system is slow": "dead",
    "The other system can't be reached": "list",
    "A redirect": "list",
    "The fetched entity is stale": "list",
    "Two events became one": "duplicate",
    "A sweep fails": "sweep-fails",
    "Changes without webhooks": "sweep-finds",
}
"""The output, of those that `troubles` gives, that has the message below a heading."""


@pytest.fixture(scope="module")
def said(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("trouble")
    (folder / "inbox.db").write_bytes(sqlite_template.read_bytes())
    with troubles(folder, f"sqlite:///{folder / 'inbox.db'}") as found:
        return found


def has(output: str, message: str) -> bool:
    """Return whether a message stands in an output; `…` matches anything on a line, and white space any."""
    words = (".*?".join(map(re.escape, word.split("…"))) for word in message.split())
    return re.search(r"\s+".join(words), output) is not None


@pytest.mark.parametrize("heading", SAID_IN)
def test_the_product_says_what_the_page_shows(heading: str, said: dict[str, str]) -> None:
    assert has(said[SAID_IN[heading]], ENTRIES[heading]), said[SAID_IN[heading]]


def test_every_message_of_the_page_is_compared() -> None:
    assert {heading for heading, message in ENTRIES.items() if message} == SAID_IN.keys()
    assert len(ENTRIES) >= 20


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`((?:inbox|relay) [^`\n]+)`", PAGE))))
def test_every_command_of_the_page_is_understood(line: str) -> None:
    words = re.sub(r"\b(ID|SEQ)\b", "1", line).split()
    command: Any = typer.main.get_command(APPS[words.pop(0)])
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    command.make_context(line, words)  # raises a usage error


def test_the_receiver_answers_403_to_nobody() -> None:
    assert 403 not in {error.status for error in RequestError.__subclasses__()}
