"""Helpers that the pages share: tables, docstrings and `docs/meanings.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from relay.web.openapi import field_docstrings, first_line

__all__ = ["MEANINGS", "ROOT", "field_docstrings", "first_line", "table"]

ROOT = Path(__file__).resolve().parent.parent.parent
MEANINGS: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "docs" / "meanings.toml").read_text(encoding="utf-8"))


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    lines = [list(heads), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
