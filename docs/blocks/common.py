"""Helpers that the pages share: tables, docstrings and `docs/meanings.toml`."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from inspect import getsource
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
MEANINGS: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "docs" / "meanings.toml").read_text(encoding="utf-8"))


def format_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a table of Markdown."""
    lines = [list(heads), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def format_list(rows: Iterable[tuple[str, str]]) -> str:
    """Format a list of names with their meanings."""
    return "".join(f"- {name}: {meaning}\n" for name, meaning in rows)


def join_names(names: Iterable[str]) -> str:
    """Join names with commas."""
    return ", ".join(names)


def abbreviate(lists: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Join the names of each list; a long part of the first list names only the ones that it lacks."""
    (first, most), *_ = lists.items()
    return {
        key: f"as `{first}`, without {join_names(f'`{name}`' for name in most if name not in names)}"
        if key != first and len(names) > len(most) / 2 and set(names) < set(most)
        else join_names(f"`{name}`" for name in names)
        for key, names in lists.items()
    }


def extract_summary(docstring: str | None) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((docstring or "").strip().split("\n\n")[0].split())


def read_field_docstrings(cls: type) -> dict[str, str]:
    """Return the strings below the fields of a class and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is not object:
            found.update(_read_module(sys.modules[base.__module__]).get(base.__qualname__, {}))
    return found


def find_added_meanings(cls: type) -> dict[str, str]:
    """Return the meanings that `docs/meanings.toml` adds to the fields of a class of `inbox.config`."""
    names = [base.__name__ for base in cls.__mro__]
    return {key: text for name in names for key, text in MEANINGS["config"].get(name, {}).items()}


@cache
def _read_module(module: ModuleType) -> dict[str, dict[str, str]]:
    try:
        tree = ast.parse(getsource(module))
    except (OSError, TypeError):  # compiled
        return {}
    return {node.name: _read_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _read_class(node: ast.ClassDef) -> dict[str, str]:
    return {
        field.target.id: extract_summary(after.value.value)
        for field, after in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
