"""Functions that a python destination accepts, and the errors for others when the relay starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from inbox.errors import ConfigError
from inbox.loader.load import parse_config
from relay.destinations import python
from relay.sync.expressions import function_of
from tests.destinations.handling import configured
from tests.helpers.delivering import build

_numbers = count(1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of inbox.toml; modules imported from it are forgotten afterwards."""
    monkeypatch.setenv("INBOX_CONFIG", str(tmp_path / "inbox.toml"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(python, "_SLOTS", {})
    before = set(sys.modules)
    yield tmp_path
    for name in {name for name in sys.modules if name.startswith("module_of_a_test_")} - before:
        del sys.modules[name]


@pytest.fixture
def written(folder: Path) -> Callable[[str], str]:
    """Writes a module into the folder; gives its name."""

    def write(text: str) -> str:
        name = f"module_of_a_test_{next(_numbers)}"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        return name

    return write


def refusal(function: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(configured(function))
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "def on_event(event): ...",
        "def on_event(event, tries=3, *, log=None): ...",
        "on_event = lambda *_: None",
        "import functools\non_event = functools.partial(print, 1)",
        "class Handler:\n    def __call__(self, event): ...\non_event = Handler()",
        "on_event = print",
    ],
)
def test_anything_that_can_be_called_with_an_event_is_taken(written: Callable[[str], str], text: str) -> None:
    assert callable(function_of(f"{written(text)}:on_event", "here"))


def test_a_function_inside_something_else_is_found_by_its_path(written: Callable[[str], str]) -> None:
    name = written("class Handlers:\n    @staticmethod\n    def on_event(event): return 5")
    found = function_of(f"{name}:Handlers.on_event", "here")
    assert found.__name__ == "on_event"


def test_the_present_folder_is_searched_when_no_file_is_named(
    written: Callable[[str], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = written("def on_event(event): ...")
    monkeypatch.delenv("INBOX_CONFIG")
    monkeypatch.chdir(folder)
    assert callable(function_of(f"{name}:on_event", "here"))


def test_a_file_beside_inbox_toml_takes_nobodys_place(folder: Path) -> None:
    (folder / "json.py").write_text("def loads(event): ...", encoding="utf-8")
    assert function_of("json:loads", "here") is json.loads


def test_a_missing_module_is_told_with_the_file_to_write(folder: Path) -> None:
    assert refusal("no_such.module:on_event") == (
        "destinations.crm.function: there is no module 'no_such.module'; "
        f"write no_such/module.py in {folder}, or install the package that has it"
    )


def test_a_module_that_misses_another_is_told_with_that_ones_name(written: Callable[[str], str]) -> None:
    name = written("import no_such_library")
    assert refusal(f"{name}:on_event").endswith(f"{name} imports 'no_such_library', which is not installed")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def on_event(event)", "SyntaxError"),
        ("raise KeyError('s3cr3t')", "KeyError"),
        ("import sys\nsys.exit('s3cr3t')", "SystemExit"),
        ("from json import s3cr3t", "ImportError"),
    ],
)
def test_a_module_that_can_not_be_imported_is_told_without_what_it_says(
    written: Callable[[str], str], folder: Path, text: str, error: str
) -> None:
    name = written(text)
    told = refusal(f"{name}:on_event")
    assert f"{name} can't be imported: {error}; try python -c 'import {name}' in {folder}" in told
    assert "s3cr3t" not in told


def test_a_missing_name_is_told_with_the_nearest(written: Callable[[str], str], folder: Path) -> None:
    name = written("def on_event(event): ...")
    assert refusal(f"{name}:on_evnt") == (
        f"destinations.crm.function: {folder / name}.py has no 'on_evnt'; did you mean 'on_event'?"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("on_event = 5", "is not a function, but of type int"),
        ("def on_event(): ...", "must take one argument, the event"),
        ("def on_event(event, other): ...", "must take one argument, the event"),
        ("async def on_event(event): ...", "being async or a generator; write a plain def"),
        ("def on_event(event): yield", "being async or a generator; write a plain def"),
        ("async def on_event(event): yield", "being async or a generator; write a plain def"),
        ("class H:\n    async def __call__(self, event): ...\non_event = H()", "being async or a generator"),
    ],
)
def test_a_function_that_would_not_work_is_refused_before_it_is_called(
    written: Callable[[str], str], text: str, why: str
) -> None:
    assert why in refusal(f"{written(text)}:on_event")


# --- what the file may say


@pytest.mark.parametrize("function", ["", "module", "module:", ":name", "a.b:c d", "a..b:c", "1a:b", "a:b()", "a/b:c"])
def test_a_function_is_named_by_module_and_name(function: str) -> None:
    with pytest.raises(ConfigError, match=r'\[destinations.crm\] function: expected "package.module:name", got'):
        build(configured(function))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auth", '{ kind = "bearer", token = "x" }'),
        ("headers", '{ A = "b" }'),
        ("proxy", '"http://proxy:1"'),
        ("ca_file", '"ca.pem"'),
        ("allow_private", "true"),
        ("allow_to", '["10.0.0.0/8"]'),
        ("block_to", '["10.0.0.0/8"]'),
        ("allow_http", "true"),
        ("outcomes", '{ auth = "retry" }'),
    ],
)
def test_a_key_that_is_for_http_calls_is_a_mistake(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[destinations.crm\] {key}: unknown key"):
        build(configured("json:loads", f"{key} = {value}"))


def test_the_bounds_of_a_call_can_be_configured() -> None:
    extra = 'timeout = "2s"\nconcurrency = 3\nrate = "5/s"\nbreaker = { open_for = "3s" }'
    assert parse_config(configured("json:loads", extra)).destinations["crm"].concurrency == 3
