"""Each statement of docs/how-to/give-commands-in-sql.md does on both databases what the page says."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from inbox.loader.load import parse_config
from relay.delivery.policy import policies
from relay.store.operator.execution import OpenCommands
from tests.docs.pages import PAGES, blocks, expected_after, shows, the_block
from tests.helpers.relaying import HOPELESS, Steps
from tests.helpers.storing import an_event

PAGE = "docs/how-to/give-commands-in-sql.md"
CONFIG = parse_config(the_block(PAGE, "toml"))


def said(steps: Steps, statement: str) -> str:
    """Return the output of a shell; afterwards a relay has worked on every command."""
    if statement.startswith("SELECT"):
        return "\n".join(" ".join(map(str, row.values())) for row in steps.rows(statement))
    try:
        steps.do(statement)
    except IntegrityError as error:
        return str(error.orig)
    working = OpenCommands()
    while working.work(steps.work):
        pass
    working.work(steps.work)
    return ""


def test_every_statement_of_the_page_does_what_the_page_says(engine: Engine) -> None:
    steps = Steps(engine, policies(CONFIG))
    steps.config = CONFIG
    steps.arrive(*(an_event(n, f"u{n}", routes=["to-crm"]) for n in (1, 2)))
    steps.record_all(steps.claim_due(10, "to-crm"), HOPELESS)
    page = blocks(PAGES[PAGE])
    for position, block in enumerate(page):
        if block.info == "sql":
            shown, expected = said(steps, block.text.strip()), expected_after(page, position)
            assert shows(expected or "", shown), f"line {block.line}: {shown}"
    assert [state for _, _, state in steps.states()] == ["ready", "ready"]
