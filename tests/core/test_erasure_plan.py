"""The plan of an erasure warns where it would clear rows that may be about something else."""

from __future__ import annotations

import pytest

from inbox.db.erasure import MANY_NAMING, ErasurePlan, ErasureSubject


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
