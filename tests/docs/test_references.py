"""Files, functions, tables, columns and links that a page names exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from sqlalchemy import create_engine, inspect
from sqlalchemy.schema import CreateTable

from docs.blocks.commands import describe_relay
from docs.blocks.configuration import list_config_keys
from inbox.db import views  # noqa: F401  # attaches the views to the metadata
from inbox.db.dialect import sqlite_functions
from inbox.db.engine import PINNED
from inbox.db.schema import metadata
from inbox.observe import metrics
from relay.delivery.alerts import SENTENCES
from relay.delivery.lifecycle import State, Step
from relay.store.audit import FindingName
from tests.docs.pages import PAGES, ROOT, blocks

_CODE = re.compile(r"`([^`\n]+)`")
_PLACE = re.compile(r"([\w./-]+\.(?:py|toml|md|sql))(?::([A-Za-z_][\w.]*))?")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PAGE_NAMES = sorted(PAGES)


def prose(page: str) -> str:
    """Return the page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return the names that a module defines: functions, classes, variables, and `Class.name`."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                collect(node.body if isinstance(node, ast.ClassDef) else [], f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + ast.unparse(target) for target in targets)

    collect(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_every_file_and_function_that_is_named_exists(page: str) -> None:
    for code in _CODE.findall(prose(page)):
        place = _PLACE.fullmatch(code)
        if place is None or place[1] == "inbox.toml" or place[1].startswith("NAME."):
            continue
        path = ROOT / place[1]
        assert path.is_file(), f"{page} names {code}"
        assert place[2] is None or place[2] in names_in(path), f"{page} names {code}"


def columns() -> dict[str, set[str]]:
    """Return the columns of every table and view."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        sqlite_functions(connection.connection.dbapi_connection)
        metadata.create_all(connection)
        inspector = inspect(connection)
        found = {
            name: {column["name"] for column in inspector.get_columns(name)}
            for name in [*inspector.get_table_names(), *inspector.get_view_names()]
        }
    engine.dispose()
    return found


def words_of_the_schema() -> set[str]:
    tables = columns()
    indexes = {str(index.name) for table in metadata.tables.values() for index in table.indexes}
    made = "".join(str(CreateTable(table)) for table in metadata.tables.values())
    constraints = set(re.findall(r"CONSTRAINT (\w+)", made))
    return {*tables, *(column for some in tables.values() for column in some), *indexes, *constraints}


@pytest.mark.parametrize(
    "page",
    ["docs/explanation/way-of-a-webhook.md", "docs/reference/states.md", "docs/reference/schema.md"],
)
def test_every_table_and_column_that_is_named_exists(page: str) -> None:
    keys = set(re.findall(r"^- `(\w+)` ", list_config_keys(), re.MULTILINE))
    counted = {metric.name for metric in (*metrics.RECEIVER, *metrics.RELAY)}
    said = {*State, *Step, *SENTENCES, *keys, *counted, *get_args(FindingName), *PINNED}
    said |= {"blocks_lane", "crash_loop", "error_class", "key_parts"}
    tables, words = columns(), words_of_the_schema() | said
    for code in _CODE.findall(re.sub(r"<!-- generated.*?<!-- end -->", "", prose(page), flags=re.DOTALL)):
        if match := re.fullmatch(r"([a-z_]+)\.([a-z_]+)", code):
            assert code == "inbox.toml" or match[2] in tables.get(match[1], set()), f"{page} names {code}"
        elif re.fullmatch(r"[a-z]+(_[a-z]+)+", code):
            assert code in words, f"{page} names {code}"


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in _LINK.findall(prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page} links to {target}"


def test_the_readme_names_the_decisive_test_command() -> None:
    assert "make run\nmake test\n" in [block.text for block in blocks(PAGES["README.md"]) if block.info == "sh"]
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_index_leads_to_every_page_and_the_readme_to_the_index() -> None:
    def links_of(page: str) -> set[str]:
        targets = (target.partition("#")[0] for target in _LINK.findall(prose(page)) if "://" not in target)
        return {str(((ROOT / page).parent / target).resolve().relative_to(ROOT)) for target in targets}

    listed = links_of("docs/README.md") | links_of("docs/how-to/runbooks/README.md") | {"docs/README.md"}
    assert {page for page in PAGE_NAMES if page.startswith("docs/")} <= listed
    roots = {page for page in PAGE_NAMES if "/" not in page and page != "README.md"}
    assert {"docs/README.md", *roots} <= links_of("README.md")


def test_commands_that_pages_name_exist() -> None:
    known = set(re.findall(r"^##+ `((?:inbox|relay)(?: [a-z]+)*)", PAGES["docs/reference/cli.md"], re.MULTILINE))
    assert "`relay run`" in describe_relay()
    for page in (each for each in PAGE_NAMES if each != "CHANGELOG.md"):  # it names removed commands
        for code in _CODE.findall(prose(page)):
            if re.fullmatch(r"(inbox|relay) [a-z]+( [a-z]+)?", code):
                assert code in known, f"{page} names {code}"
