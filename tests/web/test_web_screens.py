"""All screens: viewers see no payload, no response and no act, hostile text is escaped, and charts are valid XML."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin
from urllib.parse import quote
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.accounts import Actor
from relay.web.reading import Screen
from relay.web.render import Series, chart, scale
from relay.web.screens import SCREENS
from tests.helpers.databases import copy_sqlite, open_engine
from tests.helpers.page import OPERATOR, VIEWER, Page, on_database, serving
from tests.helpers.relaying import CONFIG, FakeClock, Steps
from tests.helpers.worlds import HOSTILE, PAYLOADS, WORDS, fill_hostile, fill_page, forms_of

PARTS: dict[str, tuple[object, ...]] = {
    "seq": (1, 2, 3, 4, 5), "id": (1, 2, "u1", "u2", "u3"), "source": ("trivore",), "type": ("USER",),
    "name": ("strict", "latest"),
}  # fmt: skip
"""Values of the required parameters of screens."""
STATES = ("dead", "blocked", "delivered", "retrying", "unrouted", "waiting")
"""Values of `state`, which its type does not list."""


def paths(screen: Screen, parts: Mapping[str, tuple[object, ...]]) -> Iterator[str]:
    """Yield the paths of a screen, with each value of its parameters that have few."""
    needed = [field.name for field in msgspec.structs.fields(screen.query) if field.required]
    for values in itertools.product(*(parts[name] for name in needed)):
        given = dict(zip(needed, map(str, values), strict=True))
        path = screen.path.format_map(given)
        twin = path.rstrip("/") or "/overview"
        required = [f"{name}={value}" for name, value in given.items() if f"{{{name}}}" not in screen.path]
        for more in ([], *([each] for each in queries(screen.query))):
            query = "?" + "&".join([*required, *more])
            yield from (f"{path}{query}", f"{twin}.json{query}", f"/api/v1{twin}{query}")


def queries(kind: type[msgspec.Struct]) -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        kinds = [field.type, *get_args(field.type)]
        values = [value for each in kinds if get_origin(each) is Literal for value in get_args(each)]
        values += ["true"] if bool in kinds else []
        yield from (f"{field.name}={value}" for value in (*values, *(STATES if field.name == "state" else ())))


def find_words(text: str, parts: tuple[str, ...]) -> list[str]:
    """Return the parts whose word is in a text, in any form."""
    return [part for part in parts if any(form in text for form in forms_of(WORDS[part]))]


OF_THE_DATABASE = tuple(screen for screen in SCREENS if screen.name != "difference")
"""Screens without the difference, which calls other systems; tests/web/test_web_entity.py tests it."""


with_each_screen = pytest.mark.parametrize("screen", OF_THE_DATABASE, ids=lambda screen: screen.name)


@contextlib.contextmanager
def serve_filled(template: Path, folder: Path, fill: Callable[[Steps], None]) -> Iterator[Page]:
    """Serve the page of a SQLite file with these rows."""
    url, clock = copy_sqlite(template, folder), FakeClock()
    with open_engine(url) as engine:
        fill(Steps(engine, clock=clock))
    with serving(on_database(CONFIG, url), clock) as page:
        yield page


@pytest.fixture(scope="module")
def page(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with serve_filled(sqlite_template, tmp_path_factory.mktemp("filled"), fill_page) as made:
        yield made


@pytest.fixture(scope="module")
def hostile_page(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with serve_filled(sqlite_template, tmp_path_factory.mktemp("hostile"), fill_hostile) as made:
        yield made


@with_each_screen
def test_viewers_see_no_payload_excerpt_or_act_and_operators_no_payload_before_a_reveal(
    page: Page, screen: Screen
) -> None:
    for path, text in answers(page, screen, VIEWER):
        assert find_words(text, tuple(WORDS)) == [], path
        assert not re.search(r'/acts/|"offers":\[[^]]|"acts":\[[^]]', text), path
    for path, text in answers(page, screen):
        assert find_words(text, PAYLOADS) == [], path


@with_each_screen
def test_hostile_values_are_escaped(hostile_page: Page, screen: Screen) -> None:
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
    """Return the paths of a screen that respond with 200, with their responses."""
    made = []
    for path in paths(screen, parts):
        answer = page.get(path, actor)
        assert answer.status_code in {200, 400, 403, 404}, f"{path}: {answer.status_code} {answer.text}"
        if answer.status_code == 200:
            made.append((path, answer.text))
    assert made, f"no path of {screen.name} responds with 200: this test needs other values for its parameters"
    return made


# --- Charts are valid XML with every point inside the view box, and accessible


FIGURES = st.lists(st.integers(0, 10**30), max_size=70)
LINES = st.lists(st.tuples(st.text(max_size=30), st.sampled_from(("in", "out", "bad")), FIGURES), max_size=4)
SVG = "{http://www.w3.org/2000/svg}"


def parse(drawn: str) -> ET.Element:
    return ET.fromstring(drawn)  # noqa: S314  # ours


def places(drawn: ET.Element) -> list[tuple[float, float]]:
    """Return all positions in the drawing."""
    found = []
    for each in drawn.iter():
        pairs = [pair.split(",") for pair in (each.get("points") or "").split()]
        pairs += [[each.get(x, "0"), each.get(y, "0")] for x, y in (("x", "y"), ("x1", "y1"), ("x2", "y2"))]
        found += [(float(x), float(y)) for x, y in pairs]
    return found


@given(title=st.text(max_size=60), lines=LINES, labels=st.lists(st.text(max_size=9), max_size=5))
def test_a_chart_of_any_values_is_valid_xml_inside_its_view_box(
    title: str, lines: list[Series], labels: list[str]
) -> None:
    root = parse(chart("all", title, lines, labels))
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places(root))
    assert "style" not in {name for each in root.iter() for name in each.keys()}  # noqa: SIM118  # of an element
    assert len([*root.iter(f"{SVG}polyline")]) == len(lines)
    named = {each.get("id") for each in root if each.tag in {f"{SVG}title", f"{SVG}desc"}}
    assert (root.get("role"), root.get("aria-labelledby"), named) == (
        "img",
        "all-title all-about",
        {"all-title", "all-about"},
    )


@given(largest=st.integers(0, 10**30))
def test_the_scale_includes_the_largest_value_and_has_few_steps(largest: int) -> None:
    top, step = scale(largest)
    assert top >= max(largest, 1)
    assert (top % step, 1 <= top // step <= 4) == (0, True)


def test_larger_values_are_drawn_higher_and_later_ones_further_right() -> None:
    drawn = chart("all", "t", (("in", "in", (0, 5_000, 12_000)),), ["10:00", "11:00"])
    (line,) = parse(drawn).iter(f"{SVG}polyline")
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, pair.split(","))) for pair in (line.get("points") or "").split())
    assert x0 < x1 < x2
    assert y0 > y1 > y2
    assert re.findall(r"<text[^>]*>([^<]*)</text>", drawn) == ["0", "5k", "10k", "15k", "10:00", "11:00"]
