"""Commands about no delivery, each with the function that does its next step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from inbox.config.model import Config
from relay.store.database import Database
from relay.store.operator.commands import AskedTask, BatchResult
from relay.store.operator.erase import erase
from relay.store.operator.prune import prune
from relay.store.operator.readmit import readmit
from relay.store.operator.stopping import turn
from relay.store.operator.sweeping import sweep
from relay.store.transaction import Transaction

Act = Callable[[Transaction], BatchResult]
Task = Callable[[Database, Config, AskedTask], Act]
"""Finds the next short step without a lock, and returns how to do it in the transaction that locks the command and notes the
result: `running` until it has ended. With `dry_run` it changes nothing, and returns `done` with `matched` and `sample`.

Raises:
    UnusableCommand: it can't be done as it is asked; the command ends `refused` with this message.
"""

TASKS: Mapping[str, Task] = {
    "erase": erase,
    "prune": prune,
    "readmit": readmit,
    "sweep": sweep,
    "stop": lambda _database, _config, task: partial(turn, act="stop", task=task),
    "continue": lambda _database, _config, task: partial(turn, act="continue", task=task),
}
"""The function of each kind."""
