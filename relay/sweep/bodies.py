"""Bodies of the events that sweeps add: the listed entity, marked as swept, or shaped like the webhook's body. Pure."""

from __future__ import annotations

from functools import partial
from typing import Any

from inbox.config.sync import Sweep
from inbox.errors import ConfigError, collect_config_errors
from inbox.events.timestamps import rfc3339
from relay.sync.cursor import Listed
from relay.sync.expressions import Expression, encode

MARK = "sweep"
"""The key of a body that marks it as swept."""


class Bodies:
    """The rule for the bodies of one sweep."""

    def __init__(self, table: Sweep, where: str, most: int) -> None:
        """Compile it. `most` is the largest body in bytes, as for a webhook of the source.

        Raises:
            ConfigError: an expression is wrong, or a key is taken.
        """
        self._entity_type = table.entity_type
        self._most = most
        self._shape: dict[str, Any] | None = None
        if table.event_body is not None:
            if MARK in table.event_body:
                raise ConfigError(f"{where}.event_body: {MARK!r} is the mark of swept events; choose another key")
            self._shape = _compiled(table.event_body, f"{where}.event_body")

    def body_of(self, listed: Listed, item: Any) -> tuple[bytes, bool]:  # noqa: ANN401  # any JSON
        """Encode the body for a listed entity; False beside it when the entity was left out, as it is too large.

        Raises:
            MappingError: the shape can't be evaluated on this entity.
        """
        mark = {"entity_type": self._entity_type, "entity_id": listed.id, "modified": rfc3339(listed.modified)}
        if self._shape is None:
            body = encode({MARK: {**mark, "item": item}})
        else:
            body = encode({**_evaluated(self._shape, item), MARK: mark})
        if len(body) <= self._most:
            return body, True
        why = f"the body would have {len(body)} bytes, and the source takes {self._most}"
        return encode({MARK: {**mark, "left_out": why}}), False


def _compiled(shape: object, where: str) -> Any:  # noqa: ANN401  # a tree of expressions
    if isinstance(shape, str):
        return Expression(shape, where, None)
    if isinstance(shape, dict):
        parts = {key: partial(_compiled, inner, f"{where}.{key}") for key, inner in shape.items()}
        return collect_config_errors(parts)
    raise ConfigError(f"{where}: expected a JMESPath in quotes, or a table of them; a constant text is \"'text'\"")


def _evaluated(shape: Any, item: Any) -> Any:  # noqa: ANN401  # a tree of expressions
    if isinstance(shape, Expression):
        return shape.value(item)
    return {key: _evaluated(inner, item) for key, inner in shape.items()}
