"""A viewer sees no body, no header and no answer of another system, whatever path he asks for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

import msgspec
import pytest

from relay.accounts import Actor
from relay.web.reading import Screen
from relay.web.screens import SCREENS
from tests.helpers.page import OPERATOR, VIEWER, Page
from tests.helpers.page_rows import PAYLOADS, WORDS, fill_page, forms_of
from tests.helpers.relaying import Steps

PARTS: dict[str, tuple[object, ...]] = {
    "seq": (1, 2, 3, 4, 5),
    "id": (1, 2, "u1", "u2", "u3"),
    "source": ("trivore",),
    "type": ("USER",),
}
"""Values of parameters that a screen needs."""
PARAMETERS: dict[str, tuple[object, ...]] = {
    "state": ("dead", "blocked", "delivered", "retrying", "unrouted", "waiting"),
}
"""Values of parameters whose type does not say them."""


def paths(screen: Screen) -> Iterator[str]:
    """Every path of a screen, with every value of its parameters that has few."""
    needed = [field.name for field in msgspec.structs.fields(screen.query) if field.required]
    for values in itertools.product(*(PARTS[name] for name in needed)):
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
        yield from (f"{field.name}={value}" for value in (*values, *PARAMETERS.get(field.name, ())))


def found(text: str, parts: tuple[str, ...]) -> list[str]:
    """The parts whose word is in a text, in whatever form."""
    return [part for part in parts if any(form in text for form in forms_of(WORDS[part]))]


OF_THE_DATABASE = tuple(screen for screen in SCREENS if screen.name != "difference")
"""The difference asks other systems, for operators alone: tests/web/test_web_entity.py."""


@pytest.mark.parametrize("screen", OF_THE_DATABASE, ids=lambda screen: screen.name)
def test_a_viewer_sees_no_payload_and_no_excerpt(page: Page, steps: Steps, screen: Screen) -> None:
    fill_page(steps)
    assert leaks(page, screen, VIEWER, tuple(WORDS)) == []


@pytest.mark.parametrize("screen", OF_THE_DATABASE, ids=lambda screen: screen.name)
def test_an_operator_sees_no_payload_before_a_reveal(page: Page, steps: Steps, screen: Screen) -> None:
    fill_page(steps)
    assert leaks(page, screen, OPERATOR, PAYLOADS) == []


def leaks(page: Page, screen: Screen, actor: Actor, parts: tuple[str, ...]) -> list[str]:
    shown, answered = [], 0
    for path in paths(screen):
        answer = page.get(path, actor)
        assert answer.status_code in {200, 400, 403, 404}, f"{path}: {answer.status_code} {answer.text}"
        answered += answer.status_code == 200
        shown += [f"{path} shows the word of the {part}" for part in found(answer.text, parts)]
    assert answered, f"no path of {screen.name} was answered: this test needs other values for its parameters"
    return shown


def test_a_word_is_found_in_every_form() -> None:
    for part, word in WORDS.items():
        text = f"before {word} after"
        for form in (text, text.encode().hex(), msgspec.json.encode(text.encode()).decode()):
            assert found(form, tuple(WORDS)) == [part]
