"""Ids that a listing is asked for, in chunks, as its templates see them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from inbox.config.sweep import IdsOfCall
from inbox.errors import ConfigError, MappingError
from relay.sync.expressions import Scope
from relay.sync.templates import Template


class ChunkPlan(msgspec.Struct, frozen=True):
    """A table of `ids`, compiled."""

    size: int
    join: str
    each: Template | None

    def scope_of(self, ids: Sequence[str]) -> Scope:
        """Return the scope of a call that asks for these ids, of which each passes `can_ask_for`."""
        return {"ids": [*ids] if self.each is None else self.join.join(map(self._written, ids))}

    def can_ask_for(self, entity_id: str) -> bool:
        """Return False for an id that the form can't write, or that the other side would read as several."""
        if self.each is None:
            return True
        try:
            self._written(entity_id)
        except MappingError:
            return False
        is_quoted = all(each.form is not None and each.form.quote is not None for each in self.each.placeholders)
        return is_quoted or self.join not in entity_id

    def _written(self, entity_id: str) -> str:
        return "" if self.each is None else self.each.expand({"id": entity_id})


def compile_chunks(ids: IdsOfCall, where: str) -> ChunkPlan:
    """Compile a table of `ids`.

    Raises:
        ConfigError: the template is wrong or has no id, or nothing stands between two ids.
    """
    each = None if ids.each is None else Template(ids.each, f"{where}.each", {"id"})
    if each is not None and not each.placeholders:
        raise ConfigError(f'{where}.each: has no {{id}}, so that every id would be the same; write each = "{{id}}"')
    if not ids.join:
        raise ConfigError(f'{where}.join: must not be empty, since two ids would be read as one; write join = ","')
    return ChunkPlan(ids.size, ids.join, each)
