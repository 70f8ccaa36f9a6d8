"""Docstrings begin with a noun phrase or a verb, and a product class shares its name with no other."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from tests.docs.pages import ROOT

SHARED_NAMES = {
    "Event": "relay.handler.Event is public: the part of an event that a handler of the operator's own gets",
    "Retry": "relay.handler.Retry is public, and the table `retry` of inbox.toml has a class of its name",
}
"""Class names that two modules of the product may define, each with the reason."""

CLAUSE_OPENERS = frozenset(["How", "If", "That", "Those", "What", "When", "Where", "Whether", "Which", "Who", "Whose"])
FOLDERS = ("inbox", "relay", "migrations", "benchmarks", "docs", "tests")
PRODUCT = ("inbox", "relay", "migrations")


def sources(folders: tuple[str, ...]) -> Iterator[tuple[str, ast.Module]]:
    """Yield path and syntax tree of each Python file below `folders`."""
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def docstrings(body: list[ast.stmt], owner: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, name and text of each docstring in `body` and below: its owner's, and those of attributes."""
    name = owner
    for node in body:
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, name, text
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from docstrings(node.body, node.name)
            case ast.Assign(targets=[target, *_]) | ast.AnnAssign(target=target):
                name = ast.unparse(target)
            case _:
                pass


def find_clauses(folders: tuple[str, ...]) -> list[str]:
    """List the docstrings below `folders` that open with a clause, as file:line:name."""
    return [
        f"{path}:{line}:{name}: {text.strip().splitlines()[0]}"
        for path, tree in sources(folders)
        for line, name, text in docstrings(tree.body, "module")
        if text.split() and text.split()[0] in CLAUSE_OPENERS
    ]


def find_shared_names(folders: tuple[str, ...]) -> dict[str, list[str]]:
    """Map each name of several classes to the files that define one."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, tree in sources(folders):
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1 and name not in SHARED_NAMES}


def test_no_docstring_opens_with_a_clause() -> None:
    found = find_clauses(FOLDERS)
    assert not found, "\n" + "\n".join(found)


def test_no_two_product_classes_share_a_name() -> None:
    assert not find_shared_names(PRODUCT)
