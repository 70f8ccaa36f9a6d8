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


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_template_has_no_inline_style_or_script_escapes_everything_and_uses_classes_that_have_looks(
    name: str,
) -> None:
    assert not re.search(r"url\(|@import|//[a-z]+\.", STYLE), "nothing is fetched from elsewhere"
    source = TEMPLATES[name]
    html = re.sub(r"{[{%].*?[%}]}", "", source, flags=re.DOTALL)
    assert not re.search(r"""\sstyle=|\son[a-z]+=["']|<script(?![^>]*\ssrc=)|<style|javascript:|https?://""", html)
    assert not re.search(r"\|\s*safe\b", source)
    known = set(re.findall(r"\.([a-z][\w-]*)", STYLE)) | {"body"}
    used = re.findall(r'class="([^"{}]*)"', source)
    assert {each for classes in used for each in classes.split()} <= known
