from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.shapes import learn as learning
from relay.shapes.learn import ANY, MISSING_EVENTS, MOST_PATHS, USUAL_EVENTS, Learned, ObservedEvent, SeenType, learn
from relay.shapes.observe import DEEPEST, MOST_BYTES, MOST_KEYS, MOST_NODES, Observation, observe
from relay.shapes.paths import ANY_KEY, ITEM, LONGEST_KEY, ROOT, Path, fold, is_field_name, parse_path, path_text
from relay.shapes.sample import LONGEST_TYPE, MOST_TYPES, OTHER_TYPES, Candidate, bound_types, choose
from relay.store.shapes import FIRST_EVENTS, turn_of

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = st.sampled_from(["id", "items", "@type", "odata.type", "urn:ietf:scim:2.0:User", "käyttäjä", ANY_KEY, ITEM])
PATHS = st.lists(NAMES, max_size=6).map(tuple)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def candidate(seq: int, source: str, event_type: str) -> Candidate:
    return Candidate(seq, source, event_type, START, None, "application/json")


def see(value: object, **more: Any) -> Observation:  # noqa: ANN401  # of observe
    return observe(json.dumps(value).encode(), "application/json", **more)


def shown(observation: Observation) -> dict[str, set[str]]:
    return {path_text(path): set(types) for path, types in observation.types.items()}


def days_of(*values: object, first: int = 1, known: Mapping[Any, SeenType] | None = None) -> Learned:
    """Learn one event a day, each with one of the values."""
    events = [
        ObservedEvent(seq, START + timedelta(days=seq), see(value)) for seq, value in enumerate(values, start=first)
    ]
    return learn(known or {}, events)


def changes(learned: Learned) -> list[tuple[str, str, str | None, int]]:
    return [(each.change, path_text(each.path), each.type, each.seq) for each in learned.changes]


@given(PATHS)
def test_a_path_that_was_written_is_read_back(path: Path) -> None:
    assert parse_path(path_text(path)) == path


@given(st.text())
def test_no_text_but_that_of_a_path_is_read_as_one(text: str) -> None:
    path = parse_path(text)
    assert path is None or parse_path(path_text(path)) == path


@pytest.mark.parametrize(
    "key",
    ["id", "user_id", "line1", "oauth2", "@type", "$schema", "x-github-event", "Größe", "odata.type", "sha256",
     "https://schemas.openid.net/secevent/caep/event-type/session-revoked", "urn:ietf:params:scim:schemas:core:2.0:User"],
)  # fmt: skip
def test_names_that_programmers_give_are_kept(key: str) -> None:
    assert is_field_name(key)


@pytest.mark.parametrize(
    "key",
    ["", "0", "17", "4711-4712", "2026-11-27", "10.0.0.1", "+358401234567", "maria@example.com", "Maria Meier",
     "usr_9f8a7b6c", "\x00", "\ud800",
     "6f1ed002ab5595859014ebf0951522d9",
     "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "a" * (LONGEST_KEY + 2), 'a"b', "a[]", "*"],
)  # fmt: skip
def test_keys_that_are_data_are_folded(key: str) -> None:
    assert not is_field_name(key)


@given(VALUES, st.text(max_size=8))
def test_no_value_and_no_key_that_is_data_is_kept(value: object, entity_id: str) -> None:
    observation = see(value, entity_id=entity_id)
    keys = {segment for path in observation.types for segment in path} - {ANY_KEY, ITEM}
    assert all(map(is_field_name, keys))
    assert entity_id not in keys
    assert observation.types[ROOT]


@given(
    st.binary(max_size=200),
    st.sampled_from(["application/json", "application/x-www-form-urlencoded", "", "text/html; x"]),
)
def test_any_bytes_have_a_structure(body: bytes, content_type: str) -> None:
    assert observe(body, content_type).types[ROOT]
    observe(body, content_type, size=len(body) + 1)


@settings(max_examples=40)
@given(VALUES, st.data())
def test_the_beginning_of_a_body_has_a_part_of_its_structure(value: object, data: st.DataObject) -> None:
    body = json.dumps(value).encode()
    part = body[: data.draw(st.integers(0, len(body) - 1))]
    whole, seen = observe(body, "application/json"), observe(part, "application/json", size=len(body))
    assert not seen.is_whole
    assert all(types <= whole.types[path] for path, types in seen.types.items())


def test_items_and_types_are_merged() -> None:
    assert shown(see({"items": [{"n": 1}, {"n": None, "d": {"17": True, "18": "x"}}], "empty": []})) == {
        "$": {"object"}, "$.items": {"array"}, "$.items[]": {"object"}, "$.items[].n": {"number", "null"},
        "$.items[].d": {"object"}, "$.items[].d.*": {"boolean", "string"}, "$.empty": {"array"},
    }  # fmt: skip


def test_a_form_is_an_object_of_strings() -> None:
    body = urlencode({"From": "+1", "Body": "hi"}).encode()
    form = "application/x-www-form-urlencoded; charset=utf-8"
    assert shown(observe(body, form)) == {"$": {"object"}, "$.From": {"string"}, "$.Body": {"string"}}
    assert shown(observe(body, form, size=1000)) == {"$": {"object"}, "$.From": {"string"}}
    assert shown(observe(b"<html>", "application/json")) == {"$": {"text"}}


def test_the_id_of_the_entity_is_no_key() -> None:
    value = {"maria.meier": 1, "of-maria.meier": 2, "a": 3, "data": 4}
    assert shown(see(value, entity_id="maria.meier")).keys() == {"$", "$.*", "$.a", "$.data"}
    assert shown(see(value, entity_id="a")).keys() == {"$", "$.*", '$["maria.meier"]', '$["of-maria.meier"]', "$.data"}


def test_hostile_bodies_are_bounded() -> None:
    keys = {f"k{letters}": {"x": 1} for letters in map(_word, range(3_000))}
    seen = see(keys)
    assert shown(seen).keys() == {"$", "$.*", "$.*.x"}
    assert seen.maps == {ROOT}
    deep = observe(b'{"a":' * 60 + b"1" + b"}" * 60, "application/json")
    assert max(map(len, deep.types)) == DEEPEST
    assert shown(observe(b"[" * 100_000 + b"]" * 100_000, "application/json")) == {"$": {"text"}}
    wide = see({f"a{_word(number)}": {f"b{_word(each)}": 1 for each in range(90)} for number in range(90)})
    assert (len(wide.types), wide.is_whole) == (MOST_NODES, False)
    body = json.dumps({"first": {"x": 1}, "text": "," * MOST_BYTES, "last": 1}).encode()
    part = observe(body[:MOST_BYTES], "application/json", size=len(body))
    assert shown(part) == {"$": {"object"}, "$.first": {"object"}, "$.first.x": {"number"}}


def _word(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


@settings(max_examples=40)
@given(st.lists(VALUES, min_size=1, max_size=6), st.integers(1, 5))
def test_a_shape_is_the_same_however_its_events_are_divided(values: list[object], at: int) -> None:
    whole = days_of(*values)
    first = days_of(*values[:at])
    assert days_of(*values[at:], first=at + 1, known=first.rows).rows == whole.rows


@settings(max_examples=40)
@given(st.lists(VALUES, min_size=1, max_size=6))
def test_counts_add_up(values: list[object]) -> None:
    rows = days_of(*values).rows
    for (path, of), row in rows.items():
        assert 1 <= row.events <= len(values)
        assert row.events <= rows[path, ANY].events
        if of == ANY and path:
            assert row.events + row.absent <= rows[path[:-1], ANY].events
            assert row.missed <= row.absent


USUAL = [{"id": 1, "user": {"name": "x"}, "items": [{"n": 1}]}] * (USUAL_EVENTS + 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (USUAL[0], []),
        ({"id": "1", "user": {"name": "x"}}, [("type", "$.id", "string", 52)]),
        ({"id": None, "user": {"name": "x"}}, [("type", "$.id", "null", 52)]),
        ({"id": 1.5, "user": {"name": "x"}}, []),
        ({"id": 1, "user": {"name": "x", "mail": {"to": "y"}}}, [("added", "$.user.mail", "object", 52)]),
        ({"id": 1, "user": {"name": "x"}, "items": [{"n": 1, "o": [[2]]}]}, [("added", "$.items[].o", "array", 52)]),
        ({"id": 1, "user": {"name": "x", "17": 1}}, []),
        ([USUAL[0]], [("type", "$", "array", 52)]),
    ],
)
def test_a_difference_is_reported_with_its_event(value: object, expected: list[object]) -> None:
    learned = days_of(*USUAL)
    assert learned.changes == ()
    again = days_of(value, first=52, known=learned.rows)
    assert changes(again) == expected
    assert changes(days_of(value, first=53, known=again.rows)) == [], "it is known now"


def test_a_new_type_has_a_grace_period() -> None:
    assert changes(days_of(*USUAL[:40], {"id": "1"}, {"other": 1})) == []
    burst = [ObservedEvent(seq, START, see(USUAL[0])) for seq in range(1000)]
    assert changes(learn({}, [*burst, ObservedEvent(1000, START + timedelta(hours=23), see({"id": "x"}))])) == []
    assert changes(learn({}, [*burst, ObservedEvent(1000, START + timedelta(hours=24), see({"id": "x"}))])) != []


def test_a_field_that_was_always_null_gets_its_type() -> None:
    nulls = [{"id": None}] * USUAL_EVENTS
    assert changes(days_of(*nulls, {"id": 1}, {"id": "x"})) == [("type", "$.id", "string", 52)]


def test_a_missing_field_is_reported_once_with_the_first_event_without_it() -> None:
    without = [{"id": 1, "items": []}] * MISSING_EVENTS
    learned = days_of(*USUAL, *without[1:])
    assert changes(learned) == []
    learned = days_of(without[0], first=71, known=learned.rows)
    assert changes(learned) == [("missing", "$.user", None, 52)]
    assert learned.changes[0].usual == "in 51 of 51 events"
    again = days_of(*without, first=72, known=learned.rows)
    assert (changes(again), again.returned) == ([], frozenset())
    back = days_of(USUAL[0], first=99, known=again.rows)
    assert back.returned == {("user",)}


def test_a_field_that_was_often_missing_or_can_t_be_seen_is_not_reported() -> None:
    some = [{"id": 1, "user": {}}, {"id": 1}, *[{"id": 1, "user": {}}] * 8] * 10
    assert changes(days_of(*some, *[{"id": 1}] * 30)) == []
    learned = days_of(*USUAL)
    parts = [
        ObservedEvent(seq, START + timedelta(days=seq), observe(b'{"id":1,"x', "application/json", size=99))
        for seq in range(60, 99)
    ]
    assert changes(learn(learned.rows, parts)) == []
    assert changes(days_of(*[{"id": 1, "user": None, "items": []}] * 30, first=60, known=learned.rows)) == [
        ("type", "$.user", "null", 60)
    ], "what lies below a missing object is not missing by itself"


def test_keys_of_many_events_are_folded_when_they_are_too_many() -> None:
    def of(numbers: Iterable[int]) -> list[object]:
        return [{"id": 1, "names": {f"n{_word(number)}": {"x": 1}}} for number in numbers]

    learned = days_of(*of(range(60)))
    numbered = {key: msgspec.structs.replace(row, id=at) for at, (key, row) in enumerate(learned.rows.items())}
    gone = {row.id for (path, _), row in numbered.items() if path[:1] == ("names",) and len(path) > 1}
    assert len(gone) == 240
    more = days_of(*of(range(60, 60 + MOST_KEYS)), first=61, known=numbered)
    assert {path for path, _ in more.rows if len(path) > 1} == {("names", ANY_KEY), ("names", ANY_KEY, "x")}
    assert more.rows[("names",), ANY].is_map
    assert set(more.folded) == gone
    assert days_of(*of(range(3)), first=200, known=more.rows).rows[("names", ANY_KEY, "x"), "number"].last_seq == 202
    assert fold(("names", ITEM, "z"), {("names",)}) == ("names", ITEM, "z"), "items of an array have no keys"
    assert fold(("names", "one", ITEM, "z"), {("names",)}) == ("names", ANY_KEY, ITEM, "z")


def test_a_shape_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "MOST_CHANGES", 3)
    known = days_of(*USUAL).rows
    hostile: list[object] = [
        {"id": 1, "user": {f"a{_word(each)}": {f"b{_word(number * 90 + each)}": 1} for each in range(90)}}
        for number in range(20)
    ]
    learned = days_of(*hostile, first=60, known=known)
    assert len([of for _, of in learned.rows if of == ANY]) <= MOST_PATHS
    assert len(learned.changes) == 3


def test_each_source_and_each_event_type_has_its_turn() -> None:
    flood = [candidate(seq, "flood", f"T{seq % 50}") for seq in range(1000)]
    mixed = [candidate(1000 + seq, "mixed", "often") for seq in range(100)] + [candidate(2000, "mixed", "rare")]
    chosen = choose([*flood, *mixed, candidate(3000, "quiet", "only")], 11)
    assert [each.seq for each in chosen] == sorted(each.seq for each in chosen)
    assert Counter(each.source for each in chosen) == {"flood": 5, "mixed": 5, "quiet": 1}
    assert {each.event_type for each in chosen if each.source == "mixed"} == {"often", "rare"}
    assert len({each.event_type for each in chosen if each.source == "flood"}) == 5
    assert choose([], 11) == []


def test_event_types_beyond_the_limits_are_one() -> None:
    known = {"shop": {f"T{number}" for number in range(MOST_TYPES - 1)}}
    events = [
        candidate(1, "shop", "T1"),
        candidate(2, "shop", "a"),
        candidate(3, "shop", "b"),
        candidate(4, "shop", "a"),
    ]
    long = candidate(5, "new", "x" * (LONGEST_TYPE + 1))
    bounded = bound_types([*events, long, candidate(6, "new", "b")], known)
    assert [each.event_type for each in bounded] == ["T1", "a", OTHER_TYPES, "a", OTHER_TYPES, "b"]
    assert len(known["shop"]) == MOST_TYPES - 1, "the caller's own stays as it is"


def test_a_turn_ends_where_all_were_committed_a_minute_ago() -> None:
    minute, second = timedelta(minutes=1), timedelta(seconds=1)

    def turn(*place: Any, highest: int = 9_000) -> tuple[int, int, int]:  # noqa: ANN401  # position, horizon and its time
        found = turn_of("r1", *place, highest=highest, now=START)
        assert found.horizon_at <= START
        return found.after, found.until, found.horizon

    assert turn(None, None, None) == (9_000 - FIRST_EVENTS, 9_000 - FIRST_EVENTS, 9_000), (
        "the newest of an old database"
    )
    assert turn(5, 7, START - minute) == (5, 7, 9_000)
    assert turn(5, 7, START - minute + second) == (5, 5, 7), "a round was interrupted, and is due at once"
    assert turn(5, 7, START + second) == (5, 5, 9_000), "a clock was ahead"
    assert turn(5, 4, START - minute, highest=0) == (5, 5, 0), "the inbox is empty, or was restored"
