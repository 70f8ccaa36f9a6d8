"""Blocks that `docs/generate.py` writes are up to date."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from docs import generate
from docs.blocks.common import MEANINGS
from docs.blocks.configuration import list_config_keys
from inbox.config import model, sources, sync
from inbox.loader.load import parse_config
from relay import destinations
from relay.delivery.lifecycle import State, Step
from tests.docs.pages import PAGES, blocks, parse_command, the_block


@pytest.mark.parametrize("path", [*generate.PAGES, *generate.FILES], ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    written = path.read_text(encoding="utf-8")
    assert written == generate.render_file(path), "stale: run .venv/bin/python docs/generate.py"


def test_every_block_is_on_a_page() -> None:
    everything = "".join(page.read_text(encoding="utf-8") for page in generate.PAGES)
    assert set(re.findall(r"<!-- generated: ([a-z-]+) -->", everything)) == generate.BLOCKS.keys()


def test_every_state_and_step_is_on_the_page_of_states() -> None:
    page = PAGES["docs/reference/states.md"]
    assert [word for word in (*State, *Step) if word not in page] == []


def test_every_explanation_belongs_to_a_key_on_the_page() -> None:
    for name, explained in MEANINGS["config"].items():
        table = next(found for module in (model, sources, sync) if (found := getattr(module, name, None)))
        assert explained.keys() <= set(table.__struct_fields__), name
    page = PAGES["docs/reference/configuration.md"]
    unused = [text for some in MEANINGS["config"].values() for text in some.values() if text not in page]
    assert unused == []


def keys_of(value: object) -> set[str]:
    if isinstance(value, dict):
        return {*value, *(key for inner in value.values() for key in keys_of(inner))}
    return {key for inner in value for key in keys_of(inner)} if isinstance(value, list) else set()


def test_the_complete_example_uses_every_key_and_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    example = the_block("docs/reference/configuration.md", "toml")
    documented = set(re.findall(r"^- `(\w+)` ", list_config_keys(), re.MULTILINE))
    tree = tomllib.loads(example)
    missing = documented - keys_of(tree)
    assert missing <= {"token", "user", "password", "value", "name"}, missing

    for name in re.findall(r'"env:(\w+)"', example):
        monkeypatch.setenv(name, "https://example.com" if "URL" in name else "secret")
    functions: dict[str, ModuleType] = {}
    for module, name in re.findall(r'(?:function|transform) = "([\w.]+):(\w+)"', example):
        setattr(functions.setdefault(module, ModuleType(module)), name, lambda *_: None)
        monkeypatch.setitem(sys.modules, module, functions[module])
    parsed = parse_config(example)
    crm = msgspec.structs.replace(parsed.destinations["crm"], ca_file=None, cert_file=None, key_file=None)
    destinations.build(msgspec.structs.replace(parsed, destinations={**parsed.destinations, "crm": crm}))


EXAMPLES = [line for block in blocks(PAGES["docs/reference/cli.md"]) for line in block.text.splitlines()]


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_of_a_help_text_is_a_valid_command(line: str) -> None:
    parse_command(line)
