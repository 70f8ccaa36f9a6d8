"""Commands about no delivery, each with the function that does its next step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from inbox.config.model import Config
from relay.store.database import Database
from relay.store.operator.commands import AskedTask, BatchResult
from relay.store.operator.erase import erase
from relay.store.operator.prune import prune
from relay.store.operator.readmit import readmit
from relay.store.operator.stopping import let_go_on, stop
from relay.store.operator.sweeping import sweep

Task = Callable[[Database, Config, AskedTask], BatchResult]
"""Does one short step, in its own transactions, and returns what it has done so far: `running` until it has ended.

Several relays may do steps of one command, and any of them may die after a step and before it is noted: a step that is done
twice must change nothing the second time. With `dry_run` it changes nothing, and returns `done` with `matched` and `sample`.

Raises:
    UnusableCommand: it can't be done as it is asked; the command ends `refused` with this message.
"""

TASKS: Mapping[str, Task] = {
    "erase": erase,
    "prune": prune,
    "readmit": readmit,
    "sweep": sweep,
    "stop": stop,
    "continue": let_go_on,
}
"""The function of each kind."""
