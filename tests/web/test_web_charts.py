"""Charts: whatever the figures and names, valid XML with every point inside the view box, and words for those who don't see it."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from relay.web.render import Series, chart, scale

FIGURES = st.lists(st.integers(0, 10**30), max_size=70)
LINES = st.lists(st.tuples(st.text(max_size=30), st.sampled_from(("in", "out", "bad")), FIGURES), max_size=4)
SVG = "{http://www.w3.org/2000/svg}"


def parsed(drawn: str) -> ET.Element:
    return ET.fromstring(drawn)  # noqa: S314  # ours


def places(drawn: ET.Element) -> list[tuple[float, float]]:
    """Every position that the drawing names."""
    found = []
    for each in drawn.iter():
        pairs = [pair.split(",") for pair in (each.get("points") or "").split()]
        pairs += [[each.get(x, "0"), each.get(y, "0")] for x, y in (("x", "y"), ("x1", "y1"), ("x2", "y2"))]
        found += [(float(x), float(y)) for x, y in pairs]
    return found


@given(title=st.text(max_size=60), lines=LINES, labels=st.lists(st.text(max_size=9), max_size=5))
def test_any_figures_are_valid_xml_inside_the_view_box(title: str, lines: list[Series], labels: list[str]) -> None:
    root = parsed(chart("all", title, lines, labels))
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


def test_markup_in_a_name_stays_a_name() -> None:
    drawn = chart("all", "</title><script>alert(1)</script>", (('"><b>', "in", (1,)),), ["<i>"])
    assert not [each for each in ("<script", "<b>", "<i>") if each in drawn]


@given(largest=st.integers(0, 10**30))
def test_the_scale_holds_the_largest_and_has_few_steps(largest: int) -> None:
    top, step = scale(largest)
    assert top >= max(largest, 1)
    assert (top % step, 1 <= top // step <= 4) == (0, True)


def test_a_higher_figure_is_drawn_higher_a_later_one_further_right_and_both_are_labelled() -> None:
    drawn = chart("all", "t", (("in", "in", (0, 5_000, 12_000)),), ["10:00", "11:00"])
    (line,) = parsed(drawn).iter(f"{SVG}polyline")
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, pair.split(","))) for pair in (line.get("points") or "").split())
    assert x0 < x1 < x2
    assert y0 > y1 > y2
    assert re.findall(r"<text[^>]*>([^<]*)</text>", drawn) == ["0", "5k", "10k", "15k", "10:00", "11:00"]
