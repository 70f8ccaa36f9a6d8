"""The entity to erase: a reason that names it, and its pseudonym."""

from __future__ import annotations

import pytest

from inbox.db.erasure import ErasureSubject


def of(entity_id: str) -> ErasureSubject:
    return ErasureSubject("trivore", "USER", entity_id)


@pytest.mark.parametrize(
    "text",
    [
        "IDNUMBER1234",
        '{"id": "IDNUMBER1234"}',
        "GET /user/IDNUMBER1234?x=1 answered 404",
        "user_IDNUMBER1234",
        "USER|IDNUMBER1234",
    ],
)
def test_an_id_is_found_wherever_it_stands_alone(text: str) -> None:
    assert of("IDNUMBER1234").is_named_in(text)


@pytest.mark.parametrize("text", ["", "IDNUMBER12345", "AIDNUMBER1234", "idnumber1234", "IDNUMBER 1234"])
def test_another_id_is_left_alone(text: str) -> None:
    assert not of("IDNUMBER1234").is_named_in(text)


def test_a_pseudonym_is_the_same_for_an_entity_and_another_at_another_source() -> None:
    assert of("u1").pseudonym == of("u1").pseudonym
    entities = (("trivore", "u1"), ("trivore", "u2"), ("other", "u1"), ("a|USER", "b"), ("a", "USER|b"))
    assert len({ErasureSubject(source, "USER", entity_id).pseudonym for source, entity_id in entities}) == len(entities)
    assert len(of("u1").pseudonym) == len("erased:") + 64
