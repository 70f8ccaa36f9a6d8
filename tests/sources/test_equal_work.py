"""A refusal costs the same whatever the source, so that its time does not tell which sources there are.

Counted is what takes the time: every function that is called, and every digest with its bytes.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import hmac
import json
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from inbox.errors import NotAuthenticated
from inbox.loader.load import parse_config
from inbox.receiver.app import endpoints_of
from inbox.sources import PRESETS
from inbox.sources.base import Preset
from inbox.sources.credentials import REJECTION, Verifier, pad_work
from inbox.sources.signing import SignatureProof
from tests.sources.certified import NOTIFICATION, PAYPAL_BODY, PAYPAL_HEADERS, TOPIC, of_sns
from tests.sources.presenting import NOW, SIGNING_IN_BODY, a_request, a_secret, signed_sample
from tests.sources.vectors import PUBLIC_URL, VECTORS

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
    """The parts of a preset that make the work of its proof: presets of one shape differ in names and texts alone."""
    return preset.prover, *(
        (
            *(s.algorithm, s.encoding, s.key, s.separator, s.id_header),
            *(bool(s.timestamp_header), s.timestamp_prefix, s.timestamp_unit),
            *("{url}" in s.content, "{sorted_params}" in s.content),
        )
        for s in preset.signatures
    )


REPRESENTATIVES = {shape(preset): name for name, preset in sorted(PRESETS.items(), reverse=True) if name != "custom"}
"""One preset of each shape: the work of this test grows with the cube of their number."""
OF_EACH_SHAPE = sorted([*REPRESENTATIVES.values(), "slack-message", "trivore"])


def all_presets() -> str:
    """A source for each shape, with one to three secrets, and one for each way to show a secret."""
    lines = [CUSTOM]
    for number, name in enumerate(OF_EACH_SHAPE):
        preset = PRESETS[name]
        secrets = json.dumps([a_secret(preset, n) for n in range(number % 3 + 1)])
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
def verifiers() -> dict[str, Verifier]:
    """Map each source to its verifier, and `nobody` to the one for unknown sources."""
    made = {name: endpoint.verifier for name, endpoint in endpoints_of(parse_config(all_presets())).items()}
    return {**made, "nobody": pad_work(made.values())}


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[object]]:
    """Every call of a function, and every digest with the bytes that it is of."""
    counted: Counter[object] = Counter()

    def on_call(frame: FrameType, event: str, argument: Any) -> None:  # noqa: ANN401  # as the interpreter has it
        if event == "c_call":
            counted[argument.__qualname__] += 1
        elif event == "call":
            counted[frame.f_code.co_qualname] += 1

    def noting(function: Callable[..., Any], content: int) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:  # noqa: ANN401  # whatever the function takes
            counted["digest", len(arguments[content]), arguments[2:]] += 1
            return function(*arguments)

        return noted

    with monkeypatch.context() as patched:
        patched.setattr(hmac, "digest", noting(hmac.digest, 1))
        patched.setattr(hashlib, "sha256", noting(hashlib.sha256, 0))
        gc.disable()  # else what other libraries do at a collection would count, wherever one falls
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
        f"a body that {name} signs": (signed_sample(name, a_secret(PRESETS[name], 7)).body, {})
        for name in SIGNING_IN_BODY
    },
    "a bearer token": (b"{}", {"authorization": "Bearer x"}),
    "a password": (b"{}", {"authorization": "Basic dTp4"}),
    "a message of SNS": (of_sns(NOTIFICATION).body, {}),
    "a transmission of PayPal": (PAYPAL_BODY, PAYPAL_HEADERS),
    "a token of another key": (
        jwt.encode({"iss": "i"}, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256").encode(),
        {"content-type": "application/secevent+jwt"},
    ),
    "a token of the right key for somebody else": (jwt.encode({"iss": "j"}, KEY, algorithm="ES256").encode(), {}),
    **{f"a request of {name} {n}": (SMALL, dict(each.lower)) for n, (name, each) in enumerate(VECTORS_OF_SHAPES)},
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_every_refusal_is_the_same_work_for_each_preset_and_for_no_source(
    request_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, headers = REQUESTS[request_]
    found: dict[str, Counter[object]] = {}
    for name, verifier in verifiers().items():
        raw = a_request("anybody", body, headers, NOW)
        for _ in range(2):  # the second time everything that is made once has been made
            with counting(monkeypatch) as counted, pytest.raises(NotAuthenticated, match=REJECTION[:20]):
                verifier.verify(raw, NOW)
        counted.pop("raises", None)
        found[name] = counted
    expected = found.pop("nobody")
    assert any(isinstance(each, tuple) and each[1] >= len(body) for each in expected)
    for name, counted in found.items():
        assert counted == expected, f"{name}: more {counted - expected}, less {expected - counted}"


def test_a_strangers_largest_body_costs_the_work_of_those_alone_that_may_send_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One source may send 25 MiB, and thirty others less: a rejection of 25 MiB hashed and parsed them for all."""
    made = verifiers()
    largest = max(verifier.max_body for verifier in made.values())
    may_send = {name for name, verifier in made.items() if verifier.max_body == largest}
    kinds = {proof.kind for name in may_send for proof in made[name].proofs}
    assert len(may_send) > 1
    assert len(kinds) < len({proof.kind for each in made.values() for proof in each.proofs})
    body, tried, works = b"x" * (largest - 1), [], []
    for name in sorted(may_send):
        with counting(monkeypatch) as counted, pytest.raises(NotAuthenticated):
            made[name].verify(a_request(name, body, {}, NOW), NOW)
        tried.append(sum(isinstance(each, tuple) and each[1] >= len(body) for each in counted.elements()))
        counted.pop("raises", None)
        works.append(counted)
    assert all(each == works[0] for each in works), "they can't be told from each other"
    keys = [each.keys for each in {proof.kind: proof for n in may_send for proof in made[n].proofs}.values()]
    assert 0 < tried[0] <= sum(keys)


def test_a_stranger_makes_no_more_work_where_there_are_more_sources_of_one_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 100 sources of GitHub a refusal of 25 MiB took 7.6 s instead of 0.05, and one of 256 KiB 0.1 s."""
    works = []
    for number in (1, 100):
        text = "".join(
            f'[sources.s{n}]\npreset = "github"\nsecrets = ["a{n}"]\npublic_url = "https://h.example.com/{n}"\n'
            for n in range(number)
        )
        nobodys = pad_work(endpoint.verifier for endpoint in endpoints_of(parse_config(text)).values())
        with counting(monkeypatch) as counted, pytest.raises(NotAuthenticated):
            nobodys.verify(a_request("nobody", LARGE, {}, NOW), NOW)
        counted.pop("raises", None)
        works.append(counted)
    assert works[0] == works[1]


def test_a_request_that_is_let_in_costs_no_other_sources_work(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = verifiers()["bearer"]
    with counting(monkeypatch) as counted:
        verifier.verify(a_request("bearer", LARGE, {"authorization": "Bearer b"}), NOW)
    assert [each for each in counted if isinstance(each, tuple)] == [("digest", 1, ())]


def test_how_often_a_refusal_goes_through_a_body_is_known_and_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made = verifiers()
    with counting(monkeypatch) as counted, pytest.raises(NotAuthenticated):
        made["nobody"].verify(a_request("nobody", LARGE, {}, NOW), NOW)
    digests = sum(number for each, number in counted.items() if isinstance(each, tuple) and each[1] >= len(LARGE))
    assert {verifier.passes for verifier in made.values()} == {made["nobody"].passes}
    by_kind = {
        each.kind: each for verifier in made.values() for each in verifier.proofs if isinstance(each, SignatureProof)
    }
    by_public_keys = sum(proof.passes - proof.keys for proof in by_kind.values())  # which no digest is of
    assert digests <= made["nobody"].passes <= 2 * digests + by_public_keys
