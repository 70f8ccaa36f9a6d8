from __future__ import annotations

import json
import math
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inbox import strict_json
from inbox.errors import Unreadable

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)

REFUSED = {
    "empty": b"",
    "only spaces": b"  \n",
    "cut short": b'{"a":',
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "invalid UTF-8": b'{"a": "\xff"}',
    "overlong UTF-8": b'"\xc0\x80"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "NaN": b'{"a": NaN}',
    "Infinity": b"[Infinity]",
    "negative Infinity": b"-Infinity",
    "float out of range": b"1e999",
    "integer of 5,000 digits": b"9" * 5000,
    "integer of 1,001 digits": b"9" * 1001,
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate in a key": b'{"\\uDC00": 1}',
    "surrogates in the wrong order": b'"\\udc00\\ud800"',
    "key twice": b'{"a": 1, "a": 2}',
    "key twice, spelled differently": b'{"a": 1, "\\u0061": 2}',
    "key twice, far inside": b'[{"x": {"\\n": 1, "\\n": 1}}]',
    "garbage behind": b"{} x",
    "two values": b"{}{}",
    "no-break space behind": b"{}\xc2\xa0",
    "raw NUL in a string": b'"a\x00b"',
    "raw line end in a string": b'"a\nb"',
    "single quotes": b"{'a': 1}",
    "trailing comma": b"[1,]",
    "comment": b"[1] // one",
    "leading zero": b"01",
    "plus sign": b"+1",
    "digits of another script": "\N{ARABIC-INDIC DIGIT ONE}".encode(),
    "underscore in a number": b"1_000",
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_bodies_that_two_parsers_could_read_differently_are_refused(body: bytes) -> None:
    with pytest.raises(Unreadable):
        strict_json.parse(body)


@given(JSON_VALUES)
def test_whatever_a_strict_writer_writes_is_read_back(value: object) -> None:
    assert strict_json.parse(json.dumps(value).encode()) == value
    assert strict_json.parse(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


@given(st.binary() | st.text(alphabet='{}[]",:\\u019dDeE+-.aNIntrlfs \n\x00\ufeff\ud7ff').map(str.encode))
@example(b'"' + b"\\" * 99)
@example(b"[" * 65 + b'"\\')
def test_any_bytes_are_read_or_refused_and_nothing_else_is_raised(body: bytes) -> None:
    try:
        value = strict_json.parse(body)
    except Unreadable as error:
        error.detail.encode()  # the answer repeats it, and must be writable
    else:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("depth", [65, 66, 128, 1000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_beyond_64_levels_is_refused_however_deep(opening: bytes, closing: bytes, depth: int) -> None:
    with pytest.raises(Unreadable, match="nested deeper than 64"):
        strict_json.parse(opening * depth + b"1" + closing * depth)


@given(st.integers(60, 70), st.randoms(use_true_random=False))
def test_64_levels_are_read_whichever_brackets_they_are_made_of(depth: int, random: Random) -> None:
    value: object = "]}" * 200
    for _ in range(depth):
        value = [value, []] if random.random() < 0.5 else {"[": value, "{": {}}
    body = json.dumps(value).encode()
    if depth < 64:
        assert strict_json.parse(body) == value
    elif depth > 64:
        with pytest.raises(Unreadable):
            strict_json.parse(body)


def test_the_depth_counts_levels_and_not_brackets() -> None:
    assert strict_json.parse(b"[" * 64 + b"]" * 64) is not None
    assert strict_json.parse(b"[" + b"[1]," * 1000 + b"2]") is not None
    assert strict_json.parse(json.dumps("[" * 1000 + '\\"' * 100).encode()) == "[" * 1000 + '\\"' * 100


def test_pairs_of_escaped_surrogates_are_one_character() -> None:
    assert strict_json.parse(b'"\\ud83d\\uDE00"') == "😀"
    assert strict_json.parse(b'"\\\\ud83d"') == "\\ud83d"


def test_numbers_at_the_edge_are_read() -> None:
    assert strict_json.parse(b"9" * 1000) == int("9" * 1000)
    assert strict_json.parse(b"1e308") == 1e308
    assert math.copysign(1, float(str(strict_json.parse(b"-0.0")))) == -1


def test_the_error_says_where_the_mistake_is() -> None:
    with pytest.raises(Unreadable, match="line 2 column 3"):
        strict_json.parse(b'{"a": 1,\n  b}')
