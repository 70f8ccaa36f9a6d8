from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest

from inbox.config.sources import NoAuth, Source
from inbox.errors import InvalidEvent, Unreadable
from inbox.events.event import Identity, RawRequest, dedup_key
from inbox.sources import preset_of
from inbox.sources.presets import slack_message
from tests.helpers.webhooks import mistake

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


TOLD = {"text": "user 42 was updated"}


@pytest.mark.parametrize(
    "message",
    [
        {"attachments": [TOLD]},
        {"text": "News", "attachments": [{"color": "good"}, {"fallback": TOLD["text"]}]},
        {"attachments": [{"fields": [{"title": "What", "value": TOLD["text"], "short": True}]}]},
        {"blocks": [{"type": "section", "text": TOLD}]},
        {"blocks": [{"type": "section", "fields": [TOLD]}]},
        {"text": None, "blocks": [{"type": "rich_text", "elements": [{"type": "section", "elements": [TOLD]}]}]},
        {"attachments": [{"blocks": [{"type": "header", "text": TOLD}]}]},
        {"attachments": [{"text": "user 2 was created"}], **TOLD},
    ],
)
def test_it_is_found_wherever_a_message_has_text_and_in_its_own_first(message: object) -> None:
    assert named(message) == ("user", "42", "updated")


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
def test_an_entity_that_the_groups_do_not_tell_is_configured_or_not_known(
    pattern: str | None, entity_type: str | None, expected: tuple[str | None, str | None, str]
) -> None:
    assert named({"text": "The user 42 was updated"}, a_source(pattern, entity_type)) == expected


def test_an_id_that_can_not_be_stored_is_no_entity_and_the_message_is_kept() -> None:
    for pattern, text in (
        (r"(?P<type>user) (?P<id>.+)", "user " + "4" * 256),
        (r"(?P<type>\w+) (?P<id>\d+)", "u" * 101 + " 42"),
        (r"(?P<type>user) (?P<id>\d+) (?P<event_type>\w+)", "user 42 " + "e" * 101),
        (r"(?P<type>user) (?P<id>.+)", "user 4\x002"),
    ):
        assert named({"text": text}, a_source(pattern)) == (None, None, "message")


def test_usual_words_have_their_actions() -> None:
    actions = {"created": "create", "Updated": "update", "changed": "update", "deleted": "delete", "seen": "other"}
    assert {word: read({"text": f"user 42 was {word}"}).action for word in actions} == actions


def test_no_more_than_256_kib_are_searched() -> None:
    far = "." * slack_message.SEARCHED
    assert named({"text": far, "blocks": [{"text": "user 42 was updated"}]}) == (None, None, "message")
    assert named({"text": far[20:], "blocks": [{"text": "user 42 was updated"}]})[1] == "42"
    assert named({"text": far[19:], "blocks": [{"text": "user 42 was updated"}]})[1] is None, "it may be half a match"


def test_no_pattern_takes_longer_than_a_few_times_reading_the_message() -> None:
    """A search that goes back and tries again would take its length squared, or not end: here 10,000 times as long."""

    def seconds(pattern: str, end: str) -> float:
        source, raw = a_source(pattern, "USER"), raw_of({"text": "a" * (slack_message.SEARCHED - 1) + end})
        began = time.process_time()
        read_raw(raw, source)
        return time.process_time() - began

    harmless = min(seconds("^(?P<id>b)", "") for _ in range(5))
    for pattern, end in ((r"(?P<id>(a|aa)+)$", "!"), (r"(?P<id>(\w+)*)@", ""), (r"(?P<id>a*a*a*a*a*)b", "b")):
        assert min(seconds(pattern, end) for _ in range(5)) < 200 * harmless, pattern


# --- how a message comes


def test_a_form_is_read_as_its_payload() -> None:
    body = urlencode({"payload": json.dumps({"text": "user 42 was updated: \u00e4"})}).encode()
    raw = RawRequest("chat", FORM, body, NOW)
    slack_message.PRESET.check_type(raw)
    assert read_raw(raw).entity_id == "42"


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"text=hello", b"payload={}&payload={}", b"payload=", b"payload=hello", b"payload=%ff", b"payload=\xff"),
        *(b"&a=" * 101, b"payload=1", b"payload=[]", b"payload={}"),
    ],
)
def test_a_form_without_one_good_payload_is_refused(body: bytes) -> None:
    with pytest.raises((InvalidEvent, Unreadable)):
        read_raw(RawRequest("chat", FORM, body, NOW))


# --- what makes two requests the same event


def key_at(seconds: float, message: object = "user 42 was updated", **headers: str) -> str:
    return dedup_key(read_raw(raw_of({"text": message}, NOW + timedelta(seconds=seconds), **headers)))


def test_a_repeat_is_the_same_event_and_the_same_words_more_than_five_minutes_later_are_another() -> None:
    assert key_at(0) == key_at(1) == key_at(120)
    assert key_at(0) != key_at(0, "user 43 was updated")
    assert all(key_at(start) != key_at(start + 300) for start in range(0, 300, 7))
    for header in ("idempotency_key", "webhook_id"):  # of a sender that says which requests are repeats
        assert key_at(0, **{header: "k1"}) == key_at(3600, "in other words", **{header: "k1"})
        assert key_at(0, **{header: "k1"}) != key_at(0, **{header: "k2"})


# --- what the file may say


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        *(({"pattern": pattern, "entity_type": "X"}, "pattern") for pattern in ("(?P<id>", r"(?<=user )(?P<id>\d+)")),
        ({"pattern": r"(?P<type>\w)(?P<id>\d)(?P=id)"}, "pattern"),
        ({"pattern": r"user (?P<id>\d+)|(?P<id>\d+) user", "entity_type": "USER"}, "pattern"),
        ({"pattern": r"user \d+", "entity_type": "USER"}, "pattern"),
        ({"pattern": r"(?P<id>\d+)"}, "pattern"),
        ({"pattern": r"(?P<id>\d+)(?P<kind>x)", "entity_type": "USER"}, "pattern"),
        ({"entity_type": "USER"}, "pattern"),
        ({"preset": "trivore", "pattern": "(?P<id>x)"}, "pattern"),
        ({"preset": "trivore", "entity_type": "USER"}, "entity_type"),
    ],
)
def test_a_bad_pattern_is_a_mistake_in_the_file(keys: dict[str, str], key: str) -> None:
    table = {"preset": "slack-message", **keys}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    assert f"[sources.chat] {key}: " in mistake(f'[sources.chat]\nauth = {{ kind = "none" }}\n{lines}\n')
