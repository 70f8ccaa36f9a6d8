"""Every screen: a viewer sees no body, no header, no answer of another system and no act, and nobody a hostile text as markup."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin
from urllib.parse import quote

import msgspec
import pytest

from relay.accounts import Actor
from relay.web.reading import Screen
from relay.web.screens import SCREENS
from tests.helpers.databases import copy_sqlite, open_engine
from tests.helpers.page import OPERATOR, VIEWER, Page, on_database, serving
from tests.helpers.relaying import CONFIG, FakeClock, Steps
from tests.helpers.worlds import HOSTILE, PAYLOADS, WORDS, fill_hostile, fill_page, forms_of

PARTS: dict[str, tuple[object, ...]] = {
    "seq": (1, 2, 3, 4, 5), "id": (1, 2, "u1", "u2", "u3"), "source": ("trivore",), "type": ("USER",),
}  # fmt: skip
"""Values of parameters that a screen needs."""
STATES = ("dead", "blocked", "delivered", "retrying", "unrouted", "waiting")
"""Values of `state`, whose type does not say them."""


def paths(screen: Screen, parts: Mapping[str, tuple[object, ...]]) -> Iterator[str]:
    """Every path of a screen, with every value of its parameters that has few."""
    needed = [field.name for field in msgspec.structs.fields(screen.query) if field.required]
    for values in itertools.product(*(parts[name] for name in needed)):
        given = dict(zip(needed, map(str, values), strict=True))
        path = screen.path.format_map(given)
        twin = path.rstrip("/") or "/overview"
        asked = [f"{name}={value}" for name, value in given.items() if f"{{{name}}}" not in screen.path]
        for more in ([], *([each] for each in queries(screen.query))):
            query = "?" + "&".join([*asked, *more])
            yield from (f"{path}{query}", f"{twin}.json{query}", f"/api/v1{twin}{query}")


def queries(kind: type[msgspec.Struct]) -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        kinds = [field.type, *get_args(field.type)]
        values = [value for each in kinds if get_origin(each) is Literal for value in get_args(each)]
        values += ["true"] if bool in kinds else []
        yield from (f"{field.name}={value}" for value in (*values, *(STATES if field.name == "state" else ())))


def found(text: str, parts: tuple[str, ...]) -> list[str]:
    """The parts whose word is in a text, in whatever form."""
    return [part for part in parts if any(form in text for form in forms_of(WORDS[part]))]


OF_THE_DATABASE = tuple(screen for screen in SCREENS if screen.name != "difference")
"""The difference asks other systems, for operators alone: tests/web/test_web_entity.py."""


of_each_screen = pytest.mark.parametrize("screen", OF_THE_DATABASE, ids=lambda screen: screen.name)


@contextlib.contextmanager
def filled(template: Path, folder: Path, fill: Callable[[Steps], None]) -> Iterator[Page]:
    """The page of a SQLite file with these rows."""
    url, clock = copy_sqlite(template, folder), FakeClock()
    with open_engine(url) as engine:
        fill(Steps(engine, clock=clock))
    with serving(on_database(CONFIG, url), clock) as page:
        yield page


@pytest.fixture(scope="module")
def page(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with filled(sqlite_template, tmp_path_factory.mktemp("filled"), fill_page) as made:
        yield made


@pytest.fixture(scope="module")
def hostile_page(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with filled(sqlite_template, tmp_path_factory.mktemp("hostile"), fill_hostile) as made:
        yield made


@of_each_screen
def test_a_viewer_sees_no_payload_no_excerpt_and_no_act_and_an_operator_no_payload_before_a_reveal(
    page: Page, screen: Screen
) -> None:
    for path, text in answers(page, screen, VIEWER):
        assert found(text, tuple(WORDS)) == [], path
        assert not re.search(r'/acts/|"offers":\[[^]]|"acts":\[[^]]', text), path
    for path, text in answers(page, screen):
        assert found(text, PAYLOADS) == [], path


@of_each_screen
def test_hostile_values_are_shown_harmless(hostile_page: Page, screen: Screen) -> None:
    parts = {**PARTS, "id": (1, 2, quote(HOSTILE)), "type": (quote(HOSTILE),)}
    shown = [text for path, text in answers(hostile_page, screen, OPERATOR, parts) if not re.search("json|/api/", path)]
    assert shown
    for text in shown:
        assert "<script>alert" not in text
        assert "\u202e" not in text
        assert len(text) < 60_000
    assert any("&lt;script&gt;alert(1)&lt;/script&gt;\\u202e" in text for text in shown) or screen.name == "doctor"


def answers(
    page: Page, screen: Screen, actor: Actor = OPERATOR, parts: Mapping[str, tuple[object, ...]] = PARTS
) -> list[tuple[str, str]]:
    """Each path of a screen that is answered, with the answer."""
    made = []
    for path in paths(screen, parts):
        answer = page.get(path, actor)
        assert answer.status_code in {200, 400, 403, 404}, f"{path}: {answer.status_code} {answer.text}"
        if answer.status_code == 200:
            made.append((path, answer.text))
    assert made, f"no path of {screen.name} was answered: this test needs other values for its parameters"
    return made
