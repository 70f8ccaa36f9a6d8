"""The entity to erase, texts that name it, and the form of a fact after an erasure. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import msgspec

from inbox.config.routing import entity_lane
from inbox.db.dialect import POSTGRES
from inbox.events.event import escape

ERASED = "erased"
"""Stands where a text was that has to be there."""
PSEUDONYM = f"{ERASED}:"
"""Every pseudonym begins with it; 64 hex digits follow."""

KEPT = (
    "attempt", "because", "blocks_lane", "by", "cause", "counted", "crashes", "did", "due_at", "duplicate", "error_class",
    "fetch_began_at", "lane", "last_modified", "late", "of", "relay_node", "run", "stale_suspected", "state", "was_due_at",
    "who",
)  # fmt: skip
"""Keys of `delivery_log.detail` that stay: from them follows the state of the delivery. `who` is an operator."""
EMPTIED = ("error", "why")
"""Keys whose text gives way to a word, since a fact can't be read without them. Every other key goes."""

_IS_PSEUDONYM = re.compile(rf"{PSEUDONYM}[0-9a-f]{{64}}")
_ESCAPES = re.compile(r'(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))+')
"""Characters as JSON may write them; several together, as two may make one character."""
_NESTED = 3
"""JSON in a text of JSON in a text of JSON is read, too."""


class ErasureSubject(msgspec.Struct, frozen=True, dict=True):
    """The entity to erase."""

    source: str
    entity_type: str
    entity_id: str

    @property
    def pseudonym(self) -> str:
        """Stands for the entity's id in its erased events: the same for all of them, another one at another source.

        It is a digest without a key. Who knows the exact id can find it again, so it doesn't hide ids that can be guessed.
        """
        return f"{PSEUDONYM}{hashlib.sha256(self.gate.encode()).hexdigest()}"

    @property
    def lane(self) -> str:
        """The entity's lane, on routes with a lane for each entity."""
        return entity_lane(self.entity_type, self.entity_id)

    @property
    def lane_of_pseudonym(self) -> str:
        """The lane of its erased events."""
        return entity_lane(self.entity_type, self.pseudonym)

    @property
    def gate(self) -> str:
        """`gate.name` of the entity."""
        return "|".join(map(escape, (self.source, self.entity_type, self.entity_id)))

    def is_named_in(self, text: str) -> bool:
        """Return whether a text has the id: alone, not as a part of a longer word or number.

        It is found as it is, and in every form that JSON has for it; in no other encoding.
        """
        return any(self._pattern.search(reading) for reading in _readings(text))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?<![^\W_]){re.escape(self.entity_id)}(?![^\W_])")

    def without(self, value: Any) -> Any:  # noqa: ANN401  # a value of any column
        """Return a value of a column without the texts that name the entity; the value itself when there are none."""
        if isinstance(value, str):
            is_named = self.is_named_in(value) and not _IS_PSEUDONYM.fullmatch(value)
            return ERASED if is_named else value
        if isinstance(value, bytes):
            return None if self.is_named_in(value.decode("utf-8", "backslashreplace")) else value
        if isinstance(value, dict):
            return {self.without(key): self.without(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.without(item) for item in value]
        return value


def _readings(text: str) -> Iterator[str]:
    """Yield a text as it is, and without the escapes of JSON. It need not be whole or valid JSON."""
    yield text
    for _ in range(_NESTED):
        plain = _ESCAPES.sub(lambda found: json.loads(f'"{found[0]}"'), text)
        if plain == text:
            return
        yield (text := plain)


def emptied(dialect: str, detail: str) -> str:
    """Return the expression of `detail` without anything of a person. Applied again, it changes nothing."""
    kept, texts = _list(KEPT + EMPTIED), _list(EMPTIED)
    if dialect == POSTGRES:
        value = f"CASE WHEN d.key IN ({texts}) THEN to_jsonb(CAST('{ERASED}' AS text)) ELSE d.value END"
        return f"coalesce((SELECT jsonb_object_agg(d.key, {value}) FROM jsonb_each({detail}) d WHERE d.key IN ({kept})), '{{}}')"
    value = f"CASE WHEN d.key IN ({texts}) THEN '{ERASED}' ELSE json({detail} -> d.fullkey) END"
    return f"(SELECT json_group_object(d.key, {value}) FROM json_each({detail}) d WHERE d.key IN ({kept}))"


def _list(keys: tuple[str, ...]) -> str:
    return ", ".join(f"'{key}'" for key in keys)
