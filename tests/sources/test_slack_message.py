from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest

from inbox.config.routing import enrol
from inbox.config.sources import NoAuth, Source
from inbox.errors import InvalidEvent, RequestError, Unreadable, UnsupportedType
from inbox.events.event import Identity, RawRequest, dedup_key
from inbox.loader.load import parse_config
from inbox.sources import preset_of
from inbox.sources.presets import slack_message
from tests.helpers.mistakes import mistake

NOW = datetime(2026, 1, 1, 12, 2, 30, tzinfo=UTC)
PATTERN = r"(?P<type>[a-z]+) (?P<id>\d+) was (?P<event_type>\w+)"
FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}


def a_source(pattern: str | None = PATTERN, entity_type: str | None = None) -> Source:
    return Source(name="chat", preset="slack-message", auth=NoAuth(), pattern=pattern, entity_type=entity_type)


def read_raw(raw: RawRequest, source: Source | None = None, dedup: Sequence[str] | None = None) -> Identity:
    (identity,) = preset_of(source or a_source()).read(raw, dedup)
    return identity


def raw_of(message: object, at: datetime = NOW, **headers: str) -> RawRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RawRequest("chat", {**JSON, **named}, json.dumps(message).encode(), at)


def read(message: object, source: Source | None = None, dedup: Sequence[str] | None = None) -> Identity:
    return read_raw(raw_of(message), source, dedup)


def named(message: object, source: Source | None = None) -> tuple[str | None, str | None, str]:
    identity = read(message, source)
    return identity.entity_type, identity.entity_id, identity.event_type


# --- which entity a message names


def test_the_pattern_finds_the_entity_in_the_text() -> None:
    identity = read({"text": "The user 42 was updated by Ada"})
    assert (identity.entity_type, identity.entity_id, identity.event_type) == ("user", "42", "updated")
    assert (identity.action, identity.event_id) == ("update", None)
    assert identity.occurred_ns == int(NOW.timestamp()) * 1_000_000_000


@pytest.mark.parametrize(
    "message",
    [
        {"attachments": [{"text": "user 42 was updated"}]},
        {"text": "News", "attachments": [{"color": "good"}, {"fallback": "user 42 was updated"}]},
        {"attachments": [{"fields": [{"title": "What", "value": "user 42 was updated", "short": True}]}]},
        {"blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "user 42 was updated"}}]},
        {"blocks": [{"type": "section", "fields": [{"type": "plain_text", "text": "user 42 was updated"}]}]},
        {"blocks": [{"type": "context", "elements": [{"type": "mrkdwn", "text": "user 42 was updated"}]}]},
        {
            "text": None,
            "blocks": [
                {
                    "type": "rich_text",
                    "elements": [
                        {"type": "rich_text_section", "elements": [{"type": "text", "text": "user 42 was updated"}]}
                    ],
                }
            ],
        },
        {"attachments": [{"blocks": [{"type": "header", "text": {"text": "user 42 was updated"}}]}]},
    ],
)
def test_it_is_found_wherever_a_message_has_text(message: object) -> None:
    assert named(message) == ("user", "42", "updated")


def test_the_messages_own_text_is_searched_first() -> None:
    assert named({"attachments": [{"text": "user 2 was updated"}], "text": "user 1 was created"})[1] == "1"


def test_text_is_searched_as_a_reader_sees_it() -> None:
    link = a_source(r"<https://crm/users/(?P<id>[^|]+)\|", "USER")
    assert named({"text": "See <https://crm/users/42|Ada &amp; Co>"}, link) == ("USER", "42", "message")
    assert named({"text": "A &amp;lt; B &lt;7&gt;"}, a_source(r"B <(?P<id>\d)>", "USER"))[1] == "7"
    assert named({"text": "A &amp;lt; B"}, a_source(r"A &(?P<id>lt); B", "USER"))[1] == "lt"


@pytest.mark.parametrize(
    ("pattern", "entity_type", "expected"),
    [
        (r"user (?P<id>\d+)", "USER", ("USER", "42", "message")),
        (r"((?P<type>group) )?(?P<id>\d+)", "USER", ("USER", "42", "message")),
        (r"(?P<type>user) (?P<id>\d+)", "GROUP", ("user", "42", "message")),
        (r"((?P<type>group) )?(?P<id>\d+)", None, (None, None, "message")),
        (r"(?P<id>\d*)x?", "USER", (None, None, "message")),
        (r"team (?P<id>\d+)", "TEAM", (None, None, "message")),
        (None, None, (None, None, "message")),
    ],
)
def test_what_the_groups_do_not_tell_is_configured_or_not_known(
    pattern: str | None, entity_type: str | None, expected: tuple[str | None, str | None, str]
) -> None:
    assert named({"text": "The user 42 was updated"}, a_source(pattern, entity_type)) == expected


def test_a_message_without_a_match_is_an_event_without_an_entity_in_a_lane_of_its_own() -> None:
    identity = read({"text": "Lunch?"})
    assert (identity.entity_type, identity.entity_id, identity.event_type) == (None, None, "message")
    assert identity.action == "other"
    config = parse_config("""
        [sources.chat]
        preset = "slack-message"
        auth = { kind = "none" }
        [destinations.d]
        kind = "python"
        function = "json:dumps"
        [routes.r]
        source = "chat"
        destination = "d"
    """)
    (enrolment,) = enrol(identity, "key", config.routes.values())
    assert enrolment.lane == "|key"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(?P<type>user) (?P<id>.+)", "user " + "4" * 256),
        (r"(?P<type>\w+) (?P<id>\d+)", "u" * 101 + " 42"),
        (r"(?P<type>user) (?P<id>\d+) (?P<event_type>\w+)", "user 42 " + "e" * 101),
        (r"(?P<type>user) (?P<id>.+)", "user 4\x002"),
    ],
)
def test_what_can_not_be_stored_is_no_entity_and_the_message_is_kept(pattern: str, text: str) -> None:
    assert named({"text": text}, a_source(pattern)) == (None, None, "message")


@pytest.mark.parametrize(
    ("word", "action"),
    [("created", "create"), ("Updated", "update"), ("changed", "update"), ("deleted", "delete"), ("seen", "other")],
)
def test_usual_words_have_their_actions(word: str, action: str) -> None:
    assert read({"text": f"user 42 was {word}"}).action == action


def test_no_more_than_256_kib_are_searched() -> None:
    far = "." * slack_message.SEARCHED
    assert named({"text": far, "blocks": [{"text": "user 42 was updated"}]}) == (None, None, "message")
    assert named({"text": far[20:], "blocks": [{"text": "user 42 was updated"}]})[1] == "42"
    assert named({"text": far[19:], "blocks": [{"text": "user 42 was updated"}]})[1] is None, "it may be half a match"


@pytest.mark.parametrize(
    ("pattern", "end"),
    [
        (r"(?P<id>(a+)+)$", "!"),
        (r"(?P<id>(a|aa)+)$", "!"),
        (r"(?P<id>\w+)@", ""),
        (r"(?P<id>(\w+)*)@", ""),
        (r"(?P<id>(\w+)*)@", "@"),
        (r"(?P<id>a*a*a*a*a*)b", "b"),
    ],
)
def test_no_pattern_takes_longer_than_a_few_times_reading_the_message(pattern: str, end: str) -> None:
    """A search that goes back and tries again would take its length squared, or not end: here 10,000 times as long."""
    raw = raw_of({"text": "a" * (slack_message.SEARCHED - 1) + end})

    def seconds(pattern: str) -> float:
        source = a_source(pattern, "USER")
        began = time.process_time()
        read_raw(raw, source)
        return time.process_time() - began

    hostile, harmless = (min(seconds(each) for _ in range(5)) for each in (pattern, "^(?P<id>b)"))
    assert hostile < 200 * harmless


# --- how a message comes


def test_a_form_is_read_as_its_payload() -> None:
    body = urlencode({"payload": json.dumps({"text": "user 42 was updated: \u00e4"})}).encode()
    raw = RawRequest("chat", FORM, body, NOW)
    slack_message.PRESET.check_type(raw)
    assert read_raw(raw).entity_id == "42"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", InvalidEvent),
        (b"text=hello", InvalidEvent),
        (b"payload={}&payload={}", InvalidEvent),
        (b"payload=", Unreadable),
        (b"payload=hello", Unreadable),
        (b"payload=%ff", Unreadable),
        (b"payload=\xff", Unreadable),
        (b"&a=" * 101, Unreadable),
        (b"payload=[]", InvalidEvent),
        (b"payload={}", InvalidEvent),
    ],
)
def test_a_form_without_one_good_payload_is_refused(body: bytes, error: type[RequestError]) -> None:
    with pytest.raises(error):
        read_raw(RawRequest("chat", FORM, body, NOW))


@pytest.mark.parametrize("message", [None, 1, "x", [], {}, {"channel": "#general"}])
def test_what_is_no_message_is_refused(message: object) -> None:
    with pytest.raises(InvalidEvent):
        read(message)


def test_other_types_are_not_taken() -> None:
    with pytest.raises(UnsupportedType, match=r"application/json or application/x-www-form-urlencoded"):
        slack_message.PRESET.check_type(RawRequest("chat", {"content-type": "text/plain"}, b"{}", NOW))


# --- what makes two requests the same event


def key_at(seconds: float, message: object = "user 42 was updated", **headers: str) -> str:
    return dedup_key(read_raw(raw_of({"text": message}, NOW + timedelta(seconds=seconds), **headers)))


def test_a_repeat_is_the_same_event_and_the_same_words_an_hour_later_are_another() -> None:
    assert key_at(0) == key_at(1) == key_at(120)
    assert key_at(0) != key_at(3600)
    assert key_at(0) != key_at(0, "user 43 was updated")


def test_the_same_words_more_than_five_minutes_apart_are_never_taken_for_a_repeat() -> None:
    assert all(key_at(start) != key_at(start + 300) for start in range(0, 300, 7))


def test_the_key_begins_with_the_five_minutes_so_that_the_index_grows_at_its_edge() -> None:
    assert key_at(0).startswith("2026-01-01T12:00:00.000000000Z|")


@pytest.mark.parametrize("header", ["idempotency_key", "webhook_id"])
def test_a_sender_that_says_what_is_a_repeat_is_believed(header: str) -> None:
    assert key_at(0, **{header: "k1"}) == key_at(3600, "in other words", **{header: "k1"})
    assert key_at(0, **{header: "k1"}) != key_at(0, **{header: "k2"})


def test_a_source_can_choose_fields_of_the_payload_as_the_key() -> None:
    assert dedup_key(read({"text": "x", "run": 7}, dedup=["run"])) == "7"
    with pytest.raises(InvalidEvent, match="run is missing"):
        read({"text": "x"}, dedup=["run"])


# --- what the file may say


NOT_OF_RE2 = "pattern: is not a regular expression of RE2, which has no look-around and no back-references"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"pattern": "(?P<id>"}, "pattern: is not a regular expression of RE2, "),
        ({"pattern": r"(?<=user )(?P<id>\d+)"}, f"{NOT_OF_RE2}: invalid perl operator: (?<="),
        ({"pattern": r"(?P<id>\d+)(?! more)"}, f"{NOT_OF_RE2}: invalid perl operator: (?!"),
        ({"pattern": r"(?P<id>\d)\1"}, rf"{NOT_OF_RE2}: invalid escape sequence: \1"),
        ({"pattern": r"(?P<type>\w)(?P<id>\d)(?P=id)"}, f"{NOT_OF_RE2}: invalid perl operator: (?P"),
        ({"pattern": r"user (?P<id>\d+)|(?P<id>\d+) user", "entity_type": "USER"}, "pattern: has a group twice; write"),
        ({"pattern": r"user \d+"}, "pattern: needs a group (?P<id>…) that finds the entity's id"),
        ({"pattern": r"(?P<id>\d+)"}, "pattern: needs a group (?P<type>…), or an entity_type beside it"),
        ({"pattern": r"(?P<id>\d+)(?P<kind>x)"}, "pattern: has a group 'kind'; those that are read are id, type"),
        ({"entity_type": "USER"}, "pattern: is missing, and entity_type is of no use without it"),
        ({"preset": "trivore", "pattern": "(?P<id>x)"}, "pattern: is for preset = 'slack-message' only; remove it"),
        ({"preset": "trivore", "entity_type": "USER"}, "entity_type: is for preset = 'slack-message' only; remove it"),
    ],
)
def test_a_bad_pattern_is_a_mistake_in_the_file(keys: dict[str, str], told: str) -> None:
    table = {"preset": "slack-message", **keys}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    assert f"[sources.chat] {told}" in mistake(f'[sources.chat]\nauth = {{ kind = "none" }}\n{lines}\n')
