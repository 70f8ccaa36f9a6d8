"""Keys that lead to a screen: `g`, then its letter."""

from __future__ import annotations

from collections.abc import Mapping

KEYS: Mapping[str, str] = {
    "/": "o",
    "/deliveries": "d",
    "/dead": "l",
    "/gates": "g",
    "/rejected": "r",
    "/commands": "c",
    "/alerts": "a",
    "/doctor": "h",
}
"""Letter of each path."""
