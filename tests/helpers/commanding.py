"""Commands of an operator, carried out to their end."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine

from inbox.config.model import Config
from inbox.db.erasure import ErasureSubject
from relay.delivery.policy import policies
from relay.operations.asks import Selection
from relay.store.database import Database
from relay.store.operator import commands, execution
from relay.store.operator.commands import Command
from relay.store.operator.selection import Act
from tests.helpers.relaying import work_of


def carry_out(database: Database, config: Config, act: Act, chosen: Selection, *, who: str = "kim", why: str) -> int:
    """All of it, batch by batch, by this process alone; how many deliveries were changed."""
    number = commands.ask(database, act, chosen, who=who, why=why)
    while (progress := commands.progress(database, number)) and not progress.has_ended:
        execution.work_on(work_of(database, policies(config), config=config), number)
    assert progress is not None
    assert progress.state == "done"
    return progress.affected


def erase(
    engine: Engine,
    config: Config,
    subject: ErasureSubject,
    *,
    why: str = "request 2026-17",
    heard: Callable[[], None] = lambda: None,
    number: int | None = None,
) -> tuple[int, Command]:
    """Erase an entity in this process, or go on with a command; `heard` is called after each step."""
    database = Database(engine)
    asked = {"source": subject.source, "entity_type": subject.entity_type, "entity_id": subject.entity_id}
    number = number or commands.ask(database, "erase", asked, who="kim", why=why)
    while (progress := commands.progress(database, number)) and not progress.has_ended:
        execution.work_on(work_of(database, policies(config), config=config), number)
        heard()
    assert progress is not None
    return number, progress
