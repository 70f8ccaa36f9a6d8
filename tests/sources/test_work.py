"""A refusal costs the same work for every source, so that its time does not reveal the sources.

Counted are all function calls, and all digests with their bytes.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import hmac
import json
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from inbox.config.sources import EventFields, Source
from inbox.errors import InvalidEvent, NotAuthenticated, Unreadable
from inbox.loader.load import parse_config
from inbox.receiver.app import make_endpoints
from inbox.sources import PRESETS, fields
from inbox.sources.base import Preset
from inbox.sources.credentials import REJECTION, Verifier, pad_work
from inbox.sources.fields import form_fields, form_payload
from inbox.sources.presets import adyen, custom, msgraph
from inbox.sources.signing import SignatureProof
from tests.sources.certified import NOTIFICATION, PAYPAL_BODY, PAYPAL_HEADERS, TOPIC, make_sns
from tests.sources.presenting import (
    NOW,
    PUBLIC_URL,
    SIGNING_IN_BODY,
    VECTORS,
    make_request,
    make_secret,
    read,
    sign_sample,
)

KEY = ec.generate_private_key(ec.SECP256R1())
JWKS = json.dumps({"keys": [jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)]})
LARGE, SMALL = (b'{"padding": "%b"}' % (b"x" * size) for size in (250_000, 1_000))

CUSTOM = """
[sources.custom]
preset = "custom"
secrets = ["x", "y"]
public_url = "https://hooks.example.com/webhooks/custom"
[sources.custom.event]
type = "body.type"
[sources.custom.signature]
header = "X-Acme-Signature"
timestamp_header = "X-Acme-Time"
content = "{timestamp}.{url}.{sorted_params}.{body}"
algorithm = "sha512"
[sources.public]
preset = "standard-webhooks"
secrets = ["whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
[sources.adyen-of-two-keys-more]
preset = "adyen"
secrets = ["00", "01", "02", "03", "04"]
[sources.listed]
preset = "trivore"
auth = { kind = "bearer", secrets = ["a"] }
allow_from = ["192.0.2.0/24", "2001:db8::/32"]
max_body = 1000
"""


def shape(preset: Preset) -> Hashable:
    """Return the parts of a preset that determine the work of its proof; presets of one shape cost the same."""
    return preset.prover, *(
        (
            *(s.algorithm, s.encoding, s.key, s.separator, s.id_header),
            *(bool(s.timestamp_header), s.timestamp_prefix, s.timestamp_unit),
            *("{url}" in s.content, "{sorted_params}" in s.content),
        )
        for s in preset.signatures
    )


REPRESENTATIVES = {shape(preset): name for name, preset in sorted(PRESETS.items(), reverse=True) if name != "custom"}
"""One preset of each shape, as the time of this test grows with the cube of their number."""
OF_EACH_SHAPE = sorted([*REPRESENTATIVES.values(), "slack-message", "trivore"])


def write_all_presets() -> str:
    """Return a configuration with a source for each shape, with one to three secrets, and for each kind of authentication."""
    lines = [CUSTOM]
    for number, name in enumerate(OF_EACH_SHAPE):
        preset = PRESETS[name]
        secrets = json.dumps([make_secret(preset, n) for n in range(number % 3 + 1)])
        if preset.signatures or preset.signer:
            lines.append(f'[sources.{name}]\npreset = "{name}"\nsecrets = {secrets}\npublic_url = "{PUBLIC_URL}"')
        elif name == "secevent":
            lines.append(
                f'[sources.{name}]\npreset = "{name}"\nsecrets = [{json.dumps(JWKS)}]\nissuer = "i"\naudience = "a"'
            )
        elif preset.prover is not None:
            auth = 'auth = { kind = "url_token", secrets = ["t"] }'
            proof = f'topics = ["{TOPIC}"]' if name == "sns" else f"secrets = {secrets}"
            lines.append(f'[sources.{name}]\npreset = "{name}"\n{proof}\n{auth}')
        elif name != "custom":
            pattern = "pattern = '(?P<id>x)'\nentity_type = 'X'\n" if name == "slack-message" else ""
            lines.append(
                f'[sources.{name}]\npreset = "{name}"\n{pattern}'
                f'auth = {{ kind = "header", name = "X-{name}", secrets = {secrets} }}'
            )
    for kind, more in (("bearer", ""), ("url_token", ""), ("basic", 'user = "u", ')):
        auth = f'auth = {{ kind = "{kind}", {more}secrets = ["a", "b"] }}'
        lines += [f'[sources.{kind}]\npreset = "trivore"\n{auth}']
        lines += [f'[sources.github-and-{kind}]\npreset = "github"\nsecrets = ["a", "b", "c", "d"]\n{auth}']
    lines += ['[sources.smaller]\npreset = "github"\nsecrets = ["a"]\nmax_body = 300_000']
    return "\n".join(lines)


@functools.cache
def make_verifiers() -> dict[str, Verifier]:
    """Map each source to its verifier, and `unknown` to the one for unknown sources."""
    made = {name: endpoint.verifier for name, endpoint in make_endpoints(parse_config(write_all_presets())).items()}
    return {**made, "unknown": pad_work(made.values())}


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[object]]:
    """Count every function call, and every digest with its bytes."""
    counted: Counter[object] = Counter()

    def on_call(frame: FrameType, event: str, argument: Any) -> None:  # noqa: ANN401  # as the interpreter has it
        if event == "c_call":
            counted[argument.__qualname__] += 1
        elif event == "call":
            counted[frame.f_code.co_qualname] += 1

    def wrap_digest(function: Callable[..., Any], content: int) -> Callable[..., Any]:
        def count_digest(*arguments: Any) -> Any:  # noqa: ANN401  # whatever the function takes
            counted["digest", len(arguments[content]), arguments[2:]] += 1
            return function(*arguments)

        return count_digest

    with monkeypatch.context() as patched:
        patched.setattr(hmac, "digest", wrap_digest(hmac.digest, 1))
        patched.setattr(hashlib, "sha256", wrap_digest(hashlib.sha256, 0))
        gc.disable()  # otherwise the work of a collection in other libraries would count
        sys.setprofile(on_call)
        try:
            yield counted
        finally:
            sys.setprofile(None)
            gc.enable()


VECTORS_OF_SHAPES = [(name, found[0]) for name, found in VECTORS.items() if name in OF_EACH_SHAPE]
REQUESTS: dict[str, tuple[bytes, dict[str, str]]] = {
    "nothing": (b"", {}),
    "a large body": (LARGE, {"content-type": "application/json"}),
    "a form": (b"a=1&b=2", {"content-type": "application/x-www-form-urlencoded", "x-acme-signature": "00" * 64}),
    "notifications": (b'{"value": [{"clientState": "a"}, {"clientState": "b"}]}', {}),
    **{
        f"a body that {name} signs": (sign_sample(name, make_secret(PRESETS[name], 7)).body, {})
        for name in SIGNING_IN_BODY
    },
    "a bearer token": (b"{}", {"authorization": "Bearer x"}),
    "a password": (b"{}", {"authorization": "Basic dTp4"}),
    "a message of SNS": (make_sns(NOTIFICATION).body, {}),
    "a transmission of PayPal": (PAYPAL_BODY, PAYPAL_HEADERS),
    "a token of another key": (
        jwt.encode({"iss": "i"}, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256").encode(),
        {"content-type": "application/secevent+jwt"},
    ),
    "a token of the right key for another audience": (jwt.encode({"iss": "j"}, KEY, algorithm="ES256").encode(), {}),
    **{f"a request of {name} {n}": (SMALL, dict(each.lower)) for n, (name, each) in enumerate(VECTORS_OF_SHAPES)},
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_refusal_costs_the_same_work_for_every_source(request_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body, headers = REQUESTS[request_]
    found: dict[str, Counter[object]] = {}
    for name, verifier in make_verifiers().items():
        raw = make_request("any", body, headers, NOW)
        for _ in range(2):  # the second time, all caches are filled
            with counting(monkeypatch) as counted, pytest.raises(NotAuthenticated, match=REJECTION[:20]):
                verifier.verify(raw, NOW)
        counted.pop("raises", None)
        found[name] = counted
    expected = found.pop("unknown")
    assert any(isinstance(each, tuple) and each[1] >= len(body) for each in expected)
    for name, counted in found.items():
        assert counted == expected, f"{name}: more {counted - expected}, less {expected - counted}"


def test_a_body_costs_the_work_of_the_sources_that_accept_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """One source accepts 25 MiB, thirty others less; rejecting 25 MiB once hashed and parsed it for all of them."""
    made = make_verifiers()
    largest = max(verifier.max_body for verifier in made.values())
    may_send = {name for name, verifier in made.items() if verifier.max_body == largest}
    kinds = {proof.kind for name in may_send for proof in made[name].proofs}
    assert len(may_send) > 1
    assert len(kinds) < len({proof.kind for each in made.values() for proof in each.proofs})
    body, tried, works = b"x" * (largest - 1), [], []
    for name in sorted(may_send):
        with counting(monkeypatch) as counted, pytest.raises(NotAuthenticated):
            made[name].verify(make_request(name, body, {}, NOW), NOW)
        tried.append(sum(isinstance(each, tuple) and each[1] >= len(body) for each in counted.elements()))
        counted.pop("raises", None)
        works.append(counted)
    assert all(each == works[0] for each in works), "they can't be told from each other"
    keys = [each.keys for each in {proof.kind: proof for n in may_send for proof in made[n].proofs}.values()]
    assert 0 < tried[0] <= sum(keys)


def test_more_sources_of_one_kind_add_no_work_for_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 100 GitHub sources, refusing 25 MiB once took 7.6 s instead of 0.05 s."""
    works = []
    for number in (1, 100):
        text = "".join(
            f'[sources.s{n}]\npreset = "github"\nsecrets = ["a{n}"]\npublic_url = "https://h.example.com/{n}"\n'
            for n in range(number)
        )
        unknown = pad_work(endpoint.verifier for endpoint in make_endpoints(parse_config(text)).values())
        with counting(monkeypatch) as counted, pytest.raises(NotAuthenticated):
            unknown.verify(make_request("unknown", LARGE, {}, NOW), NOW)
        counted.pop("raises", None)
        works.append(counted)
    assert works[0] == works[1]


def test_a_request_that_is_let_in_costs_no_other_sources_work(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = make_verifiers()["bearer"]
    with counting(monkeypatch) as counted:
        verifier.verify(make_request("bearer", LARGE, {"authorization": "Bearer b"}), NOW)
    assert [each for each in counted if isinstance(each, tuple)] == [("digest", 1, ())]


def test_all_sources_count_the_same_passes_over_a_refused_body(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_verifiers()
    with counting(monkeypatch) as counted, pytest.raises(NotAuthenticated):
        made["unknown"].verify(make_request("unknown", LARGE, {}, NOW), NOW)
    digests = sum(number for each, number in counted.items() if isinstance(each, tuple) and each[1] >= len(LARGE))
    assert {verifier.passes for verifier in made.values()} == {made["unknown"].passes}
    by_kind = {
        each.kind: each for verifier in made.values() for each in verifier.proofs if isinstance(each, SignatureProof)
    }
    by_public_keys = sum(proof.passes - proof.keys for proof in by_kind.values())  # public keys need no digest
    assert digests <= made["unknown"].passes <= 2 * digests + by_public_keys


# --- Forms, and bodies with several events: read as the standard library reads them, without taking many times their size


MIB = 1024 * 1024


@contextmanager
def limit_memory(size: int) -> Iterator[None]:
    """Fail if Python allocates more than `size` bytes at any time in the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size
    finally:
        tracemalloc.stop()


def test_the_part_that_a_thousand_items_share_is_found_once() -> None:
    """Hashed and searched for each item, this body once took half a minute and blocked all other large ones."""
    found = custom.reader(
        Source(
            preset="custom",
            event=EventFields(type="body.type", items="body.items", entity_type="'X'", entity_id="body.all[-1:] | [0]"),
        )
    )
    items = b",".join(b'{"n":%d}' % number for number in range(1000))
    text = b'"%b"' % (b"x" * 20 * MIB)
    body = b'{"type":"x","text":%b,"items":[%b],"all":[%b"e"]}' % (text, items, b"1," * 100_000)
    began = time.process_time()
    identities = found(make_request("custom", body, {}), None)
    assert time.process_time() - began < 3
    assert len({identity.key_parts for identity in identities}) == 1000
    assert {identity.entity_id for identity in identities} == {"e"}


@given(st.lists(st.sampled_from(["a", "=", "&", "%", "%2", "%e2%82%ac", "%C3", "+", "%2B", "€", "%zz", "x" * 8])))
@example(["a=", "%22" * 6000, "&b=x", "%22" * 11_000])
@example(["x" * (16 * 1024 - 1), "%41", "=", "%", "4"])
def test_a_form_is_read_as_the_standard_library_reads_it(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        expected = parse_qsl(text, keep_blank_values=True, errors="strict")
    except ValueError:
        with pytest.raises(Unreadable):
            form_fields(text.encode())
    else:
        assert form_fields(text.encode()) == expected


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        (
            adyen.read_signed_parts,
            b'{"notificationItems": [%b]}' % b",".join([b'{"NotificationRequestItem":{}}'] * 200_000),
        ),
        (msgraph.client_states, b'{"value": [%b]}' % b",".join([b"{}"] * 200_000)),
    ],
)
def test_a_stranger_has_no_objects_made_of_many_small_values(parts: Callable[[bytes], object], body: bytes) -> None:
    """Each rejection parses the body for a signature: two million notifications once took 468 MiB and up to 10 s."""
    with limit_memory(3 * len(body)):
        assert not parts(body)


def test_a_form_may_have_a_hundred_fields() -> None:
    assert len(form_fields(b"&".join([b"a=1"] * 100))) == 100
    with pytest.raises(Unreadable):
        form_fields(b"&".join([b"a=1"] * 101))


@pytest.mark.parametrize("make", [lambda n: b"%22" * (n // 3), lambda n: b"x" * n, lambda n: b"+" * n])
def test_a_large_form_takes_little_more_than_itself_and_its_value(make: Callable[[int], bytes]) -> None:
    body = b"payload=" + make(MIB)
    with limit_memory(4 * MIB):
        form_payload(body)


@pytest.mark.parametrize("bare", [b"%", b"%zz", b"%4"])
def test_signs_of_percent_that_begin_nothing_are_left_as_they_are_but_not_very_many(bare: bytes) -> None:
    """The standard library raises and catches an error for each; 25 MiB of them once blocked a thread for 13 s."""
    some, more = bare * fields.MOST_BARE, bare * (fields.MOST_BARE + 1)
    assert form_payload(b"payload=" + some) == some
    assert form_payload(b"payload=" + b"%25" * 20_000) == b"%" * 20_000
    for body in (b"payload=" + more, b"payload=" + b"x" * 100_000 + more, more + b"=x"):
        with pytest.raises(Unreadable, match="not quoted"):
            form_payload(body)


def test_the_envelope_of_many_events_is_not_copied_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    event = b'{"uuid": "u%d", "eventType": "user.lifecycle.create", "published": "2026-01-01T00:00:00Z"}'

    def batch(number: int, around: int) -> bytes:
        events = b",".join(event % n for n in range(number))
        return b'{"around": "%b", "data": {"events": [%b]}}' % (b"x" * around, events)

    assert len(read(make_request("okta", batch(1000, 300), {"content-type": "application/json"}))) == 1000
    monkeypatch.setattr(fields, "LARGEST_PARTS", MIB)
    with limit_memory(4 * MIB), pytest.raises(InvalidEvent, match="send fewer of them at once"):
        read(make_request("okta", batch(100, 100_000), {"content-type": "application/json"}))
