"""Commands of an operator, carried out to their end."""

from __future__ import annotations

from inbox.config.model import Config
from relay.delivery.policy import policies
from relay.operations.asks import Selection
from relay.store.database import Database
from relay.store.operator import commands, execution
from relay.store.operator.selection import Act


def carry_out(database: Database, config: Config, act: Act, chosen: Selection, *, who: str = "kim", why: str) -> int:
    """All of it, batch by batch, by this process alone; how many deliveries were changed."""
    number = commands.ask(database, act, chosen, who=who, why=why)
    while (progress := commands.progress(database, number)) and not progress.has_ended:
        execution.work_on(database, config, policies(config), number)
    assert progress is not None
    assert progress.state == "done"
    return progress.affected
