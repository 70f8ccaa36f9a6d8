"""The proof and the validation of Microsoft Graph's notifications."""

from __future__ import annotations

import contextlib
import json
from datetime import timedelta
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.sources import Source, UrlTokenAuth
from inbox.config.values import Secret
from inbox.errors import InvalidEvent
from inbox.events.event import RawRequest
from inbox.sources import PRESETS
from inbox.sources.credentials import Verifier, verifier_of
from inbox.sources.presets.msgraph import greet
from tests.helpers.webhooks import mistake
from tests.sources.presenting import NOW, a_request, read, why_refused

SOURCE = Source(name="g", preset="msgraph", auth=UrlTokenAuth(secrets=[Secret("token")]))


def verifier(*secrets: Secret) -> Verifier:
    auth = UrlTokenAuth(secrets=[Secret("token")])
    return verifier_of(Source(name="g", preset="msgraph", secrets=list(secrets), auth=auth), PRESETS["msgraph"], {})


def notified(*states: object, token: str | None = "token", query: str = "") -> RawRequest:
    body = json.dumps({"value": [{"changeType": "updated", "clientState": state} for state in states]}).encode()
    raw = a_request("g", body, {"Content-Type": "application/json"})
    return msgspec.structs.replace(raw, url_token=token, query=query)


def test_each_notification_has_to_have_a_client_state_that_is_valid_now() -> None:
    rotated = verifier(Secret("old", not_after=NOW + timedelta(seconds=1)), Secret("new"))
    for states in (("new",), ("old",), ("old", "new", "new"), ("new",) * 500):
        assert why_refused(rotated, notified(*states)) is None
    assert why_refused(rotated, notified("old", "new"), NOW + timedelta(seconds=1)) is not None
    for wrong in ((), ("",), ("other",), ("new", "other"), ("new", ""), (None,), (1,), ("new", None), ("New",)):
        assert why_refused(rotated, notified(*wrong)) is not None, wrong
    assert why_refused(rotated, notified("new", token="nekot")) is not None
    assert why_refused(rotated, notified("new", token=None)) is not None


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"value": {}}', b'{"value": [1]}', b"\xff", b"[" * 100_000, b'{"value": []}']
)
def test_a_body_without_notifications_proves_nothing(body: bytes) -> None:
    raw = msgspec.structs.replace(notified("s"), body=body)
    assert why_refused(verifier(Secret("s")), raw) == "no clientState is there"


def test_a_validation_needs_the_token_of_the_url_and_gets_its_own_back_whatever_else_it_holds() -> None:
    text = "Validation: Testing client application reachability; <b>é</b> + %"
    asks = notified("wrong", query=f"validationToken={quote(text)}")
    assert why_refused(verifier(Secret("s")), asks) is None
    assert why_refused(verifier(Secret("s")), msgspec.structs.replace(asks, url_token="nekot")) is not None
    answer = PRESETS["msgraph"].handshake_response(asks, lambda _: b"")
    assert answer is not None
    assert (answer.status, answer.body.decode(), answer.content_type) == (200, text, "text/plain; charset=utf-8")


@given(
    st.text(max_size=40)
    | st.sampled_from(["validationToken=", "validationToken=a&validationToken=b", "a=validationToken=1"])
)
def test_a_request_that_needs_no_client_state_is_never_read_as_notifications(query: str) -> None:
    raw = notified("wrong", query=query)
    if why_refused(verifier(Secret("s")), raw) is None:
        with contextlib.suppress(InvalidEvent):  # such as a token that is there twice
            assert greet(raw, lambda _: b"") is not None


def test_a_second_change_is_no_duplicate_of_the_first_though_its_notification_has_the_same_bytes() -> None:
    """Without an id it says only that a user has changed: whoever has read the user between the two would miss the second."""
    first = notified("s")
    later = msgspec.structs.replace(first, received_at=NOW + timedelta(milliseconds=1))
    keys = [each.dedup_key for raw in (first, first, later) for each in read(raw, SOURCE)]
    assert keys[0] == keys[1] != keys[2], "the same request, as it is readmitted, and another"
    assert len({each.dedup_key for each in read(notified("s", "s", "t"), SOURCE)}) == 2
    with_id = [json.dumps({"value": [{"changeType": "updated", "id": each}]}).encode() for each in "aab"]
    keys = [
        read(msgspec.structs.replace(raw, body=body), SOURCE)[0].dedup_key
        for raw, body in zip((first, later, first), with_id, strict=True)
    ]
    assert keys[0] == keys[1] != keys[2]


def test_a_source_without_a_token_in_its_url_is_a_mistake() -> None:
    assert "auth: is missing" in mistake('[sources.g]\npreset = "msgraph"\nsecrets = ["env:S"]\n')
