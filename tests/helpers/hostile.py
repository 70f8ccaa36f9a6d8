"""A value that would do a terminal every harm, put into every column of every table that takes text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from sqlalchemy import ARRAY, JSON, Boolean, Column, Engine, Integer, LargeBinary, Table, Text, insert, update

from inbox.clock import SystemClock
from inbox.db.columns import UtcDateTime
from inbox.db.schema import metadata

MARK = "Qz-hostile-Zq"
HOSTILE = (
    f"{MARK} \\[/] [/] \\[link=https://evil.example]x[/link] [link=https://evil.example]y [red] :warning: \\"
    "\x1b]8;;https://evil.example\x1b\\z\x1b]8;;\x07 \x1b[2J\x9b31m\x9d\x7f\x08\r\nall is well\t"
    "\u202e\u2066\u200f\u061c\u200b\ufeff\u2028\u2029\U000e0041\u3164"
)
"""Everything that both databases take: neither has NUL in a text, nor half of a character."""

NOT_FILLED = {"order_lock", "route_lock", "payload_lock", "write_probe"}
"""Tables without text from outside."""
ONE_ROW = {"pruner"}
"""Tables whose only row always exists."""

WORDS: Mapping[str, Mapping[str, object]] = {
    "inbox": {"seq": 1000, "action": "update"},
    "inbox_payload": {"seq": 1000},
    "duplicate_request": {"seq": 1000},
    "open_delivery": {"seq": 1000, "state": "dead", "due_at": None, "lease_until": None, "lease_token": None},
    "delivery_log": {"seq": 1000, "kind": "dead", "state": "dead"},
    "throughput_minute": {"kind": "source"},
    "relay_node": {"stopped_at": None},
    "gate": {"kind": "destination", "breaker": "open"},
    "relay_command": {"kind": "replay", "state": "failed"},
    "rejected_request": {"readmitted_at": None, "readmitted_seq": None},
}
"""Columns that a check keeps to certain words, or whose value decides what a listing shows."""

_COLOURS_AND_CURSOR = re.compile(r"\x1b\[(?:[\d;]*m|\?25[lh]|\d*[AKG])|\r")
"""Sequences that rich itself writes to a terminal: colours, and the positions of its bars."""
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def plant(engine: Engine) -> set[str]:
    """A row in every table, with the value in every column of it that takes text; gives the columns that have it."""
    planted = set()
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            if table.name in NOT_FILLED:
                continue
            row = {column.name: _value(column) for column in table.columns if not _is_numbered(column)}
            row |= WORDS.get(table.name, {})
            connection.execute(update(table).values(row) if table.name in ONE_ROW else insert(table).values(row))
            planted |= {f"{table.name}.{name}" for name, value in row.items() if MARK in repr(value)}
        gates = metadata.tables["gate"]
        for kind in ("source", "route", "api", "entity"):
            row = {column.name: _value(column) for column in gates.columns} | {"kind": kind, "breaker": "closed"}
            connection.execute(insert(gates).values(row))
    return planted


def text_columns() -> set[str]:
    """Every column that takes text of any form, but those that a check keeps to certain words."""
    return {
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        if table.name not in NOT_FILLED
        for column in table.columns
        if isinstance(column.type, Text | JSON | ARRAY | LargeBinary) and column.name not in _words_of(table)
    }


def _is_numbered(column: Column[object]) -> bool:
    return column.name == "id" and isinstance(column.type, Integer)


def _words_of(table: Table) -> set[str]:
    return {name for name, value in WORDS.get(table.name, {}).items() if isinstance(value, str)}


def _value(column: Column[object]) -> object:
    if isinstance(column.type, ARRAY):
        return [HOSTILE]
    values: tuple[tuple[type, object], ...] = (
        (Boolean, False),
        (UtcDateTime, SystemClock().now().replace(microsecond=0)),
        (Integer, 1),
        (LargeBinary, HOSTILE.encode()),
        (JSON, dict.fromkeys(("cause", "error", "who", "why", HOSTILE), HOSTILE)),
    )
    return next((value for kind, value in values if isinstance(column.type, kind)), HOSTILE)


def harm_of(output: str, *, terminal: bool = False) -> list[str]:
    """List what of `output` would do harm: characters that are not seen, as their escapes."""
    if terminal:
        output = _COLOURS_AND_CURSOR.sub("", output)
    return sorted({ascii(c) for c in output if unicodedata.category(c) in HIDDEN and c != "\n"})
