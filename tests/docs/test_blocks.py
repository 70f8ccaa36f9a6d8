"""Commands that the pages tell a reader to type work, and print the output that the pages show."""

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
from tests.docs.pages import PAGES, blocks, find_expected, shell
from tests.helpers.processes import Ended, invoke
from tests.helpers.relaying import HOPELESS, UNWELL, Steps
from tests.helpers.storing import START, an_event
from tests.helpers.webhooks import body

KINDS = {
    "sh", "toml", "text", "sql", "sql postgres", "sql sqlite", "python", "diff", "json", "caddyfile", "ini", "http",
}  # fmt: skip
"""Kinds of blocks. Other files here run `sql`, `python`, `diff` and `json`, and tests/process/test_intermediaries.py `caddyfile`
and `ini`."""

RUNBOOKS = "docs/how-to/runbooks/"
TESTED_ELSEWHERE = {
    "docs/recipes/": "tests/recipes/test_recipes.py",
    RUNBOOKS: "below",
    "docs/how-to/move-to-postgres.md": "tests/copying/test_copy.py",
    "docs/how-to/limit-what-roles-may-do.md": "tests/docs/test_contributing.py",
    "docs/how-to/back-up-and-restore.md": "tests/docs/test_contributing.py",
    "docs/how-to/watch-with-prometheus.md": "tests/docs/test_how_to_pages.py",
    "docs/reference/web-api.md": "tests/docs/test_reference_pages.py",
    "docs/tutorial/go-live.md": "tests/docs/test_go_live_page.py",
}
"""Maps pages and folders whose commands need more than a shell to their tests."""

FIRST = "docs/tutorial/quickstart.md"
ALSO_AFTER_THE_FIRST = "docs/how-to/add-a-sync.md"
SECOND = "docs/tutorial/integrate-two-services.md"
"""The page that continues `FIRST`. The commands of both are run each time, those of the others in nightly tests."""


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_block_is_of_a_tested_kind_and_every_configuration_is_complete(page: str) -> None:
    for block in blocks(PAGES[page]):
        assert block.info in KINDS, f"{page}:{block.line}: nothing tests a block of {block.info!r}"
        if block.info == "toml":
            assert parse_config(block.text, f"{page}:{block.line}").sources, "so that it is worth reading"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(name, marks=[] if name == SECOND else pytest.mark.nightly)
        for name, text in sorted(PAGES.items())
        if "```sh\n" in text and not name.startswith((FIRST, *TESTED_ELSEWHERE))
    ],
)
def test_the_commands_of_a_page_work_one_after_the_other(page: str, tmp_path: Path) -> None:
    read = [*(blocks(PAGES[FIRST]) if page in (SECOND, ALSO_AFTER_THE_FIRST) else ()), *blocks(PAGES[page])]
    with shell(tmp_path) as terminal:
        for position, block in enumerate(read):
            if block.info == "toml":
                (tmp_path / "here" / "inbox.toml").write_text(terminal.replace_ports(block.text), encoding="utf-8")
            elif block.info == "sh":
                terminal.run(block, find_expected(read, position))


# --- Commands and queries of the runbooks work on an installation with their conditions, and show them


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
"""Maps a page to words that its commands show here."""
JSON = {"content-type": "application/json"}
FINDS = ("inbox doctor", "relay status --check")
"""Commands that exit with 1 after a finding."""


@pytest.fixture(scope="module")
def troubled(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a dead delivery, a blocked lane, a pause and an open breaker, but no relay."""
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
def test_the_commands_of_a_runbook_work_and_show_the_condition(page: str, troubled: Path, tmp_path: Path) -> None:
    shutil.copy(troubled, tmp_path / "inbox.db")
    (tmp_path / "inbox.toml").write_text(CONFIG.format(file=tmp_path / "inbox.db"), encoding="utf-8")
    shown = ""
    for block in blocks(PAGES[RUNBOOKS + page]):
        if block.info == "sql":
            with closing(sqlite3.connect(tmp_path / "inbox.db")) as connection:
                connection.execute(block.text).fetchall()
            continue
        for line in block.text.splitlines() if block.info == "sh" else ():  # here, the database is a SQLite file
            ended = run_line(line, tmp_path)
            shown += ended.stdout + ended.stderr
            assert ended.status in ({0, 1} if line.startswith(FINDS) else {0}), f"{line}: {ended}"
    assert SHOWN.get(page, "") in shown
    if page == "paused-for-days.md":
        gates = json.loads(run_line("relay status --json", tmp_path).stdout)["gates"]
        assert "move" not in str(gates), "the pause has ended"
    if page == "delivery-dead.md":
        assert "no value" not in run_line("relay dead --route to-crm", tmp_path).stdout, "the delivery was replayed"


def run_line(line: str, folder: Path) -> Ended:
    side, *words = shlex.split(line)
    return invoke(side, *words, INBOX_CONFIG=str(folder / "inbox.toml"), COLUMNS="200")
