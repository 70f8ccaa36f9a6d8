"""Stops by a row of `relay_command`, as SQL inserts it. The page and the command line stop a command at once."""

from __future__ import annotations

from inbox.config.model import Config
from relay.store.database import Database
from relay.store.operator.commands import AskedTask, BatchResult, CommandAct, turn_in


def stop(database: Database, _config: Config, task: AskedTask) -> BatchResult:
    """Stop the command.

    Raises:
        UnusableCommand: there is none, or it has ended.
    """
    return _turn(database, "stop", task)


def let_go_on(database: Database, _config: Config, task: AskedTask) -> BatchResult:
    """Let the command go on.

    Raises:
        UnusableCommand: there is none, or nobody has stopped it.
    """
    return _turn(database, "continue", task)


def _turn(database: Database, act: CommandAct, task: AskedTask) -> BatchResult:
    with database.write() as transaction:
        number = int(task.selection["command"])
        answer = turn_in(transaction, act, number, who=task.asked_by, why=task.reason)
    return BatchResult("done", answer=answer)
