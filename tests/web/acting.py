"""Helpers for acts on the page: read a plan's form, send it with a reason, and execute its command."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import requests

from inbox.config.model import Config
from inbox.db import listing
from relay.accounts import Actor
from relay.delivery.outcome import Failed
from relay.delivery.policy import policies
from relay.store.operator import commands, execution
from relay.store.operator.commands import Command
from tests.helpers.page import OPERATOR, Page
from tests.helpers.relaying import CONFIG, HOPELESS, Steps, work_of
from tests.helpers.storing import an_event


def form_of(html: str) -> dict[str, str]:
    """Return the fields of a plan's form, as a browser sends them, with a reason."""
    form = re.search(r'<form class="stacked" method="post".*?</form>', html, re.DOTALL)
    assert form is not None, html
    hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form[0])
    return {"reason": "fixed <b>", **{name: unescape(value) for name, value in hidden}}


def open_plan(page: Page, path: str, actor: Actor = OPERATOR) -> dict[str, str]:
    """Open a plan and return its form."""
    answer = page.get(f"/acts/{path}", actor)
    assert answer.status_code == 200, answer.text
    return form_of(answer.text)


def confirm(page: Page, path: str, **fields: str) -> requests.Response:
    """Open a plan and send its form at once."""
    return page.post(f"/acts/{path.partition('?')[0]}", {**open_plan(page, path), **fields})


def fill_with_dead(steps: Steps, number: int, outcome: Failed = HOPELESS, *, first: int = 1) -> None:
    """Store dead deliveries of different entities."""
    steps.arrive(*(an_event(n, f"u{n}") for n in range(first, first + number)))
    steps.record_all(steps.claim_due(number), outcome)


def list_commands(steps: Steps) -> list[dict[str, Any]]:
    """Return the rows of all commands, oldest first."""
    return list(reversed(listing.read_rows(steps.database.engine, "commands", {}, 100)))


def execute(steps: Steps, answer: requests.Response, config: Config = CONFIG) -> Command:
    """Execute the command of a response to its end, as a relay does, and return it."""
    assert answer.status_code in {202, 303}, answer.text
    number = int(answer.headers["location"].rpartition("/")[2])
    while (progress := commands.read_command(steps.database, number)) and not progress.has_ended:
        execution.work_on(work_of(steps.database, policies(config), config=config), number)
    assert progress is not None
    return progress
