"""Handshakes, bodies of several events and answers as providers want them, through the real receiver on both databases."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from falcon.testing import Result
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db.dialect import as_json
from inbox.errors import ConfigError
from inbox.loader.load import parse_config
from inbox.sources import PRESETS
from inbox.sources.base import Sample
from inbox.sources.signing import Message, sign
from relay.cli import provider
from tests.helpers.receiver import Receiver, serve_receiver
from tests.helpers.scripted import answer, serving
from tests.helpers.tables import count, rows
from tests.helpers.webhooks import config_text
from tests.sources.presenting import SIGNING, SIGNING_IN_BODY, WITH_SAMPLE, make_secret

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
[routes.all-of-okta]
source = "okta"
destination = "audit"
"""
JSON = {"Content-Type": "application/json"}
OKTA = {"Authorization": SECRET, **JSON}
BEARER = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture
def config(database_url: str) -> Config:
    return parse_config(config_text(database_url) + SOURCES)


async def ask(
    receiver: Receiver, path: str, headers: Mapping[str, str], body: bytes | str = b"", method: str = "POST"
) -> Result:
    return await receiver.request(method, f"/webhooks/{path}", headers=dict(headers), body=body)


def sign_headers(preset: str, body: bytes) -> dict[str, str]:
    return {**JSON, **sign(PRESETS[preset].signatures[0], SECRET, Message(body=body), SystemClock().now())}


def okta(*uuids: str) -> str:
    events = [{"uuid": uuid, "published": "2026-01-01T00:00:00Z", "eventType": "user.session.start"} for uuid in uuids]
    return json.dumps({"data": {"events": events}})


async def test_events_of_a_body_are_stored_together_and_deduplicated_apart(receiver: Receiver, engine: Engine) -> None:
    first = await ask(receiver, "okta", OKTA, okta("a", "b"))
    assert (first.status_code, first.content) == (200, b""), "Okta wants no body"
    await ask(receiver, "okta", OKTA, okta("b", "c", "c"))
    refused = await ask(receiver, "okta", OKTA, okta("d", ""))
    assert (refused.status_code, refused.json["field"]) == (422, "uuid"), "a body of which one event is none"
    stored = rows(engine, "SELECT event_id, body FROM inbox JOIN inbox_payload USING (seq) ORDER BY seq")
    assert [row["event_id"] for row in stored] == ["a", "b", "c"]
    assert [json.loads(row["body"]) for row in stored] == [json.loads(okta(uuid)) for uuid in "abc"]
    assert (count(engine, "duplicate_request"), count(engine, "open_delivery")) == (2, 3)


async def test_the_answer_to_a_batch_lists_each_event_with_the_providers_status(receiver: Receiver) -> None:
    batch = [{"specversion": "1.0", "id": str(n), "source": "/s", "type": "t.created"} for n in (1, 2, 1)]
    headers = {**BEARER, "Content-Type": "application/cloudevents-batch+json"}
    answer = await ask(receiver, "events", headers, json.dumps(batch))
    assert answer.status_code == 202
    assert [each["status"] for each in answer.json["events"]] == ["accepted", "accepted", "duplicate"]
    assert answer.json["events"][0]["seq"] == answer.json["events"][2]["seq"]
    empty = await ask(receiver, "events", headers, "[]")
    assert (empty.status_code, empty.json) == (202, {"events": []})


async def test_okta_gets_its_challenge_back_only_with_its_secret(receiver: Receiver) -> None:
    challenge = {"X-Okta-Verification-Challenge": "7a2b"}
    answer = await ask(receiver, "okta", {**challenge, "Authorization": SECRET}, method="GET")
    assert (answer.status_code, answer.json) == (200, {"verification": "7a2b"})
    assert answer.headers["content-type"] == "application/json"
    refused = (("okta", challenge), ("nobody", challenge), ("nobody", {**challenge, **OKTA}))
    assert {(await ask(receiver, path, headers, method="GET")).status_code for path, headers in refused} == {401}
    assert (await ask(receiver, "events", {**challenge, **BEARER}, method="GET")).status_code == 405


@pytest.mark.parametrize("source", ["okta", "events", "nobody"])
async def test_a_method_that_is_no_handshake_is_405_for_any_source(receiver: Receiver, source: str) -> None:
    for method in ("GET", "OPTIONS", "PUT", "DELETE"):
        answer = await ask(receiver, source, OKTA, method=method)
        assert (answer.status_code, "POST" in answer.headers["allow"]) == (405, True)


async def test_cloudevents_ask_by_options_whether_they_may_send(receiver: Receiver) -> None:
    asks = {"WebHook-Request-Origin": "eventemitter.example.com", "WebHook-Request-Rate": "120"}
    told = {"webhook-allowed-origin": "eventemitter.example.com", "webhook-allowed-rate": "*", "allow": "POST"}
    for path, headers, status in (
        ("events", {**asks, **BEARER}, 200),
        (f"events?access_token={SECRET}", asks, 200),
        ("events", {**asks, **BEARER, "WebHook-Request-Origin": "a b"}, 422),
        ("events", asks, 401),
    ):
        answer = await ask(receiver, path, headers, method="OPTIONS")
        assert answer.status_code == status
        assert (answer.headers.get("cache-control") == "private") == ("?" in path), "RFC 6750 §2.3"
        assert (told.items() <= dict(answer.headers).items()) == (status == 200)
        assert ("webhook-allowed-origin" in answer.headers) == (status == 200)


# The second is the example of https://developers.zoom.us/docs/api/webhooks/, with another secret.
CHALLENGES = [
    ("slack", "X-Slack-Signature", b'{"token":"x","challenge":"3eZbrw1aBm2","type":"url_verification"}', "3eZbrw1aBm2"),
    (
        "zoom",
        "x-zm-signature",
        b'{"payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"},"event_ts":1654503849680,"event":"endpoint.url_validation"}',
        hmac.digest(SECRET.encode(), b"qgg8vlvZRS6UYooatFL8Aw", "sha256").hex(),
    ),
]


@pytest.mark.parametrize(("name", "signature", "body", "answered"), CHALLENGES, ids=["slack", "zoom"])
async def test_a_challenge_is_answered_when_it_is_signed(  # noqa: PLR0917  # a table's columns
    receiver: Receiver, engine: Engine, name: str, signature: str, body: bytes, answered: str
) -> None:
    """Zoom gets the HMAC of its token with the secret that signed it, which is the second of its source."""
    headers = sign_headers(name, body)
    answer = await ask(receiver, name, headers, body)
    assert (answer.status_code, answered in answer.json.values()) == (200, True)
    refused = await ask(receiver, name, {**headers, signature: "v0=" + "0" * 64}, body)
    assert (refused.status_code, count(engine, "inbox")) == (401, 0)


async def test_a_source_with_auth_and_secrets_wants_both(receiver: Receiver, engine: Engine) -> None:
    body = b'{"action":"opened","issue":{"id":1}}'
    named = {"X-GitHub-Event": "issues", "X-GitHub-Delivery": "72d3162e", "X-GitHub-Hook-ID": "not kept", **JSON}
    both = {**named, **sign_headers("github", body)}
    for path, given, status in (
        ("hub/token", both, 200),
        ("hub/nekot", both, 401),
        ("hub", both, 401),
        ("hub/token", named, 401),
    ):
        assert (await ask(receiver, path, given, body)).status_code == status
    (stored,) = rows(engine, "SELECT headers FROM inbox_payload")
    kept = as_json(stored["headers"])
    del kept["user-agent"]
    assert kept == {"content-type": "application/json", "x-github-event": "issues", "x-github-delivery": "72d3162e"}


# --- `inbox send` signs as the provider would: its request is accepted, for every preset with a shared secret


CUSTOM = """
[sources.custom]
preset = "custom"
secrets = ["s3cret"]
public_url = "https://hooks.example.com/webhooks/custom"
event = { type = "body.type", id = "body.id" }
signature = { header = "X-Sig", timestamp_header = "X-Time", timestamp_unit = "ms", content = "{url}{timestamp}{body}" }
"""


def source_table(name: str) -> str:
    if name in SIGNING_IN_BODY:
        proof = f'secrets = ["{make_secret(PRESETS[name])}"]'
    elif name in SIGNING:
        proof = f'secrets = ["{make_secret(PRESETS[name])}"]\npublic_url = "https://hooks.example.com/webhooks/{name}"'
    else:
        unsigned = "unsigned = true\n" if PRESETS[name].always_signs else ""  # only its provider can sign
        proof = f'{unsigned}auth = {{ kind = "none" }}'
    return f'[sources.{name}]\npreset = "{name}"\n{proof}\n'


@pytest.fixture(scope="module")
def signing_config(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("send") / "inbox.db"
    path.write_bytes(sqlite_template.read_bytes())
    tables = [f'[database]\nurl = "sqlite:///{path}"', *map(source_table, WITH_SAMPLE), CUSTOM]
    return parse_config("\n".join(tables))


@pytest.fixture(scope="module")
def signing_url(signing_config: Config) -> Iterator[str]:
    with serve_receiver(signing_config.database.url, signing_config) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("name", WITH_SAMPLE)
def test_a_sample_is_accepted_and_then_a_duplicate(signing_config: Config, signing_url: str, name: str) -> None:
    at = SystemClock().now()
    source = signing_config.sources[name]
    sample = provider.make_sample(source, ("issue", "1"), "issue.updated", at)
    first, second = (provider.send(source, signing_url, sample, at) for _ in range(2))
    assert first.status == second.status == PRESETS[name].status
    if (own := PRESETS[name].acknowledgement) is not None:
        assert first.data == second.data == own[1]
    elif not PRESETS[name].answers_empty:
        assert (b'"accepted"' in first.data, b'"duplicate"' in second.data) == (True, True)


def test_a_custom_source_is_sent_a_body_of_ones_own(signing_config: Config, signing_url: str) -> None:
    at, custom = SystemClock().now(), signing_config.sources["custom"]
    sample = Sample(b'{"type": "t", "id": "1"}')
    assert provider.send(custom, signing_url, sample, at).status == 200
    assert provider.send(custom, signing_url, sample, at - timedelta(minutes=6)).status == 401
    with pytest.raises(ConfigError, match="give a body of your own with --body"):
        provider.make_sample(custom, ("a", "1"), "t", at)


def test_no_redirect_and_no_proxy_gets_the_secret(signing_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(answer(200)) as elsewhere, serving(answer(302, Location=elsewhere.url)) as receiver:
        monkeypatch.setenv("http_proxy", elsewhere.url)
        custom, sample = signing_config.sources["custom"], Sample(b'{"type": "t", "id": "1"}')
        sent = provider.send(custom, receiver.url, sample, SystemClock().now())
        assert sent.status == 302
        assert elsewhere.seen == []
