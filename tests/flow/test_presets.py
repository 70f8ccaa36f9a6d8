"""Handshakes, bodies of several events and answers as providers want them, through the real receiver on both databases."""

from __future__ import annotations

import hmac
import json

import pytest
from sqlalchemy import Engine
from tests.helpers.tables import count, rows

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.loader.load import parse_config
from inbox.sources import PRESETS
from inbox.sources.signing import Message, sign
from tests.helpers.receiver import Receiver
from tests.helpers.webhooks import config_text
from tests.sources.presenting import signed_sample

SECRET = "8f742231b10e8888abcd99aaabbb85a5"
SOURCES = f"""
[sources.okta]
preset = "okta"
auth = {{ kind = "header", name = "Authorization", secrets = ["{SECRET}"] }}
[sources.slack]
preset = "slack"
secrets = ["{SECRET}"]
[sources.events]
preset = "cloudevents"
auth = {{ kind = "bearer", secrets = ["{SECRET}"] }}
[sources.hub]
preset = "github"
secrets = ["{SECRET}"]
auth = {{ kind = "url_token", secrets = ["token"] }}
[sources.zoom]
preset = "zoom"
secrets = ["another", "{SECRET}"]
[sources.graph]
preset = "msgraph"
secrets = ["{SECRET}"]
auth = {{ kind = "url_token", secrets = ["token"] }}
[sources.adyen]
preset = "adyen"
secrets = ["{SECRET}"]
[sources.salesforce]
preset = "salesforce"
auth = {{ kind = "url_token", secrets = ["token"] }}
[routes.all-of-okta]
source = "okta"
destination = "audit"
"""
OKTA = {"Authorization": SECRET, "Content-Type": "application/json"}
BEARER = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture
def config(database_url: str) -> Config:
    return parse_config(config_text(database_url) + SOURCES)


def okta(*uuids: str) -> str:
    events = [{"uuid": uuid, "published": "2026-01-01T00:00:00Z", "eventType": "user.session.start"} for uuid in uuids]
    return json.dumps({"data": {"events": events}})


async def test_events_of_one_body_are_stored_together_and_deduplicated_one_by_one(
    receiver: Receiver, engine: Engine
) -> None:
    first = await receiver.request("POST", "/webhooks/okta", headers=OKTA, body=okta("a", "b"))
    assert (first.status_code, first.content) == (200, b""), "Okta wants no body"
    await receiver.request("POST", "/webhooks/okta", headers=OKTA, body=okta("b", "c", "c"))
    stored = rows(engine, "SELECT event_id, body FROM inbox JOIN inbox_payload USING (seq) ORDER BY seq")
    assert [row["event_id"] for row in stored] == ["a", "b", "c"]
    assert [json.loads(row["body"]) for row in stored] == [json.loads(okta(uuid)) for uuid in "abc"]
    assert count(engine, "duplicate_request") == 2
    assert count(engine, "open_delivery") == 3


async def test_a_body_of_which_one_event_is_none_is_refused_whole(receiver: Receiver, engine: Engine) -> None:
    answer = await receiver.request("POST", "/webhooks/okta", headers=OKTA, body=okta("a", ""))
    assert (answer.status_code, answer.json["field"]) == (422, "uuid")
    assert count(engine, "inbox") == 0


async def test_the_answer_to_a_batch_lists_each_event_with_the_providers_status(receiver: Receiver) -> None:
    batch = [{"specversion": "1.0", "id": str(n), "source": "/s", "type": "t.created"} for n in (1, 2, 1)]
    headers = {**BEARER, "Content-Type": "application/cloudevents-batch+json"}
    answer = await receiver.request("POST", "/webhooks/events", headers=headers, body=json.dumps(batch))
    assert answer.status_code == 202
    assert [each["status"] for each in answer.json["events"]] == ["accepted", "accepted", "duplicate"]
    assert answer.json["events"][0]["seq"] == answer.json["events"][2]["seq"]
    empty = await receiver.request("POST", "/webhooks/events", headers=headers, body="[]")
    assert (empty.status_code, empty.json) == (202, {"events": []})


async def test_okta_gets_its_challenge_back_only_with_its_secret(receiver: Receiver) -> None:
    challenge = {"X-Okta-Verification-Challenge": "7a2b"}
    answer = await receiver.request("GET", "/webhooks/okta", headers={**challenge, "Authorization": SECRET})
    assert (answer.status_code, answer.json) == (200, {"verification": "7a2b"})
    assert answer.headers["content-type"] == "application/json"
    for path, headers in (("okta", challenge), ("nobody", challenge), ("nobody", {**challenge, **OKTA})):
        refused = await receiver.request("GET", f"/webhooks/{path}", headers=headers)
        assert refused.status_code == 401
    other = await receiver.request("GET", "/webhooks/events", headers={**challenge, **BEARER})
    assert other.status_code == 405


@pytest.mark.parametrize("source", ["okta", "events", "nobody"])
async def test_what_is_no_handshake_is_405_whatever_the_source(receiver: Receiver, source: str) -> None:
    for method in ("GET", "OPTIONS", "PUT", "DELETE"):
        answer = await receiver.request(method, f"/webhooks/{source}", headers=OKTA)
        assert answer.status_code == 405
        assert "POST" in answer.headers["allow"]


async def test_cloudevents_ask_by_options_whether_they_may_send(receiver: Receiver) -> None:
    asks = {"WebHook-Request-Origin": "eventemitter.example.com", "WebHook-Request-Rate": "120"}
    answer = await receiver.request("OPTIONS", "/webhooks/events", headers={**asks, **BEARER})
    assert answer.status_code == 200
    assert answer.headers["webhook-allowed-origin"] == "eventemitter.example.com"
    assert answer.headers["webhook-allowed-rate"] == "*"
    assert answer.headers["allow"] == "POST"
    by_query = await receiver.request("OPTIONS", f"/webhooks/events?access_token={SECRET}", headers=asks)
    assert by_query.status_code == 200
    strange = await receiver.request(
        "OPTIONS", "/webhooks/events", headers={**asks, **BEARER, "WebHook-Request-Origin": "a b"}
    )
    assert strange.status_code == 422
    assert "webhook-allowed-origin" not in strange.headers
    assert (await receiver.request("OPTIONS", "/webhooks/events", headers=asks)).status_code == 401


async def test_slack_gets_its_challenge_back_when_it_is_signed(receiver: Receiver, engine: Engine) -> None:
    body = b'{"token":"x","challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P","type":"url_verification"}'
    signed = sign(PRESETS["slack"].signatures[0], SECRET, Message(body=body), SystemClock().now())
    headers = {"Content-Type": "application/json", **signed}
    answer = await receiver.request("POST", "/webhooks/slack", headers=headers, body=body)
    assert answer.json == {"challenge": "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P"}
    assert count(engine, "inbox") == 0
    headers["X-Slack-Signature"] = "v0=" + "0" * 64
    assert (await receiver.request("POST", "/webhooks/slack", headers=headers, body=body)).status_code == 401


async def test_zoom_gets_the_hmac_of_its_token_with_the_secret_that_signed_it(
    receiver: Receiver, engine: Engine
) -> None:
    # The example of https://developers.zoom.us/docs/api/webhooks/, with another secret.
    body = b'{"payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"},"event_ts":1654503849680,"event":"endpoint.url_validation"}'
    signed = sign(PRESETS["zoom"].signatures[0], SECRET, Message(body=body), SystemClock().now())
    headers = {"Content-Type": "application/json", **signed}
    answer = await receiver.request("POST", "/webhooks/zoom", headers=headers, body=body)
    expected = hmac.digest(SECRET.encode(), b"qgg8vlvZRS6UYooatFL8Aw", "sha256").hex()
    assert (answer.status_code, answer.json) == (
        200,
        {"plainToken": "qgg8vlvZRS6UYooatFL8Aw", "encryptedToken": expected},
    )
    headers["x-zm-signature"] = "v0=" + "0" * 64
    assert (await receiver.request("POST", "/webhooks/zoom", headers=headers, body=body)).status_code == 401
    assert count(engine, "inbox") == 0


async def test_graph_validates_by_the_query_and_notifies_with_its_client_state(
    receiver: Receiver, engine: Engine
) -> None:
    asked = "/webhooks/graph/token?validationToken=Validation%3A%20Testing%20%3Cb%3E"
    answer = await receiver.request("POST", asked, headers={"Content-Type": "text/plain"}, body=b"")
    assert (answer.status_code, answer.text) == (200, "Validation: Testing <b>")
    assert answer.headers["content-type"].startswith("text/plain")
    for path in ("/webhooks/graph?validationToken=x", "/webhooks/nobody/token?validationToken=x"):
        assert (await receiver.request("POST", path, headers={}, body=b"")).status_code == 401
    notified = {"value": [{"changeType": "updated", "clientState": SECRET, "resource": f"Users/{n}"} for n in (1, 2)]}
    json_headers = {"Content-Type": "application/json"}
    stored = await receiver.request("POST", "/webhooks/graph/token", headers=json_headers, body=json.dumps(notified))
    assert (stored.status_code, stored.content) == (202, b"")
    assert count(engine, "inbox") == 2


async def test_salesforce_gets_its_ack_when_all_notifications_are_stored(receiver: Receiver, engine: Engine) -> None:
    raw = signed_sample("salesforce", "")
    headers = {"Content-Type": "text/xml; charset=utf-8"}
    for body, status in ((raw.body, 200), (raw.body, 200), (b"<a/>", 422), (b"<!DOCTYPE a><a/>", 400)):
        answer = await receiver.request("POST", "/webhooks/salesforce/token", headers=headers, body=body)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/xml" if status == 200 else "application/")
        assert (b"<Ack>true</Ack>" in answer.content) == (status == 200)
    assert (await receiver.request("POST", "/webhooks/salesforce", headers=headers, body=raw.body)).status_code == 401
    (stored,) = rows(engine, "SELECT body, content_type FROM inbox JOIN inbox_payload USING (seq)")
    assert (bytes(stored["body"]), stored["content_type"]) == (raw.body, "text/xml; charset=utf-8")


async def test_adyen_gets_the_text_that_its_older_webhooks_look_for(receiver: Receiver, engine: Engine) -> None:
    raw, headers = signed_sample("adyen", SECRET), {"Content-Type": "application/json"}
    answer = await receiver.request("POST", "/webhooks/adyen", headers=headers, body=raw.body)
    assert (answer.status_code, answer.content) == (200, b"[accepted]")
    other = raw.body.replace(b"1000", b"9000")
    assert (await receiver.request("POST", "/webhooks/adyen", headers=headers, body=other)).status_code == 401
    assert count(engine, "inbox") == 1


async def test_a_source_with_auth_and_secrets_wants_both(receiver: Receiver, engine: Engine) -> None:
    body = b'{"action":"opened","issue":{"id":1}}'
    signed = sign(PRESETS["github"].signatures[0], SECRET, Message(body=body), SystemClock().now())
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "issues",
        "X-GitHub-Delivery": "72d3162e",
        "X-GitHub-Hook-ID": "not kept",
    }
    for path, given, status in (
        ("hub/token", {**headers, **signed}, 200),
        ("hub/nekot", {**headers, **signed}, 401),
        ("hub", {**headers, **signed}, 401),
        ("hub/token", headers, 401),
    ):
        answer = await receiver.request("POST", f"/webhooks/{path}", headers=given, body=body)
        assert answer.status_code == status
    (stored,) = rows(engine, "SELECT headers FROM inbox_payload")
    kept = stored["headers"] if isinstance(stored["headers"], dict) else json.loads(stored["headers"])
    del kept["user-agent"]
    assert kept == {"content-type": "application/json", "x-github-event": "issues", "x-github-delivery": "72d3162e"}
