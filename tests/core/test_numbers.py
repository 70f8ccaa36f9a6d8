"""One rule for numbers: the relay reads, writes, compares and hashes each number that the receiver accepts."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inbox.errors import MappingError, Unreadable
from inbox.events import strict_json
from relay.sync.expressions import Expression, decode, digest, encode
from relay.sync.templates import Template

SIGN = st.sampled_from(["", "-"])
DIGITS = st.text("0123456789", min_size=1, max_size=40).map(lambda digits: digits.lstrip("0") or "0")
FRACTION = st.just("") | st.text("0123456789", min_size=1, max_size=30).map(lambda digits: f".{digits}")
EXPONENT = (
    st.just("")
    | st.integers(-400, 400).map(lambda power: f"e{power}")
    | st.integers(-(10**25), 10**25).map(lambda power: f"E{power:+}")
)
NUMBERS = st.tuples(SIGN, DIGITS, FRACTION, EXPONENT).map("".join)

REFUSED = {
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


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=lambda given: given[:24])
def test_what_parsers_read_differently_is_refused_at_the_door_and_of_an_entity_alike(text: str, why: str) -> None:
    body = b'{"a": [%b]}' % text.encode()
    with pytest.raises(Unreadable, match=f"^a number in the body {why}$"):
        strict_json.parse(body)
    with pytest.raises(ValueError, match=f"^unusable: a number in it {why}$"):
        decode(body)


@pytest.mark.parametrize(("text", "value"), TAKEN.items(), ids=lambda given: str(given)[:24])
def test_what_all_read_alike_is_taken_on_both_sides(text: str, value: object) -> None:
    assert strict_json.parse(text.encode()) == decode(text.encode()) == value


@given(NUMBERS)
@example("1e-99999999999999999999")
@example("0e-99999999999999999999")
@example("1e308")
@example("2.4703282292062328e-324")
@example("-0")
def test_both_sides_agree_on_every_number_and_what_is_taken_can_be_used(text: str) -> None:
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
def test_what_an_expression_makes_of_a_text_and_json_has_not_is_put_into_no_query(text: str, number: str) -> None:
    with pytest.raises(MappingError, match=r"here: .*is NaN or an infinite number, which JSON can't hold"):
        Template(text, "here", ("event",)).expand({"event": {"body": number}})
