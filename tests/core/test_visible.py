"""Text that reaches a terminal: no part of it is invisible or controls anything."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.observe.visible import visible, visible_json, visible_text

HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
NASTY = st.sampled_from(
    "\\nx1bu20e[]/\x00\x07\x1b\x7f\x85\x9b\u200b\u200f\u061c\u2028\u202e\u2066\ud800\U000e0041\xe9\n "
)
TEXT = st.one_of(st.text(NASTY), st.text(st.characters(exclude_categories=()), max_size=50))

_ESCAPE = re.compile(r"\\(\\|[nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_NAMED = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}


def read_back(shown: str) -> str:
    return _ESCAPE.sub(lambda found: _NAMED.get(found[1]) or chr(int(found[1][1:], 16)), shown)


def harmless(text: str) -> bool:
    return not any(unicodedata.category(character) in HIDDEN_CATEGORIES for character in text)


@given(TEXT)
def test_a_value_is_shown_on_one_line_without_hidden_characters_and_can_be_read_back(value: str) -> None:
    shown = visible(value)
    assert harmless(shown)
    assert read_back(shown) == value


@given(TEXT)
def test_a_text_of_ours_has_no_hidden_character_and_each_further_line_is_indented(text: str) -> None:
    first, *others = visible_text(text).split("\n")
    assert harmless(first + "".join(others))
    assert all(line.startswith("  ") for line in others)
    assert len(others) == text.count("\n")


@pytest.mark.parametrize("value", ["Äijälä", "日本語", "❤\ufe0f", "a b|c", "[x](y)", "José"])
def test_what_can_be_seen_is_left_as_it_is(value: str) -> None:
    assert visible(value) == visible_text(value) == value
    assert visible_json(value) == value


@pytest.mark.parametrize("value", ["\u3164", "\u115f", "\ufe00", "\U000e0100", "\u034f", "\xa0", "\u3000"])
def test_what_is_printable_and_shows_nothing_is_escaped(value: str) -> None:
    assert visible(value) == value.encode("unicode_escape").decode()
