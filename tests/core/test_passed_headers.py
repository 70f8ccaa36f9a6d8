"""`pass_headers` of a forward destination: the names that it may have, and what the receiver stores for it."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from inbox.config.routing import list_passed_headers
from inbox.config.sources import EventFields, NoAuth, Signature, Source, UrlTokenAuth
from inbox.config.values import Secret
from inbox.events.event import RawRequest
from inbox.loader.load import parse_config
from inbox.sources import preset_of
from inbox.sources.normalize import kept_headers
from tests.helpers.webhooks import mistake

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FILE = """\
[sources.github]
preset = "github"
secrets = ["env:GITHUB_SECRET"]
[sources.acme]
preset = "trivore"
auth = { kind = "header", name = "X-Acme-Key", secrets = ["env:ACME_KEY"] }
[destinations.ours]
kind = "forward"
url = "https://ours.example.com/hook"
pass_headers = [NAMES]
[routes.github-to-ours]
source = "github"
destination = "ours"
[routes.acme-to-ours]
source = "acme"
destination = "ours"
"""
WHERE = "inbox.toml:10: [destinations.ours] pass_headers[0]: "
"""Begin of every mistake."""
CONNECTION = "belongs to the connection, and is never passed on; remove it"
SECRET = "is named as a header with a secret, and is never stored; remove it"
ADDED = "is a header that the relay adds itself; remove it"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, f"{name!r} {CONNECTION}") for name in ("Host", "connection", "TE", "Content-Length", "Via")),
        *(
            (name, f"{name!r} {CONNECTION}")
            for name in ("X-Forwarded-Uri", "X-Original-URL", "X-Rewrite-Url", "Referer")
        ),
        *((name, f"{name!r} {SECRET}") for name in ("Authorization", "Cookie", "set-cookie", "X-Gitlab-Token")),
        *((name, f"{name!r} {SECRET}") for name in ("X-API-Key", "X-Hub-Signature-256", "X-Auth-Request-User")),
        *((name, f"{name!r} {ADDED}") for name in ("Webhook-Id", "webhook-other", "Inbox-Seq", "User-Agent", "Accept")),
        ("X Y", "'X Y' is not a header name; write one such as X-GitHub-Event"),
        ("", "'' is not a header name; write one such as X-GitHub-Event"),
        ("X-A: b\\r\\nX-C", "'X-A: b\\r\\nX-C' is not a header name; write one such as X-GitHub-Event"),
    ],
)
def test_a_header_that_can_not_be_passed_on_is_a_mistake_at_the_start(name: str, why: str) -> None:
    assert mistake(FILE.replace("NAMES", f'"{name}"')) == f"{WHERE}{why}"


def test_a_signature_is_not_stored_even_if_it_is_to_be_passed_on() -> None:
    source = Source(
        name="acme", preset="custom", signature=Signature(header="X-Proof"), event=EventFields(type="body.type")
    )
    assert preset_of(source, frozenset({"x-proof", "x-kind"})).kept_headers == {"x-kind"}


def test_the_receiver_stores_what_a_destination_of_the_source_passes_on_and_of_no_other_source() -> None:
    config = parse_config(FILE.replace("NAMES", '"X-GitHub-Hook-ID"').partition("[routes.acme-to-ours]")[0])
    routes, destinations = config.routes.values(), config.destinations
    assert list_passed_headers("github", routes, destinations) == {"x-github-hook-id"}
    assert list_passed_headers("acme", routes, destinations) == set()
    asks_for_a_secret = {"ours": msgspec.structs.replace(destinations["ours"], pass_headers=["Cookie", "X-Kind"])}
    assert list_passed_headers("github", routes, asks_for_a_secret) == {"x-kind"}, (
        "a file with a mistake may be read as well"
    )

    source = config.sources["github"]
    raw = RawRequest("github", {"x-github-hook-id": "7", "x-other": "8"}, b"{}", NOW)
    assert kept_headers(source, preset_of(source), raw) == {}
    assert kept_headers(source, preset_of(source, frozenset({"x-github-hook-id"})), raw) == {"x-github-hook-id": "7"}


def test_a_passed_header_that_has_the_token_of_the_url_is_not_stored() -> None:
    source = Source(name="chat", preset="trivore", auth=UrlTokenAuth(secrets=[Secret("a-token")]))
    preset = preset_of(source, frozenset({"x-uri", "x-kind"}))
    headers = {"x-uri": "/webhooks/chat/a-token", "x-kind": "message", "user-agent": "a-token/1"}
    raw = RawRequest("chat", headers, b"{}", NOW, url_token="a-token")
    assert kept_headers(source, preset, raw) == {"x-kind": "message", "user-agent": "a-token/1"}
    assert preset_of(Source(name="s", preset="trivore", auth=NoAuth())).kept_headers == frozenset()
