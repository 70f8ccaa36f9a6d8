"""Commands and queries of the runbooks work on an installation that has each trouble, and show it."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from inbox.db import engine as engines
from inbox.db.intake import Rejected
from inbox.loader.load import parse_config
from relay.delivery.policy import policies
from tests.docs.pages import PAGES, blocks
from tests.helpers.processes import Ended, invoke
from tests.helpers.relaying import HOPELESS, UNWELL, Steps
from tests.helpers.storing import START, an_event
from tests.helpers.webhooks import body

RUNBOOKS = "docs/how-to/runbooks/"
CONFIG = """
[database]
url = "sqlite:///{file}"

[sources.shop]
preset = "trivore"
auth = {{ kind = "none" }}

[destinations.crm]
kind = "forward"
url = "https://crm.example.com/hook"

[routes.to-crm]
source = "shop"
destination = "crm"

[routes.to-erp]
source = "shop"
destination = "crm"
ordering = "strict"
on_dead = "block"
"""
SHOWN = {
    "no-relay.md": "no relay",
    "delivery-dead.md": "email: no value",
    "lanes-blocked.md": "blocked",
    "breaker-open-long.md": "503 Service Unavailable",
    "paused-for-days.md": "until the move is done",
    "backlog-old.md": "no relay",
    "disk-filling.md": "1 row deleted",
}
"""Words that the commands of a page show here, among others."""
JSON = {"content-type": "application/json"}
FINDS = ("inbox doctor", "relay status --check")
"""Commands that exit with 1 when they find something."""


@pytest.fixture(scope="module")
def troubled(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a dead delivery, a blocked lane, a pause and an open breaker, and without a relay."""
    file = tmp_path_factory.mktemp("troubled") / "inbox.db"
    shutil.copy(sqlite_template, file)
    engine = engines.connect(f"sqlite:///{file}", application="tests")
    steps = Steps(engine, policies(parse_config(CONFIG.format(file=file))))
    events = [an_event(number, f"u{number}", routes=["to-crm", "to-erp"]) for number in (1, 2)]
    steps.arrive(*(msgspec.structs.replace(event, source="shop") for event in events))
    for route in ("to-crm", "to-erp"):
        steps.record_all(steps.claim_due(1, route), HOPELESS)
    steps.record_all(steps.claim_due(1, "to-crm"), UNWELL)
    steps.do(
        "UPDATE open_delivery SET due_at = '2036-01-01 00:00:00.000000Z' WHERE route = 'to-crm' AND state = 'ready'"
    )
    rejected = Rejected(START, "shop", 422, "invalid_event", "no id", "id", None, b"h" * 32, JSON, body("u9"))
    steps.intake.reject(rejected)
    steps.do(
        "INSERT INTO gate (kind, name, paused_at, paused_by, pause_reason)"
        " VALUES ('route', 'to-erp', '2026-01-01 00:00:00.000000Z', 'anna', 'until the move is done')",
        "INSERT INTO gate (kind, name, breaker, breaker_until, breaker_cause, open_count)"
        " VALUES ('destination', 'crm', 'open', '2036-01-01 00:00:00.000000Z', '503 Service Unavailable', 1)",
    )
    engine.dispose()
    return file


@pytest.mark.parametrize("page", sorted(page.removeprefix(RUNBOOKS) for page in PAGES if page.startswith(RUNBOOKS)))
def test_the_commands_of_a_runbook_work_and_show_the_trouble(page: str, troubled: Path, tmp_path: Path) -> None:
    shutil.copy(troubled, tmp_path / "inbox.db")
    (tmp_path / "inbox.toml").write_text(CONFIG.format(file=tmp_path / "inbox.db"), encoding="utf-8")
    shown = ""
    for block in blocks(PAGES[RUNBOOKS + page]):
        if block.info == "sql":
            with closing(sqlite3.connect(tmp_path / "inbox.db")) as connection:
                connection.execute(block.text).fetchall()
            continue
        for line in block.text.splitlines() if block.info == "sh" else ():  # this installation is a SQLite file
            ended = typed(line, tmp_path)
            shown += ended.stdout + ended.stderr
            assert ended.status in ({0, 1} if line.startswith(FINDS) else {0}), f"{line}: {ended}"
    assert SHOWN.get(page, "") in shown
    if page == "paused-for-days.md":
        gates = json.loads(typed("relay status --json", tmp_path).stdout)["gates"]
        assert "move" not in str(gates), "it is resumed"
    if page == "delivery-dead.md":
        assert "no value" not in typed("relay dead --route to-crm", tmp_path).stdout, "it is replayed"


def typed(line: str, folder: Path) -> Ended:
    side, *words = shlex.split(line)
    return invoke(side, *words, INBOX_CONFIG=str(folder / "inbox.toml"), COLUMNS="200")
