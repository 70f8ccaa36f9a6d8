"""The contract of every registered preset. Registering a preset is enough to test it here."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.blocks.presets import OWN_PROOFS
from inbox.config.model import Config
from inbox.config.sources import EventFields, Source
from inbox.config.values import Secret
from inbox.errors import RequestError
from inbox.events.event import Event, RawRequest
from inbox.sources import PRESETS
from inbox.sources.fields import FORM, form_fields
from inbox.sources.signing import Message, sign
from relay.destinations.preview import Variant
from tests.docs.pages import PAGES
from tests.helpers.delivering import delivery_of
from tests.sources.presenting import (
    ALL_VECTORS,
    NOW,
    SIGNING,
    SIGNING_IN_BODY,
    VECTORS,
    WITH_SAMPLE,
    Vector,
    assert_storable,
    extreme_bodies,
    extreme_headers,
    find_refusal,
    make_request,
    make_secret,
    make_source,
    make_verifier,
    read,
    request_from_vector,
    sign_sample,
)

TIMED = [
    name
    for name in SIGNING
    if "{timestamp}" in PRESETS[name].signatures[0].content or PRESETS[name].signed_at is not None
]
SECOND = timedelta(seconds=1)
VERIFIERS = {name: make_verifier(name, Secret(make_secret(PRESETS[name]))) for name in [*SIGNING, *SIGNING_IN_BODY]}
vectors = pytest.mark.parametrize(("name", "vector"), ALL_VECTORS, ids=[name for name, _ in ALL_VECTORS])


# --- the registry


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_a_file_of_its_name_which_says_where_its_facts_come_from(name: str) -> None:
    module = importlib.import_module(f"inbox.sources.presets.{name.replace('-', '_')}")
    assert name in {"custom", "slack-message"} or "https://" in (module.__doc__ or "")


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.signatures])
def test_a_preset_that_signs_has_a_request_that_its_provider_signed(name: str) -> None:
    assert VECTORS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_proves_the_body_or_says_that_it_does_not(name: str) -> None:
    """The body's bits are flipped below; tokens and certificates have tests of their own."""
    preset = PRESETS[name]
    if preset.signatures:
        assert all({"{body}", "{sorted_params}"} & {*re.findall(r"{[a-z_]+}", s.content)} for s in preset.signatures)
    elif preset.signer is not None:
        assert re.search(r"\b(not|neither)\b", OWN_PROOFS[name][2]), "it names what is not signed"
    elif preset.prover is not None:
        assert OWN_PROOFS[name][2] == "nothing" or "the body" in OWN_PROOFS[name][2]


@pytest.mark.parametrize("name", PRESETS)
def test_no_header_with_a_signature_or_a_secret_is_kept(name: str) -> None:
    preset = PRESETS[name]
    secret = {signature.header.lower() for signature in preset.signatures}
    assert preset.kept_headers.isdisjoint(secret | {"authorization", "cookie", "x-gitlab-token"})


@pytest.mark.parametrize("name", PRESETS)
def test_the_reference_says_what_a_preset_reads_and_how_its_sender_sends(name: str) -> None:
    page = PAGES["docs/reference/sources.md"]
    for table in ("| preset | provider | event id |", "| preset | the provider sends |"):
        assert f"\n| `{name}` | " in page.partition(table)[2].partition("\n\n")[0]


# --- signatures


@vectors
def test_a_request_that_its_provider_signed_is_let_in(name: str, vector: Vector) -> None:
    assert find_refusal(make_verifier(name, Secret(vector.secret)), request_from_vector(name, vector)) is None


@vectors
def test_any_other_bit_in_the_body_is_refused(name: str, vector: Vector) -> None:
    verifier = make_verifier(name, Secret(vector.secret))
    for place in range(len(vector.body)):
        body = bytearray(vector.body)
        body[place] ^= 1 << place % 8
        why = find_refusal(verifier, make_request(name, bytes(body), vector.headers, vector.at))
        if name != "twilio":
            assert "no secret that is valid now" in (why or "")
        elif not _is_the_same_form(bytes(body), vector.body):
            assert why is not None


def _is_the_same_form(one: bytes, other: bytes) -> bool:
    """Compare forms as Twilio signs them: decoded, each value of a name once, so `a=3&a=3` equals `a=3`."""
    try:
        return set(form_fields(one)) == set(form_fields(other))
    except RequestError:
        return False


@vectors
def test_another_length_of_the_body_is_refused(name: str, vector: Vector) -> None:
    verifier = make_verifier(name, Secret(vector.secret))
    for other in (b"", vector.body[:-1], vector.body + b" "):
        assert find_refusal(verifier, make_request(name, other, vector.headers, vector.at)) is not None


@vectors
def test_another_secret_is_refused(name: str, vector: Vector) -> None:
    other = make_secret(PRESETS[name])
    assert "no secret that is valid now" in (
        find_refusal(make_verifier(name, Secret(other)), request_from_vector(name, vector)) or ""
    )


MANGLED: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "doubled": lambda value: f"{value},{value}",  # as a server hands on two headers
    "truncated": lambda value: value[:-1],
    "without its beginning": lambda value: value[1:],
    "with something behind": lambda value: f"{value}0",
    "non-ASCII": lambda value: f"{value[:-1]}é",
    "wide digits": lambda value: value.translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789"}),
    "garbage": lambda _: "\x00\xff{}%n" * 9,
    "huge": lambda value: "0" * 100_000 + value,
    "list of nothing": lambda _: "," * 5_000,
}


def list_signature_headers(name: str, vector: Vector) -> Iterator[str]:
    """Yield the headers of the signature."""
    signature = next(each for each in PRESETS[name].signatures if each.header.lower() in vector.lower)
    yield from filter(None, (signature.header, signature.timestamp_header, signature.id_header))


@pytest.mark.parametrize("name", VECTORS)
def test_a_header_that_is_not_as_the_provider_writes_it_is_refused(name: str) -> None:
    vector = VECTORS[name][0]
    verifier = make_verifier(name, Secret(vector.secret))
    for header in list_signature_headers(name, vector):
        for how, mangle in MANGLED.items():
            if name == "stripe" and how in {"truncated", "with something behind", "non-ASCII"}:
                continue  # the last part has a scheme that is ignored
            mangled = {**vector.lower, header.lower(): mangle(vector.lower[header.lower()])}
            assert mangled != vector.lower, (header, how)
            assert find_refusal(verifier, make_request(name, vector.body, mangled, vector.at)) is not None, (
                header,
                how,
            )


@vectors
def test_a_header_that_is_missing_is_named(name: str, vector: Vector) -> None:
    verifier = make_verifier(name, Secret(vector.secret))
    for place, header in enumerate(list_signature_headers(name, vector)):
        left = {key: value for key, value in vector.lower.items() if key != header.lower()}
        # The error names the first of several signature headers.
        missed = header if place else PRESETS[name].signatures[0].header
        assert find_refusal(verifier, make_request(name, vector.body, left, vector.at)) == f"{missed} is missing"


@pytest.mark.parametrize("name", TIMED)
def test_a_request_is_let_in_within_its_tolerance_only(name: str) -> None:
    secret = make_secret(PRESETS[name])
    verifier, raw = make_verifier(name, Secret(secret)), sign_sample(name, secret)
    tolerance = timedelta(seconds=PRESETS[name].tolerance)
    for moment in (NOW - tolerance, NOW, NOW + tolerance):
        assert find_refusal(verifier, msgspec.structs.replace(raw, received_at=moment)) is None
    for moment, told in ((NOW - tolerance - SECOND, "after"), (NOW + tolerance + SECOND, "before")):
        why = find_refusal(verifier, msgspec.structs.replace(raw, received_at=moment))
        assert why is not None
        assert f"{tolerance.total_seconds() + 1:.0f} s {told} it arrived" in why


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"webhookTimestamp": 1}, "s before it arrived"),
        ({"webhookTimestamp": -1}, "can't be read"),
        ({"webhookTimestamp": 10**30}, "can't be read"),
        ({"data": {"webhookTimestamp": 1}}, None),
        ([1], None),
    ],
    ids=str,
)
def test_a_signed_body_without_a_time_of_sending_is_let_in(body: object, why: str | None) -> None:
    written, secret = json.dumps(body).encode(), make_secret(PRESETS["linear"])
    headers = sign(PRESETS["linear"].signatures[0], secret, Message(body=written), NOW)
    found = find_refusal(make_verifier("linear", Secret(secret)), make_request("linear", written, headers))
    assert (found is None) if why is None else (why in (found or ""))


@pytest.mark.parametrize("name", [*SIGNING, *SIGNING_IN_BODY])
def test_while_a_secret_is_rolled_both_are_let_in_and_then_the_new_one_alone(name: str) -> None:
    old, new, later = (make_secret(PRESETS[name], number) for number in range(3))
    verifier = make_verifier(
        name, Secret(old, not_after=NOW + SECOND), Secret(new), Secret(later, not_before=NOW + 2 * SECOND)
    )
    let_in = {
        moment: [
            number
            for number, secret in enumerate((old, new, later))
            if find_refusal(verifier, sign_sample(name, secret, moment)) is None
        ]
        for moment in (NOW, NOW + SECOND, NOW + 2 * SECOND)
    }
    assert let_in == {NOW: [0, 1], NOW + SECOND: [1], NOW + 2 * SECOND: [1, 2]}


@pytest.mark.parametrize("name", [name for name in SIGNING if PRESETS[name].signatures[0].separator])
def test_one_of_a_few_signatures_is_enough_and_of_many_only_the_first_are_looked_at(name: str) -> None:
    signature, secret = PRESETS[name].signatures[0], make_secret(PRESETS[name])
    verifier, raw = make_verifier(name, Secret(secret)), sign_sample(name, secret)
    header = signature.header.lower()
    *before, good = raw.headers[header].split(signature.separator)
    bad = f"{good[:-5]}{'AAAA=' if good.endswith('=') else '00000'}"
    for number, let_in in ((0, True), (4, True), (5, False), (19, False)):
        value = signature.separator.join([*before, *[bad] * number, good])
        asked = msgspec.structs.replace(raw, headers={**raw.headers, header: value})
        assert (find_refusal(verifier, asked) is None) == let_in


@given(
    name=st.sampled_from(SIGNING),
    texts=st.lists(st.text(max_size=80) | st.binary(max_size=80).map(lambda b: b.decode("latin-1")), min_size=3),
)
def test_any_other_headers_are_refused(name: str, texts: list[str]) -> None:
    signature = PRESETS[name].signatures[0]
    names = (signature.header, signature.timestamp_header or "x", signature.id_header or "y")
    prefixed = (signature.prefix + texts[0], *texts[1:3])
    assert (
        find_refusal(VERIFIERS[name], make_request(name, b"{}", dict(zip(names, prefixed, strict=False)))) is not None
    )


# --- events


@pytest.mark.parametrize("name", WITH_SAMPLE)
def test_a_sample_is_let_in_and_read_and_the_same_again_is_the_same_event(name: str) -> None:
    secret = make_secret(PRESETS[name])
    raw = sign_sample(name, secret)
    if name in {*SIGNING, *SIGNING_IN_BODY}:
        assert find_refusal(make_verifier(name, Secret(secret)), raw) is None
        later = sign_sample(name, secret, NOW)  # signed anew
        again = msgspec.structs.replace(later, received_at=NOW + timedelta(seconds=10))
        assert find_refusal(make_verifier(name, Secret(secret)), again) is None
    else:
        again = msgspec.structs.replace(raw, received_at=NOW + timedelta(seconds=10))
    ((first,), (second,)) = (read(each) for each in (raw, again))
    assert first.dedup_key == second.dedup_key
    if name != "slack-message":
        assert first.entity_id == "42"
    assert first.body == raw.body


@pytest.mark.parametrize("name", [name for name in WITH_SAMPLE if PRESETS[name].has_own_time])
def test_a_preset_with_times_of_its_own_reads_them_in_the_body(name: str) -> None:
    """Otherwise an attacker could resend a request with a newer time and pass `max_age`."""
    raw = sign_sample(name, make_secret(PRESETS[name]))
    later = msgspec.structs.replace(raw, received_at=NOW + timedelta(days=30), headers={
        key: "2026-01-31T00:00:00Z" if "time" in key or key.endswith("-at") else value for key, value in raw.headers.items()
    })  # fmt: skip
    assert read(later)[0].occurred_at == read(raw)[0].occurred_at == NOW


@pytest.mark.parametrize("name", [name for name in WITH_SAMPLE if name != "slack-message"])
def test_another_event_of_the_same_entity_has_another_key(name: str) -> None:
    keys = {
        read(sign_sample(name, make_secret(PRESETS[name]), moment, event_type))[0].dedup_key
        for moment in (NOW, NOW + timedelta(seconds=1))
        for event_type in ("issue.created", "issue.updated")
    }
    assert len(keys) >= 2


@pytest.mark.parametrize("name", WITH_SAMPLE)
def test_a_source_that_names_the_fields_of_its_keys_takes_another_time_for_no_other_event(name: str) -> None:
    source = msgspec.structs.replace(make_source(name), dedup=["same"])
    keys = set()
    for moment in (NOW, NOW + SECOND):
        raw = sign_sample(name, make_secret(PRESETS[name]), moment)
        raw = msgspec.structs.replace(raw, body=_with_a_field(raw))
        keys.add(read(raw, source)[0].dedup_key)
    assert len(keys) == 1


def _with_a_field(raw: RawRequest) -> bytes:
    if raw.content_type == FORM:
        return raw.body + b"&same=1"
    if raw.content_type == "text/xml":
        return raw.body.replace(b"<sf:Id>", b"<sf:same>1</sf:same><sf:Id>")
    return json.dumps(json.loads(raw.body, object_hook=lambda each: {**each, "same": "1"})).encode()


@pytest.mark.parametrize("name", PRESETS)
def test_any_request_is_refused_or_events_that_can_be_stored(name: str) -> None:
    """The receiver answers 413 first to a large body; `inbox readmit` may meet one that was stored under a larger `max_body`."""
    media = {"content-type": min(PRESETS[name].media_types, default="application/json")}
    sample = sign_sample(name, make_secret(PRESETS[name])) if name in WITH_SAMPLE else make_request(name, b"{}", media)
    size = min(PRESETS[name].max_body, 4 * 1024 * 1024) + 1
    bodies = [*extreme_bodies(sample), *(sample.body + filling * size for filling in (b" ", b"x", b"[", b"\xff"))]
    keyed = msgspec.structs.replace(make_source(name), dedup=["id", "timestamp"])
    requests = [msgspec.structs.replace(sample, body=body) for body in bodies]
    number = sum(read_or_refuse(make_source(name), each) for each in requests)
    assert number or name not in WITH_SAMPLE, "some members only tell more of an event"
    for each in requests[::5]:
        read_or_refuse(keyed, each)
    for headers in extreme_headers(sample):
        read_or_refuse(make_source(name), msgspec.structs.replace(sample, headers=headers))


def read_or_refuse(source: Source, raw: RawRequest) -> int:
    """Return the number of events, 0 for a refused request; each stored event must be read to the same event again."""
    if source.name in VERIFIERS:
        find_refusal(VERIFIERS[source.name], raw)
    try:
        PRESETS[source.name].handshake_response(raw, lambda _: b"")
        events = read(raw, source)
    except RequestError as error:
        error.detail.encode()
        return 0
    assert_storable(events)
    for event in events:
        assert_read_again(event, source)
    return len(events)


@pytest.mark.parametrize("value", ["caf\xe9", "\u20ac", "\x1f"])
@pytest.mark.parametrize(
    ("source", "header"),
    [
        (make_source("slack-message"), "webhook-id"),
        (make_source("google"), "x-goog-resource-id"),
        (msgspec.structs.replace(make_source("custom"), event=EventFields(type="headers.event")), "event"),
    ],
    ids=lambda each: each.name if isinstance(each, Source) else each,
)
def test_a_header_beyond_ascii_is_read_as_it_is_stored(source: Source, header: str, value: str) -> None:
    given = {f"x-goog-{name}": "1" for name in ("channel-id", "message-number", "resource-state")}
    raw = make_request(source.name, b'{"text": "x"}', {**given, header: value, "content-type": "application/json"})
    (event,) = read(raw, source)
    assert_read_again(event, source)


def assert_read_again(event: Event, source: Source) -> None:
    """Assert that the stored request is read to the same event, as `relay plan --config` does."""
    stored = delivery_of(1, event)
    assert Variant(Config(sources={source.name: source})).read(stored) == stored
