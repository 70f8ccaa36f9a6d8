"""Plans of Postgres, node by node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, text

Node = dict[str, Any]


def explained(connection: Connection, statement: str, parameters: Mapping[str, Any], options: str = "") -> list[Node]:
    """Every node of the plan of a statement, the uppermost first."""
    return list(nodes(connection.execute(text(f"EXPLAIN ({options}FORMAT JSON) {statement}"), parameters).scalar_one()))


def nodes(found: list[Node]) -> Iterator[Node]:
    """Every node of what EXPLAIN gave as JSON."""
    below = [found[0]["Plan"]]
    while below:
        node = below.pop()
        yield node
        below += node.get("Plans", ())
