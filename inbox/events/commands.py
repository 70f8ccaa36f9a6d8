"""Commands of operators: the kinds, and the keys of each kind's selection. The schema, its triggers and the relay share them."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Literal

import msgspec

from inbox.events.states import ENDINGS

SAYS_NOTHING = f" \t\n\r{string.punctuation}…"
"""Characters that give no reason by themselves. `--reason '…'` stands in hints, and is pasted as it is."""


def says_why(reason: str | None) -> bool:
    """Return whether a reason has a letter or a digit of any script. Pure."""
    return bool(reason and reason.strip(SAYS_NOTHING))


_ESCAPED = re.sub(r"([]^\\-])", r"\\\1", SAYS_NOTHING)  # no more, as ECMA-262 knows no escapes of other characters
SAYS_WHY_PATTERN = "[^\\x00" + _ESCAPED + "]"
"""The same rule for a JSON Schema: a reason has one such character."""


class KeyType(msgspec.Struct, frozen=True):
    """The type of a key of `relay_command.selection`."""

    type: Literal["text", "texts", "number", "numbers", "time", "flag"]
    least: int = 0
    most: int = 2**63 - 1
    among: tuple[str, ...] = ()
    """Every value that a text may have; empty: any."""


MOST_SEQS = 200
"""Events, or deliveries, that one selection may name."""

DEAD_STATES = ("dead", "blocked")
CANCELLED_BY_STATE = (*DEAD_STATES, "retrying", "ready", "waiting", "received")
"""States whose deliveries alone a cancel can be about; `retrying`: ready, and due later."""
REPLAYED_BY_STATE = (*DEAD_STATES, *(ending for ending in ENDINGS if ending != "superseded"))
"""States whose deliveries alone a replay can be about; the ended ones only of chosen events or one entity."""


KEYS: Mapping[str, KeyType] = {
    "route": KeyType("text"),
    "seq": KeyType("number"),
    "seqs": KeyType("numbers"),
    "deliveries": KeyType("texts"),
    "state": KeyType("text", among=tuple(dict.fromkeys((*CANCELLED_BY_STATE, *REPLAYED_BY_STATE)))),
    "id": KeyType("number"),
    "source": KeyType("text"),
    "entity_type": KeyType("text"),
    "entity_id": KeyType("text"),
    "destination": KeyType("text"),
    "api": KeyType("text"),
    "cause": KeyType("text"),
    "status": KeyType("number", 100, 599),
    "error": KeyType("text"),
    "error_sha256": KeyType("text"),
    "event_type": KeyType("text"),
    "since": KeyType("time"),
    "until": KeyType("time"),
    "until_fact": KeyType("number"),
    "kinds": KeyType("texts"),
    "command": KeyType("number"),
    "force": KeyType("flag"),
    "backfill": KeyType("flag"),
    "everything": KeyType("flag"),
}
"""Every key, and its type: one key has one type in all kinds of commands."""

FLAGS = ("force", "backfill", "everything")
"""Keys that are no condition: they narrow no selection."""
BOUNDS = ("until_fact",)
"""Keys that keep a selection as it was planned: alone they are no condition either."""

_DELIVERIES = (
    "route", "seq", "seqs", "deliveries", "source", "entity_type", "entity_id", "destination", "api", "cause", "status",
    "error", "error_sha256", "event_type", "since", "until",
)  # fmt: skip
_GATE = ("route", "destination", "api", "source", "entity_type", "entity_id")

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "replay": (*_DELIVERIES, "until_fact", "state", "force", "backfill", "everything"),
    "retry": (*_DELIVERIES, "everything"),
    "cancel": (*_DELIVERIES, "state", "everything"),
    "unblock": (*_DELIVERIES, "everything"),
    "pause": _GATE,
    "resume": _GATE,
    "sweep": ("source", "entity_type"),
    "erase": ("source", "entity_type", "entity_id"),
    "prune": ("kinds",),
    "readmit": ("id", "source", "cause", "status", "error", "since", "until", "everything"),
    "stop": ("command",),
    "continue": ("command",),
}
"""The keys of the selection of each kind of command."""

COMMAND_KINDS = tuple(COMMANDS)
"""Every value of `relay_command.kind` that this version knows."""

OF_DELIVERIES = ("replay", "retry", "cancel", "unblock")
"""Kinds that select deliveries."""
SELECTING = (*OF_DELIVERIES, "readmit")
"""Kinds whose selection without any condition needs `everything`."""
OF_GATES = ("pause", "resume")
"""Kinds that name one gate."""

OF_COMMANDS = ("stop", "continue")
"""Kinds that name another command."""

NO_DRY_RUN = (*OF_GATES, "sweep", *OF_COMMANDS)

MOST_REASON = 2000
"""Characters of a reason. Each fact of a command repeats it, and there may be as many as there are deliveries."""

MOST_WHO = 1000
"""Characters of the name of the operator, which each fact repeats, too."""

OPEN_COMMANDS = ("asked", "running")
COMMAND_STATES = (*OPEN_COMMANDS, "done", "failed", "refused", "cancelled")
"""Every value of `relay_command.state`."""

ERASED = "erased"
"""Stands for a text that names an erased entity in an ended command; in its selection, the begin of a pseudonym."""
