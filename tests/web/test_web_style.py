"""Looks of the page: colours that can be read, and templates that need no rule of the CSP relaxed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "relay/web"
STYLE = (WEB / "static/style.css").read_text()
TEMPLATES = {
    path.name: re.sub(r"{#.*?#}", "", path.read_text(), flags=re.DOTALL) for path in WEB.glob("templates/*.html")
}

TEXT_ON = {
    "text": ("ground", "surface", "sunken", "busy-ground"),
    "muted": ("ground", "surface", "sunken", "busy-ground"),
    "link": ("ground", "surface", "sunken", "busy-ground"),
    "on-strong": ("strong",),
    "on-danger": ("danger",),
    **{f"{kind}-text": (f"{kind}-ground",) for kind in ("bad", "warn", "good", "busy", "idle")},
    "bad-text": ("bad-ground", "surface", "sunken"),
}
MARK_ON = {
    "edge": ("ground", "surface"),
    "focus": ("ground", "surface"),
    "in": ("surface",),
    "out": ("surface",),
    **{f"{kind}-mark": (f"{kind}-ground", "surface") for kind in ("bad", "warn", "good", "busy", "idle")},
}


def tokens(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


def themes() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root {(.*?)}", STYLE, flags=re.DOTALL)[:2]
    return {"light": tokens(light), "dark": tokens(light) | tokens(dark)}


def luminance(colour: str) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_wcag_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_enough_contrast_and_so_has_every_mark(theme: str) -> None:
    colours = themes()[theme]
    for least, pairs in ((4.5, TEXT_ON), (3.0, MARK_ON)):
        for above, grounds in pairs.items():
            for ground in grounds:
                found = contrast(colours[above], colours[ground])
                assert found >= least, f"--{above} on --{ground} in {theme}: {found:.2f}"


def test_both_themes_have_the_same_colours() -> None:
    light, dark = re.findall(r":root {(.*?)}", STYLE, flags=re.DOTALL)[:2]
    assert tokens(light).keys() == tokens(dark).keys()


def test_nothing_is_fetched_from_elsewhere() -> None:
    assert not re.search(r"url\(|@import|//[a-z]+\.", STYLE)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_need_no_inline_style_or_script_and_escape_everything(name: str) -> None:
    source = TEMPLATES[name]
    html = re.sub(r"{[{%].*?[%}]}", "", source, flags=re.DOTALL)
    assert not re.search(r"""\sstyle=|\son[a-z]+=["']|<script(?![^>]*\ssrc=)|<style|javascript:|https?://""", html)
    assert not re.search(r"\|\s*safe\b", source)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_use_only_classes_that_have_looks(name: str) -> None:
    known = set(re.findall(r"\.([a-z][\w-]*)", STYLE)) | {"body"}
    used = re.findall(r'class="([^"{}]*)"', TEMPLATES[name])
    assert {each for classes in used for each in classes.split()} <= known


def test_every_macro_is_listed_where_screens_look_for_it() -> None:
    source = (WEB / "templates/macros.html").read_text()
    head = source[: source.index("#}")]
    missing = [name for name in re.findall(r"{% macro (\w+)\(", source) if not re.search(rf"\b{name}\(", head)]
    assert not missing
