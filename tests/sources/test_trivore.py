from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest

from inbox.errors import InvalidEvent, UnsupportedType
from inbox.events.event import Identity, RawRequest, dedup_key
from inbox.sources.presets import trivore

NOW = datetime(2024, 1, 1, tzinfo=UTC)
CLASSIC = {"id": "IDNUMBER1234", "entityType": "USER", "eventType": "UPDATE", "timestamp": "2019-01-01T00:00:00Z"}
TYPED = {"id": "5ba48fdb2f4a4b0b2c3d4e5f", "type": "USER_EDIT", "time": "2019-01-01T00:00:00.708Z"}


def read_bytes(body: bytes, dedup: Sequence[str] | None = None) -> Identity:
    (identity,) = trivore.PRESET.read(RawRequest("trivore", {}, body, NOW), dedup)
    return identity


def read(payload: object, dedup: Sequence[str] | None = None) -> Identity:
    return read_bytes(json.dumps(payload).encode(), dedup)


def wrong_field(payload: object, dedup: Sequence[str] | None = None) -> str | None:
    with pytest.raises(InvalidEvent) as caught:
        read(payload, dedup)
    assert caught.value.field is not None
    assert caught.value.field in caught.value.detail
    return caught.value.field


def test_the_example_of_the_archived_page_is_read() -> None:
    assert read(CLASSIC) == Identity(
        entity_type="USER",
        entity_id="IDNUMBER1234",
        event_type="UPDATE",
        action="update",
        occurred_ns=1_546_300_800_000_000_000,
        key_parts=("IDNUMBER1234", "USER", "UPDATE"),
        key_has_time=True,
    )


def test_the_typed_form_is_read_and_its_code_stays_as_it_is() -> None:
    identity = read(TYPED)
    assert (identity.entity_type, identity.event_type, identity.action) == ("USER", "USER_EDIT", "update")
    assert identity.occurred_ns == 1_546_300_800_708_000_000
    assert identity.key_parts == ("5ba48fdb2f4a4b0b2c3d4e5f", "USER", "USER_EDIT")
    assert dedup_key(identity).startswith("2019-01-01T00:00:00.708000000Z|")


UPDATES = (
    *("USER_EDIT", "USER_ACTIVITY_UPDATED", "USER_EMAIL_VERIFIED", "USER_LEGALINFO_CHANGE", "USER_MOBILE_VERIFIED"),
    *("USER_ADDRESS_CHANGE", "USER_CONSENT_UPDATED", "USER_PNS_TOKEN_CHANGE", "GROUP_EDIT"),
)
CODES = {
    **dict.fromkeys(UPDATES, "update"),
    **dict.fromkeys(("USER_CREATE", "GROUP_CREATE"), "create"),
    **dict.fromkeys(("USER_DELETE", "GROUP_DELETE"), "delete"),
    **dict.fromkeys(("GROUP_EMAIL_VERIFIED", "USER_LOGIN", "USER_edit", "PING", "CREATE"), "other"),
}


@pytest.mark.parametrize(("code", "action"), CODES.items())
def test_every_documented_code_has_its_action_and_others_are_other(code: str, action: str) -> None:
    identity = read(TYPED | {"type": code})
    assert (identity.entity_type, identity.event_type, identity.action) == (code.partition("_")[0], code, action)


def test_other_fields_are_ignored_and_those_of_both_forms_are_read_as_classic() -> None:
    assert read(TYPED | CLASSIC) == read(CLASSIC)
    assert wrong_field(TYPED | {"entityType": "USER"}) == "eventType"
    assert read(CLASSIC | {"note": ["\x00", None], "time": 5}) == read(CLASSIC)
    assert read(TYPED | {"data": {"id": 1}}) == read(TYPED)


@pytest.mark.parametrize("payload", [None, True, 1, 1.5, "x", [], [CLASSIC]])
def test_a_body_that_is_no_object_is_no_event(payload: object) -> None:
    assert wrong_field(payload) == "body"


@pytest.mark.parametrize(("payload", "field"), [(p, f) for p in (CLASSIC, TYPED) for f in p])
def test_a_field_that_is_missing_or_of_another_type_or_length_is_named(payload: dict[str, str], field: str) -> None:
    values: list[object] = [None, 1, True, 1.5, {}, [], ["x"], "", "x\x00y", "x" * 256]
    for value in values:
        assert wrong_field(payload | {field: value}) == field, value
    if field != "type":  # which tells the two forms apart
        assert wrong_field({name: value for name, value in payload.items() if name != field}) == field


def test_the_longest_values_are_taken() -> None:
    longest = CLASSIC | {"id": "i" * 255, "entityType": "e" * 100, "eventType": "v" * 100}
    assert read(longest).entity_id == "i" * 255
    assert wrong_field(longest | {"entityType": "e" * 101}) == "entityType"
    assert wrong_field(TYPED | {"type": "U_" + "e" * 99}) == "type"


def test_a_time_has_an_offset_exists_and_lies_between_2000_and_24_hours_after_arrival() -> None:
    first, last, moment = datetime(2000, 1, 1, tzinfo=UTC), NOW + timedelta(hours=24), timedelta(microseconds=1)
    assert read(CLASSIC | {"timestamp": first.isoformat()}).occurred_ns == 946_684_800_000_000_000
    assert read(CLASSIC | {"timestamp": last.isoformat()}).occurred_ns == 1_704_153_600_000_000_000
    outside = ((first - moment).isoformat(), (last + moment).isoformat(), "0001-01-01T00:00:00+23:59")
    for time in (*outside, "2019-01-01T00:00:00", "2019-01-01", "1546300800", "now", "2019-02-30T00:00:00Z"):
        assert wrong_field(CLASSIC | {"timestamp": time}) == "timestamp", time
        assert wrong_field(TYPED | {"time": time}) == "time", time


# --- what makes two requests the same event


def test_spellings_of_one_instant_are_one_event_and_another_type_is_another() -> None:
    elsewhere = CLASSIC | {"timestamp": "2019-01-01T02:00:00.000+02:00"}
    assert dedup_key(read(elsewhere)) == dedup_key(read(CLASSIC))
    assert dedup_key(read(CLASSIC | {"eventType": "DELETE"})) != dedup_key(read(CLASSIC))
    assert dedup_key(read(CLASSIC | {"entityType": "GROUP"})) != dedup_key(read(CLASSIC))


def test_a_source_can_choose_the_fields_and_the_time_comes_first_if_it_is_one() -> None:
    for dedup in (["timestamp", "id"], ["id", "timestamp"], ["id", "time"]):
        assert read(CLASSIC, dedup).key_parts == ("IDNUMBER1234",)
        assert dedup_key(read(CLASSIC, dedup)).startswith("2019-01-01T00:00:00.000000000Z|")
        assert dedup_key(read(TYPED, dedup)).startswith("2019-01-01T00:00:00.708000000Z|")
    assert dedup_key(read(CLASSIC | {"version": 7, "part": "a|b"}, ["version", "part"])) == r"7|a\|b"


@pytest.mark.parametrize("value", [None, True, 1.5, [], {}, "", "\x00"])
def test_a_field_that_the_key_needs_must_be_a_text_or_a_whole_number(value: object) -> None:
    assert wrong_field(CLASSIC | {"version": value}, ["id", "version"]) == "version"
    assert wrong_field(CLASSIC, ["id", "version"]) == "version"


def test_equal_times_of_different_entities_do_not_share_a_key_whatever_their_ids() -> None:
    one, other = CLASSIC | {"id": "a|USER", "entityType": "X"}, CLASSIC | {"id": "a", "entityType": "USER|X"}
    assert dedup_key(read(one)) != dedup_key(read(other))


# --- what all presets share


@pytest.mark.parametrize(
    ("content_type", "encoding", "is_taken"),
    [
        ("application/json", None, True),
        ("APPLICATION/JSON", "Identity", True),
        (" application/json ;charset=UTF-8", None, True),
        ('application/json; Charset="utf-8"; profile=x', None, True),
        ("application/json;", None, True),
        (None, None, False),
        ("", None, False),
        ("text/plain", None, False),
        ("application/x-www-form-urlencoded", None, False),
        ("application/json, application/json", None, False),
        ("application/json; charset=utf-7", None, False),
        ("application/json; charset=utf-8; charset=latin-1", None, False),
        ("application/json; charset", None, False),
        ("application/json", "gzip", False),
        ("application/json", "", False),
    ],
)
def test_json_in_utf_8_is_taken_however_its_type_is_written_and_nothing_else(
    content_type: str | None, encoding: str | None, is_taken: bool
) -> None:
    given = {"content-type": content_type, "content-encoding": encoding}
    raw = RawRequest("s", {name: value for name, value in given.items() if value is not None}, b"", NOW)
    with nullcontext() if is_taken else pytest.raises(UnsupportedType):
        trivore.PRESET.check_type(raw)
