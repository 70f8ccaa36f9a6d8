"""Values that a mapping sends are those that docs/reference/mapping.md states."""

from __future__ import annotations

import json
import re
import sys
from types import ModuleType

import msgspec
import pytest

from inbox.config.sync import Fetch, MapField, SyncRoute
from inbox.errors import MappingError
from inbox.loader.load import parse_config
from relay.sync.expressions import encode
from relay.sync.fields import compile_fields
from tests.docs.pages import PAGES, blocks, the_block

PAGE = PAGES["docs/reference/mapping.md"]


def rows() -> list[dict[str, str]]:
    """The rows of every table, by the heads of their columns; the code in each cell without its backticks."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", PAGE, re.MULTILINE):
        head, _, *body = (
            [cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table.splitlines()
        )
        found += [dict(zip(head, line, strict=True)) for line in body]
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: " ".join(row.values()))
def test_a_row_of_a_table_is_so(row: dict[str, str]) -> None:
    keys = {key: row[key] for key in ("cast", "read", "write") if row.get(key)}
    field = msgspec.convert({"from": "entity", **keys}, MapField)
    made = compile_fields("r", SyncRoute(fetch=Fetch(api="i", path="/"), map={"x": field}))
    scope = {"event": {}, "entity": json.loads(row["found"]), "target": None}
    if row["sent"] == "error":
        with pytest.raises(MappingError):
            made.evaluate(scope, creating=False)
    else:
        assert encode(made.evaluate(scope, creating=False)["x"]).decode() == row["sent"]


def test_the_tables_have_every_cast() -> None:
    assert {row["cast"] for row in rows()} == {"text", "int", "float", "bool", "date", "datetime"}


def test_the_example_sends_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    by_kind = {
        kind: [block.text for block in blocks(PAGE) if block.info == kind] for kind in ("toml", "python", "json")
    }
    hooks = ModuleType("our_crm")
    exec(by_kind["python"][0], hooks.__dict__)  # noqa: S102  # the page's own
    monkeypatch.setitem(sys.modules, "our_crm", hooks)
    sync = parse_config(by_kind["toml"][0]).routes["user-to-crm"].sync
    assert sync is not None
    scope, sent = map(json.loads, by_kind["json"])
    made = compile_fields("user-to-crm", sync)
    assert made.evaluate(scope, creating=False) == sent
    created = made.evaluate({**scope, "target": None}, creating=True)
    assert created == {**{name: value for name, value in sent.items() if value is not None}, "owner": "nobody"}


def test_the_example_uses_every_key_of_a_field() -> None:
    example = the_block("docs/reference/mapping.md", "toml")
    assert [key for key in MapField.__struct_encode_fields__ if not re.search(rf"\b{key} = ", example)] == []
