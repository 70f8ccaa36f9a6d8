"""Docstrings of the fields of classes, which Python itself does not keep. They explain the configuration and the API."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import lru_cache
from types import ModuleType


def first_line(docstring: str | None) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((docstring or "").strip().split("\n\n")[0].split())


def field_docstrings(cls: type) -> dict[str, str]:
    """Return the strings below the fields of a class, its bases' too. Without source code there are none."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__ in sys.modules:
            found.update(_of_module(sys.modules[base.__module__]).get(base.__qualname__, {}))
    return found


@lru_cache(maxsize=256)
def _of_module(module: ModuleType) -> dict[str, dict[str, str]]:
    """Return the docstrings of each class at the top of a module."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):  # compiled, or without its source
        return {}
    return {node.name: _of_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _of_class(node: ast.ClassDef) -> dict[str, str]:
    return {
        field.target.id: first_line(after.value.value)
        for field, after in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
