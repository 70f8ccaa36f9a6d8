"""Texts that no database takes: escaped where that is harmless, rejected where they must stay unchanged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.db.dialect import is_storable, json_text, rows_param, storable

TEXTS = st.text(st.characters(codec=None, categories=None), max_size=20)


@given(TEXTS)
def test_a_storable_text_can_be_encoded_has_no_nul_and_stays_as_it_is(text: str) -> None:
    written = storable(text)
    assert "\x00" not in written
    assert written.encode().decode() == written
    assert storable(written) == written
    assert (written == text) == is_storable(text)


@given(TEXTS, TEXTS)
def test_rows_are_written_storable_keys_too(key: str, text: str) -> None:
    (row,) = json.loads(rows_param([{"detail": {key: [text]}}]))
    assert row == {"detail": {storable(key): [storable(text)]}}


@given(TEXTS)
def test_what_must_stay_as_it_is_is_refused_instead(text: str) -> None:
    if is_storable(text):
        assert json.loads(json_text([{"id": text}])) == [{"id": text}]
    else:
        with pytest.raises(ValueError, match=r"NUL|surrogates"):
            json_text([{"id": text}])


def test_the_characters_that_json_writes_for_a_nul_are_no_nul() -> None:
    for text in (r"\u0000", r"\\u0000", r"a\b\u0000c"):
        assert json.loads(json_text([{"id": text}])) == [{"id": text}]
    assert json.loads(rows_param([{"id": "a\x00b\udc80"}])) == [{"id": r"a\x00b\udc80"}]
