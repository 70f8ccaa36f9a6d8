"""JSON is read as every parser reads it, or refused; and numbers likewise on both sides."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inbox.errors import InvalidEvent, MappingError, Unreadable
from inbox.events import strict_json
from inbox.sources import PRESETS
from relay.sync.expressions import Expression, decode, digest, encode
from relay.sync.templates import Template

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)

REFUSED = {
    "empty": b"",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "invalid UTF-8": b'{"a": "\xff"}',
    "overlong UTF-8": b'"\xc0\x80"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "NaN": b'{"a": NaN}',
    "Infinity": b"[Infinity]",
    "negative Infinity": b"-Infinity",
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate in a key": b'{"\\uDC00": 1}',
    "surrogates in the wrong order": b'"\\udc00\\ud800"',
    "key twice": b'{"a": 1, "a": 2}',
    "key twice, spelled differently": b'{"a": 1, "\\u0061": 2}',
    "key twice, far inside": b'[{"x": {"\\n": 1, "\\n": 1}}]',
    "garbage behind": b"{} x",
    "raw NUL in a string": b'"a\x00b"',
    "raw line end in a string": b'"a\nb"',
    "single quotes": b"{'a': 1}",
    "comment": b"[1] // one",
    "leading zero": b"01",
    "plus sign": b"+1",
    "digits of another script": "\N{ARABIC-INDIC DIGIT ONE}".encode(),
    "underscore in a number": b"1_000",
    "a text of escapes without an end": b'"' + b"\\" * 99,
    "a text without an end, far inside": b"[" * 65 + b'"\\',
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_bodies_that_two_parsers_could_read_differently_are_refused(body: bytes) -> None:
    with pytest.raises(Unreadable):
        strict_json.parse(body)


@given(JSON_VALUES)
def test_a_strict_writers_json_is_read_back(value: object) -> None:
    assert strict_json.parse(json.dumps(value).encode()) == value
    assert strict_json.parse(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


PIECES = ["{", "}", "[", "]", ",", ":", '"a"', "1", "null", " ", "\t", "\n", "\r", "\x0b", "\u00a0", "\ufeff"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_it_reads_and_refuses_at_the_same_place_as_the_decoder_of_the_standard_library(text: str) -> None:
    if text.startswith("\ufeff"):  # which the standard library leaves out
        with pytest.raises(Unreadable, match="byte order mark"):
            strict_json.parse(text.encode())
        return
    try:
        expected: object = json.loads(text.encode())
    except ValueError as error:
        if text and not strict_json.is_too_deep(text.encode()):
            with pytest.raises(Unreadable, match=re.escape(str(error))):
                strict_json.parse(text.encode())
    else:
        if '"a"' not in text:  # else one may stand there twice
            assert strict_json.parse(text.encode()) == expected


@pytest.mark.parametrize("depth", [65, 66, 128, 1000, 70_000])
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


# --- limits of size

MOST = strict_json.MOST_MARKS
MANY: dict[str, tuple[Callable[[int], bytes], int]] = {
    "numbers": (lambda n: b"[" + b",".join([b"1"] * n) + b"]", MOST),
    "lists": (lambda n: b"[" + b",".join([b"[]"] * n) + b"]", MOST // 2),
    "deep lists": (lambda n: b"[" + b",".join([b"[" * 60 + b"]" * 60] * n) + b"]", MOST // 61),
    "objects": (lambda n: b"[" + b",".join([b'{"a":1}'] * n) + b"]", MOST // 3),
    "members": (lambda n: b"{" + b",".join(b'"%d":1' % each for each in range(n)) + b"}", MOST // 2),
    "strings": (lambda n: b"[" + b",".join([b'"]\\"\\\\"'] * n) + b"]", MOST),
}


@pytest.mark.parametrize("kind", MANY)
def test_as_many_values_are_read_as_there_may_be_and_no_more(kind: str) -> None:
    make, most = MANY[kind]
    assert strict_json.parse(make(most)) is not None
    with pytest.raises(InvalidEvent, match="send fewer values at once"):
        strict_json.parse(make(most + 1))
    with pytest.raises(InvalidEvent, match="send fewer values at once"):
        strict_json.parse(make(most * 3)[:-1])


@pytest.mark.parametrize(
    "unit", [b'"', b'""', b"\\", b'\\"', b'"\\', b"[", b"{", b"[]", b",", b"\x80", b"\\u", b'"\\ud800']
)
def test_a_large_body_that_is_no_json_is_refused_without_taking_many_times_its_size(unit: bytes) -> None:
    body = b"[" * 65 + unit * (4 * 1024 * 1024 // len(unit))
    tracemalloc.start()
    try:
        with pytest.raises((Unreadable, InvalidEvent)):
            strict_json.parse(body)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body) + 100 * MOST
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("x", 1), ("é", 2), ("€", 2), ("\\u20ac", 2), ("\N{GRINNING FACE}", 4), ("\\ud83d\\ude00", 4),
        ("\\uD83D\\uDE00", 4),
    ],
)  # fmt: skip
def test_the_size_of_a_text_counts_by_its_widest_character(
    text: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_json, "LARGEST_TEXT", 4000)
    left = 4000 // width - len(text) - 2
    assert strict_json.parse(f'"{"x" * left}{text}"'.encode()) is not None
    with pytest.raises(InvalidEvent, match="too many characters"):
        strict_json.parse(f'"{"x" * (left + 1)}{text}"'.encode())


def test_the_largest_body_of_any_preset_may_be_one_text_of_ascii() -> None:
    largest = max(preset.max_body for preset in PRESETS.values())
    assert largest < strict_json.LARGEST_TEXT
    strict_json.parse(b'"%b"' % (b"x" * (largest - 2)))


def test_keys_are_hashed_with_a_secret_of_the_process() -> None:
    """A sender could otherwise choose thousands of colliding keys, which take quadratic time to read."""
    program = "import inbox.events.strict_json as s; print(hash(next(iter(s.parse(b'{\"key\": 1}')))))"
    printed = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(2)
    }
    assert len(printed) == 2


# --- One rule for numbers: the relay reads, writes, compares and hashes each number that the receiver accepts


SIGN = st.sampled_from(["", "-"])
DIGITS = st.text("0123456789", min_size=1, max_size=40).map(lambda digits: digits.lstrip("0") or "0")
FRACTION = st.just("") | st.text("0123456789", min_size=1, max_size=30).map(lambda digits: f".{digits}")
EXPONENT = (
    st.just("")
    | st.integers(-400, 400).map(lambda power: f"e{power}")
    | st.integers(-(10**25), 10**25).map(lambda power: f"E{power:+}")
)
NUMBERS = st.tuples(SIGN, DIGITS, FRACTION, EXPONENT).map("".join)

REFUSED_NUMBERS = {
    "1e-99999999999999999999": "is too small for a 64-bit float",
    "-1e-400": "is too small for a 64-bit float",
    "1e999": "is too large for a 64-bit float",
    "-1e999": "is too large for a 64-bit float",
    "1" + "0" * 500 + "e99999999999999999999": "is too large for a 64-bit float",
    "9" * 1001: "has more than 1000 characters",
    "9" * 5000: "has more than 1000 characters",
    "0." + "1" * 1000: "has more than 1000 characters",
    "1." + "0" * 100_000: "has more than 1000 characters",
    "0e" + "9" * 1000: "has more than 1000 characters",
}
TAKEN = {
    "0e99999999999999999999": 0.0,
    "-0.0e-99999999999999999999": -0.0,
    "-0": 0,
    "5e-324": 5e-324,
    "1.7976931348623157e308": 1.7976931348623157e308,
    "9" * 1000: int("9" * 1000),
    "0." + "0" * 900 + "1e900": 0.1,
}


@pytest.mark.parametrize(("text", "why"), REFUSED_NUMBERS.items(), ids=lambda given: given[:24])
def test_a_number_that_parsers_read_differently_is_refused_on_both_sides(text: str, why: str) -> None:
    body = b'{"a": [%b]}' % text.encode()
    with pytest.raises(Unreadable, match=f"^a number in the body {why}$"):
        strict_json.parse(body)
    with pytest.raises(ValueError, match=f"^unusable: a number in it {why}$"):
        decode(body)


@pytest.mark.parametrize(("text", "value"), TAKEN.items(), ids=lambda given: str(given)[:24])
def test_a_number_that_all_read_alike_is_taken_on_both_sides(text: str, value: object) -> None:
    assert strict_json.parse(text.encode()) == decode(text.encode()) == value


@given(NUMBERS)
@example("1e-99999999999999999999")
@example("0e-99999999999999999999")
@example("1e308")
@example("2.4703282292062328e-324")
@example("-0")
def test_both_sides_agree_on_every_number_and_can_use_it(text: str) -> None:
    body = b'{"n": %b}' % text.encode()
    try:
        taken = strict_json.parse(body)
    except Unreadable:
        with pytest.raises(ValueError, match="unusable: a number in it"):
            decode(body)
        return
    found = decode(body)["n"]
    assert float(found) == float(json.dumps(taken)[6:-1])
    assert decode(encode({"n": found}))["n"] == found
    assert found == 0 or Decimal(str(found)) == Decimal(text), "it is the number that was written"
    assert digest(found) == digest(decode(encode(found)))
    assert hash(found) == hash(decode(encode(found)))
    assert [found < 1, found > 1, found == 1].count(True) == 1
    for function in ("abs", "ceil", "floor", "to_string", "to_number", "type"):
        with suppress(MappingError):  # they take no Decimal
            Expression(f"{function}(n)", "here", None).value({"n": found})
    assert Template("{event.body}", "here", ("event",)).expand({"event": {"body": found}})


@pytest.mark.parametrize(
    "text", ["{to_number(event.body)}", "n={to_number(event.body):text}", "{to_number(event.body):json}"]
)
@pytest.mark.parametrize("number", ["nan", "inf", "-Infinity", "1e999"])
def test_a_number_that_json_can_not_hold_is_put_into_no_query(text: str, number: str) -> None:
    with pytest.raises(MappingError, match=r"here: .*is NaN or an infinite number, which JSON can't hold"):
        Template(text, "here", ("event",)).expand({"event": {"body": number}})
