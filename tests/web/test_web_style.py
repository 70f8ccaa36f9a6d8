"""Looks of the page, whose contrast axe-core examines in the browser: templates that need no rule of the CSP relaxed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "relay/web"
STYLE = (WEB / "static/style.css").read_text()
TEMPLATES = {
    path.name: re.sub(r"{#.*?#}", "", path.read_text(), flags=re.DOTALL) for path in WEB.glob("templates/*.html")
}


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
