"""No input answers 500, and none wears the receiver out: after all of it, a good webhook is still stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from falcon.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.receiver import Receiver, exchange, raw_post, receiving, served, status_of
from tests.helpers.webhooks import HEADERS, PATH, TOKEN, a_config, body, moment, payload

MEANT = frozenset({200, 400, 401, 404, 405, 413, 415, 422})
ONCE_PER_TEST = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

Runner = asyncio.Runner


@pytest.fixture
def loop() -> Iterator[Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def receiver(database_url: str, loop: Runner) -> Iterator[Receiver]:
    """As in the other flow tests, but for tests that ask many times and are not coroutines."""
    opened = receiving(a_config(database_url))
    made = loop.run(opened.__aenter__())
    yield made
    loop.run(opened.__aexit__(None, None, None))


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


@given(sent=BODIES, headers=st.dictionaries(HEADER_NAMES, HEADER_VALUES, max_size=3), trusted=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=ONCE_PER_TEST)
def test_any_body_and_headers_get_an_answer_that_is_meant(
    receiver: Receiver, loop: Runner, sent: bytes, headers: dict[str, str], trusted: bool
) -> None:
    if trusted:
        headers = {**headers, "x-webhook-token": TOKEN}
    asked = receiver.request("POST", PATH, body=sent, headers={**HEADERS, **headers} if trusted else headers)
    answer: Result = loop.run(asked)

    assert answer.status_code in MEANT
    if answer.status_code == 200:
        assert answer.json["seq"] > 0


@given(sent=MUTATED)
@settings(max_examples=100, deadline=None, suppress_health_check=ONCE_PER_TEST)
def test_a_refusal_of_a_readable_body_names_a_field_of_the_payload(
    receiver: Receiver, loop: Runner, sent: bytes
) -> None:
    answer = loop.run(receiver.post(sent))

    assert answer.status_code in {200, 400, 422}
    if answer.status_code == 422:
        assert answer.json["field"] in {*payload(), "type", "time"}


@given(path=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
@settings(max_examples=150, deadline=None, suppress_health_check=ONCE_PER_TEST)
def test_any_source_name_is_unknown_and_no_more(receiver: Receiver, loop: Runner, path: str) -> None:
    name = path.replace("?", "").replace("#", "") or "x"
    answer = loop.run(receiver.post(path=f"/webhooks/{name}"))

    assert answer.status_code in {200, 401, 404}


def test_any_bytes_on_the_wire_are_answered_or_hung_up_on(database_url: str) -> None:
    good = raw_post(body())

    with served(database_url) as port:

        @given(sent=cut_and_pasted(good) | st.binary(max_size=100))
        @settings(max_examples=100, deadline=None)
        def ask(sent: bytes) -> None:
            answer = exchange(port, sent, half_close=True)
            assert status_of(answer) in MEANT | {0}
            assert b"500 Internal" not in answer

        ask()
        assert status_of(exchange(port, good)) == 200
