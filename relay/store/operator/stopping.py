"""Stops by a row of `relay_command`, as SQL inserts it. The page and the command line stop a command at once."""

from __future__ import annotations

from relay.store.operator.commands import AskedTask, BatchResult, CommandAct, turn_in
from relay.store.transaction import Transaction


def turn(transaction: Transaction, act: CommandAct, task: AskedTask) -> BatchResult:
    """Stop the command that is named, or let it go on.

    Raises:
        UnusableCommand: there is none, it has ended, or nobody has stopped it.
    """
    answer = turn_in(transaction, act, task.asked.command, who=task.asked_by, why=task.reason)
    return BatchResult("done", answer=answer)
