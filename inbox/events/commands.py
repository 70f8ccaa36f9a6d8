"""Commands of operators: their kinds, states and limits. The schema, its triggers and the relay share them."""

from __future__ import annotations

import re
import string

from inbox.events.states import ENDINGS

SAYS_NOTHING = f" \t\n\r{string.punctuation}…"
"""Characters that give no reason by themselves. `--reason '…'` stands in hints, and is pasted as it is."""


def says_why(reason: str | None) -> bool:
    """Return whether a reason has a letter or a digit of any script. Pure."""
    return bool(reason and reason.strip(SAYS_NOTHING))


_ESCAPED = re.sub(r"([]^\\-])", r"\\\1", SAYS_NOTHING)  # no more, as ECMA-262 knows no escapes of other characters
SAYS_WHY_PATTERN = "[^\\x00" + _ESCAPED + "]"
"""The same rule for a JSON Schema: a reason has one such character."""


MOST_SEQS = 200
"""Events, or deliveries, that one selection may name."""

DEAD_STATES = ("dead", "blocked")
CANCELLED_BY_STATE = (*DEAD_STATES, "retrying", "ready", "waiting", "received")
"""States whose deliveries alone a cancel can be about; `retrying`: ready, and due later."""
REPLAYED_BY_STATE = (*DEAD_STATES, *(ending for ending in ENDINGS if ending != "superseded"))
"""States whose deliveries alone a replay can be about; the ended ones only of chosen events or one entity."""


COMMAND_KINDS = (
    "replay", "retry", "cancel", "unblock", "pause", "resume", "sweep", "erase", "prune", "readmit", "stop", "continue",
)  # fmt: skip
"""Every value of `relay_command.kind` that this version knows; `relay.operations.table` says what each is."""

MOST_REASON = 2000
"""Characters of a reason. Each fact of a command repeats it, and there may be as many as there are deliveries."""

MOST_WHO = 2000
"""Characters of the name of the operator, which each fact repeats, too."""

OPEN_COMMANDS = ("asked", "running")
COMMAND_STATES = (*OPEN_COMMANDS, "done", "failed", "refused", "cancelled")
"""Every value of `relay_command.state`."""
