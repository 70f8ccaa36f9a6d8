"""The key `entity` of a source: the entity, and so the lane, of its events instead of the preset's."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest

from inbox.config.sources import EntityFields, NoAuth, Source
from inbox.events.event import Identity, RawRequest
from inbox.sources import build_preset
from inbox.sources.fields import FORM
from tests.sources.presenting import NOW

GITHUB = {"x-github-event": "issues", "x-github-delivery": "d1"}
HUBSPOT = {"eventId": 1, "subscriptionType": "contact.creation", "occurredAt": 1_767_225_600_000, "objectId": 5}


def read(preset: str, body: object, entity: EntityFields, **headers: str) -> list[Identity]:
    source = Source(name="s", preset=preset, auth=NoAuth(), unsigned=True, entity=entity)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    raw = RawRequest("s", {"content-type": "application/json", **GITHUB, **headers}, content, NOW)
    return [*build_preset(source).read(raw, None)]


SENDER = EntityFields(type="user", id="body.sender.id")


UNUSABLE: list[object] = [{}, None, {"id": ""}, {"id": {}}, {"id": True}, {"id": "x" * 256}, [7]]
NAMED: list[tuple[object, tuple[str | None, str | None]]] = [
    ({"id": 7}, ("user", "7")),
    ({"id": "a|b"}, ("user", "a|b")),
    *((sender, (None, None)) for sender in UNUSABLE),
]


@pytest.mark.parametrize(("sender", "expected"), NAMED)
def test_it_is_found_in_the_body_or_the_event_has_none(sender: object, expected: tuple[str | None, str | None]) -> None:
    """A missing one is not the preset's instead: that would be another kind of lane."""
    body = {"action": "opened", "issue": {"id": 1}, "sender": sender}
    (identity,) = read("github", body, SENDER)
    assert (identity.entity_type, identity.entity_id) == expected
    assert (identity.event_type, identity.event_id) == ("issues.opened", "d1")


def test_a_form_is_read_as_templates_read_it() -> None:
    body = urlencode({"payload": json.dumps({"action": "opened", "sender": {"id": 7}})}).encode()
    (identity,) = read("github", body, SENDER, **{"content-type": FORM})
    assert identity.entity_id == "7"
    form = urlencode({"MessageSid": "SM1", "MessageStatus": "sent", "From": "+358"}).encode()
    (identity,) = read("twilio", form, EntityFields(type="phone", id="body.From"), **{"content-type": FORM})
    assert (identity.entity_type, identity.entity_id) == ("phone", "+358")


def test_each_event_of_a_body_has_its_own() -> None:
    several = [{**HUBSPOT, "eventId": n, "portalId": n} for n in (1, 2)]
    found = read("hubspot", several, EntityFields(type="portal", id="body[0].portalId"))
    assert [identity.entity_id for identity in found] == ["1", "2"]


def test_an_expression_that_fails_finds_none() -> None:
    (identity,) = read("github", {"sender": {"id": 7}}, EntityFields(type="user", id="join('-', body.sender.id)"))
    assert identity.entity_type is None


@pytest.mark.parametrize(("kind", "action"), [("issue", "delete"), ("user", "other")])
def test_the_action_is_kept_for_the_type_that_the_preset_names(kind: str, action: str) -> None:
    """The deletion of an issue deletes no user."""
    body = {"action": "deleted", "issue": {"id": 1, "number": 9}, "sender": {"id": 7}}
    (identity,) = read("github", body, EntityFields(type=kind, id="body.issue.number"))
    assert (identity.entity_id, identity.action) == ("9", action)
