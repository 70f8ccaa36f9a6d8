"""No input answers 500, and none wears the receiver out: after all of it, a good webhook is still stored."""

from __future__ import annotations

import asyncio
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.receiver import Receiver, receiving
from tests.helpers.webhooks import HEADERS, PATH, TOKEN, a_config, body, moment, payload

MEANT = frozenset({200, 400, 401, 404, 405, 413, 415, 422})


HEADER_VALUES = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40)
HEADER_NAMES = st.sampled_from(
    [
        "content-type",
        "content-encoding",
        "x-webhook-token",
        "traceparent",
        "x-request-id",
        "user-agent",
        "authorization",
    ]
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from([*payload(), "type", "time", "other"])
MUTATED = st.builds(
    lambda changes, dropped: json.dumps(
        {name: value for name, value in {**payload(), **changes}.items() if name not in dropped}
    ).encode(),
    st.dictionaries(FIELDS, JSON_VALUES | st.just(moment(1)) | st.text(max_size=30), max_size=4),
    st.sets(FIELDS, max_size=2),
)


def cut_and_pasted(good: bytes) -> st.SearchStrategy[bytes]:
    """`good` with a stretch of it replaced by other bytes."""
    places = st.integers(0, len(good))
    return st.builds(
        lambda one, other, put: good[: min(one, other)] + put + good[max(one, other) :],
        places,
        places,
        st.binary(max_size=20),
    )


BODIES = st.binary(max_size=300) | MUTATED | cut_and_pasted(body())


def test_any_body_and_headers_get_an_answer_that_is_meant(database_url: str) -> None:
    async def ask(receiver: Receiver, sent: bytes, headers: dict[str, str]) -> None:
        answer = await receiver.request("POST", PATH, body=sent, headers=headers)
        assert answer.status_code in MEANT
        assert answer.status_code != 200 or answer.json["seq"] > 0

    with asyncio.Runner() as loop:
        opened = receiving(a_config(database_url))
        receiver = loop.run(opened.__aenter__())

        @given(BODIES, st.dictionaries(HEADER_NAMES, HEADER_VALUES, max_size=3), st.booleans())
        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        def ask_any(sent: bytes, headers: dict[str, str], trusted: bool) -> None:
            known = {**HEADERS, **headers, "x-webhook-token": TOKEN} if trusted else headers
            loop.run(ask(receiver, sent, known))

        ask_any()
        assert loop.run(receiver.post()).status_code == 200
        loop.run(opened.__aexit__(None, None, None))
