"""Texts that name the entity to erase are found however they are written; a plan warns of what may be about something else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.db.erasure import ERASED, MANY_NAMING, ErasurePlan, ErasureSubject

# --- Texts that name the entity to erase: found however they are written, and never as a part of something else


IDS = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() and text != ERASED)


def of(entity_id: str) -> ErasureSubject:
    return ErasureSubject("trivore", "USER", entity_id)


@pytest.mark.parametrize(
    "text",
    [
        "IDNUMBER1234",
        '{"id": "IDNUMBER1234"}',
        "GET https://id.example.com/user/IDNUMBER1234?x=1 answered 404",
        "user_IDNUMBER1234",
        "USER|IDNUMBER1234",
    ],
)
def test_an_id_is_found_wherever_it_stands_alone(text: str) -> None:
    assert of("IDNUMBER1234").is_named_in(text)
    assert of("IDNUMBER1234").without(text) == ERASED
    assert of("IDNUMBER1234").without(text.encode()) is None


@pytest.mark.parametrize("text", ["", "IDNUMBER12345", "AIDNUMBER1234", "idnumber1234", "IDNUMBER 1234", ERASED])
def test_another_id_is_left_alone(text: str) -> None:
    assert not of("IDNUMBER1234").is_named_in(text)
    assert of("IDNUMBER1234").without(text) == text


@given(IDS)
def test_an_id_is_found_as_it_is_and_in_json(entity_id: str) -> None:
    subject = of(entity_id)
    for written in (entity_id, json.dumps(entity_id), json.dumps(entity_id, ensure_ascii=False)):
        assert subject.is_named_in(f'{{"id": {written}}}' if written is not entity_id else f" {written} ")
    written = "".join(f"\\u{unit:04X}" for unit in _units(entity_id))
    assert subject.is_named_in(f'{{"id": "{written}", cut off')


def _units(text: str) -> Iterator[int]:
    """The code units of UTF-16, which JSON escapes are of."""
    encoded = text.encode("utf-16-be", "surrogatepass")
    yield from (int.from_bytes(encoded[at : at + 2]) for at in range(0, len(encoded), 2))


@pytest.mark.parametrize(
    ("entity_id", "written"),
    [
        ("+358401234567", r"\u002B358401234567"),
        ("jörg/7", r"J: j\u00F6rg\/7."),
        ("jörg/7", r"j\u00f6rg\u002f7"),
        ("a😀", r"a\uD83D\uDE00"),
        ("u1", r"\nu1"),
        (r"a\b", r"a\\b"),
        ("+1", json.dumps(json.dumps({"phone": "+1"}).replace("+", r"\u002B"))),
    ],
)
def test_an_id_is_found_in_every_form_that_json_has_for_it(entity_id: str, written: str) -> None:
    assert of(entity_id).without(f'{{"id": "{written}"}}'.encode()) is None


def texts_of(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_of(inner)


LEAVES = st.one_of(IDS, st.integers(), st.none(), st.booleans())
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(IDS, inner, max_size=3))


@given(IDS, JSON)
def test_no_text_names_the_entity_after_it_was_taken_out(entity_id: str, value: object) -> None:
    subject = of(entity_id)
    emptied = subject.without({"around": [f" {entity_id} ", value], entity_id: value})
    assert not any(subject.is_named_in(text) for text in texts_of(emptied) if text != ERASED)
    assert subject.without(emptied) == emptied


def test_a_pseudonym_is_the_same_for_an_entity_and_another_at_another_source() -> None:
    assert of("u1").pseudonym == of("u1").pseudonym
    entities = (("trivore", "u1"), ("trivore", "u2"), ("other", "u1"), ("a|USER", "b"), ("a", "USER|b"))
    assert len({ErasureSubject(source, "USER", entity_id).pseudonym for source, entity_id in entities}) == len(entities)
    assert len(of("u1").pseudonym) == len("erased:") + 64


# --- The plan of an erasure warns where it would clear rows that may be about something else


def planned(entity_id: str, **naming: int) -> ErasurePlan:
    subject = ErasureSubject("trivore", "USER", entity_id)
    return ErasurePlan(subject, {"events": 1, "pauses": 0}, 0, naming)


@pytest.mark.parametrize(
    ("entity_id", "rows", "warning"),
    [
        ("1", 0, "its id has 1 character. Rows"),
        ("abc", 1, "its id has 3 characters. Rows"),
        ("1", MANY_NAMING + 1, "its id has 1 character. Rows"),
        ("IDNUMBER1234", MANY_NAMING + 1, "101 rows of other tables name it"),
    ],
)
def test_it_warns_of_a_short_id_and_of_many_rows(entity_id: str, rows: int, warning: str) -> None:
    said = planned(entity_id, rejected_request=rows).warning
    assert said is not None
    assert warning in said
    assert said.endswith("look at them first")


def test_the_warning_has_no_part_of_the_id() -> None:
    """An answer is kept for good."""
    assert "xyz" not in str(planned("xyz", rejected_request=1000).warning)
