"""Signatures by a private key (`v1a` of Standard Webhooks and Svix), and what must never count for one."""

from __future__ import annotations

import base64
import hmac
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.values import Secret
from inbox.errors import ConfigError
from inbox.events.event import RawRequest
from inbox.loader.load import parse_config
from inbox.receiver.app import endpoints_of
from inbox.sources import keys
from inbox.sources.credentials import Verifier, pad_work
from tests.sources.presenting import a_request, a_verifier, why_refused

# Svix's own server signs this in its test `test_asymmetric_key_signing` (server/svix-server/src/worker.rs).
PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
SIGNATURE = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
BODY, ID, SECONDS = b'{"test": 2432232314}', "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330"
SHARED, BY_SHARED = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
AT = datetime.fromtimestamp(int(SECONDS), UTC)
CONTENT = f"{ID}.{SECONDS}.".encode() + BODY

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def sent(
    *signatures: str, prefix: str = "webhook", body: bytes = BODY, at: datetime = AT, seconds: str = SECONDS
) -> RawRequest:
    headers = {f"{prefix}-id": ID, f"{prefix}-timestamp": seconds, f"{prefix}-signature": " ".join(signatures)}
    return a_request("standard-webhooks", body, {"Content-Type": "application/json", **headers}, at)


def let_in(verifier: Verifier, raw: RawRequest) -> bool:
    return why_refused(verifier, raw) is None


def by(*secrets: str) -> Verifier:
    return a_verifier("standard-webhooks", *map(Secret, secrets))


def key_of(private: Ed25519PrivateKey) -> str:
    return "whpk_" + base64.b64encode(private.public_key().public_bytes_raw()).decode()


def v1a(private: Ed25519PrivateKey, content: bytes = CONTENT) -> str:
    return "v1a," + base64.b64encode(private.sign(content)).decode()


def raw_signature() -> bytes:
    return base64.b64decode(SIGNATURE.removeprefix("v1a,"))


def written(signature: bytes, prefix: str = "v1a,") -> str:
    return prefix + base64.b64encode(signature).decode()


OTHER = v1a(Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    ("secrets", "signatures", "expected"),
    [
        ((PUBLIC,), (SIGNATURE,), True),
        ((PUBLIC.rstrip("="),), (SIGNATURE,), True),
        ((PUBLIC,), (BY_SHARED, SIGNATURE), True),
        ((PUBLIC,), (OTHER, SIGNATURE), True),
        ((SHARED,), (SIGNATURE, BY_SHARED), True),
        ((SHARED, PUBLIC), (SIGNATURE,), True),
        ((SHARED, PUBLIC), (BY_SHARED,), True),
        ((PUBLIC, SHARED), (OTHER, BY_SHARED), True),
        ((PUBLIC,), (OTHER,), False),
        ((PUBLIC,), (BY_SHARED,), False),
        ((SHARED,), (SIGNATURE,), False),
        ((PUBLIC,), (SIGNATURE.replace("v1a,", "v1,"),), False),
        ((PUBLIC,), (SIGNATURE.replace("v1a,", "v2a,"),), False),
        ((SHARED,), (BY_SHARED.replace("v1,", "v1a,"),), False),
        ((SHARED, PUBLIC), (BY_SHARED.replace("v1,", "v1a,"), SIGNATURE.replace("v1a,", "v1,")), False),
        ((PUBLIC,), (*[OTHER] * 5, SIGNATURE), False),
    ],
)
@pytest.mark.parametrize("prefix", ["webhook", "svix"])
def test_one_of_several_is_enough_and_each_counts_by_its_own_prefix_only(
    prefix: str, secrets: tuple[str, ...], signatures: tuple[str, ...], expected: bool
) -> None:
    assert let_in(by(*secrets), sent(*signatures, prefix=prefix)) == expected


def test_the_id_the_time_and_the_body_are_signed() -> None:
    raw = sent(SIGNATURE)
    for other in (
        sent(SIGNATURE, body=BODY + b" "),
        sent(SIGNATURE, seconds=str(int(SECONDS) + 1)),
        sent(SIGNATURE, at=AT + timedelta(seconds=301)),
        a_request("standard-webhooks", BODY, {**raw.headers, "webhook-id": "msg_2"}, AT),
    ):
        assert not let_in(by(PUBLIC), other)


def test_the_public_key_as_a_shared_secret_lets_nobody_in() -> None:
    """The confusion of algorithms: everybody knows the public key, and could make an HMAC with it."""
    text = PUBLIC.removeprefix("whpk_")
    for key in (base64.b64decode(text), text.encode(), PUBLIC.encode(), b""):
        for prefix in ("v1,", "v1a,"):
            forged = written(hmac.digest(key, CONTENT, "sha256"), prefix)
            assert not let_in(by(PUBLIC), sent(forged))
            assert not let_in(by(PUBLIC, SHARED), sent(forged))


PRIVATE = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, secret) for name in ("gitlab", "github", "slack") for secret in (PUBLIC, PRIVATE)),
        ("standard-webhooks", PRIVATE),
        *(("standard-webhooks", f"whpk_{key}") for key in ("", "AAAA", "not base64!", f"{PUBLIC[5:]}AAAA")),
        *(("standard-webhooks", written(bytes(length), "whpk_")) for length in (31, 64)),
    ],
)
def test_a_key_that_is_of_no_use_there_is_a_mistake_that_does_not_show_it(name: str, secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        a_verifier(name, Secret(secret))
    assert secret not in str(caught.value)


@pytest.mark.parametrize("point", sorted(keys._SMALL_ORDER), ids=bytes.hex)
@pytest.mark.parametrize("sign", [0, 0x80])
def test_a_key_for_which_anybody_can_sign_is_a_mistake(point: bytes, sign: int) -> None:
    key = point[:-1] + bytes([point[-1] | sign])
    with pytest.raises(ConfigError, match="anyone could sign for it"):
        by(written(key, "whpk_"))


def test_a_signature_has_one_form() -> None:
    """RFC 8032 §5.1.7: the second half is less than the order of the group, or everyone could make a second from a first."""
    first, second = raw_signature()[:32], int.from_bytes(raw_signature()[32:], "little")
    assert not let_in(by(PUBLIC), sent(written(first + (second + GROUP_ORDER).to_bytes(32, "little"))))
    plain = SIGNATURE.removeprefix("v1a,")
    for other in (plain.rstrip("="), plain[:-3] + "h==", f"{plain}=", plain.replace("+", "-"), f" {plain}\n"):
        assert not let_in(by(PUBLIC), sent(f"v1a,{other}")), other


@given(st.integers(0, 511))
def test_any_other_bit_is_refused(bit: int) -> None:
    flipped = (int.from_bytes(raw_signature(), "little") ^ (1 << bit)).to_bytes(64, "little")
    assert not let_in(by(PUBLIC), sent(written(flipped)))


@given(st.binary(max_size=130))
def test_anything_else_is_refused(signature: bytes) -> None:
    assert not let_in(by(PUBLIC), sent(written(signature)))
    assert not let_in(by(PUBLIC, SHARED), sent(written(signature), written(signature, "v1,")))


def test_while_a_key_is_rolled_both_are_let_in_and_then_the_new_one_alone() -> None:
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    later = AT + timedelta(seconds=1)
    verifier = a_verifier("standard-webhooks", Secret(key_of(old), not_after=later), Secret(key_of(new)))
    found = [let_in(verifier, sent(v1a(each), at=moment)) for moment in (AT, later) for each in (old, new)]
    assert found == [True, True, False, True]


def test_a_source_with_the_public_key_alone_works_beside_one_that_has_a_shared_secret_too() -> None:
    """Both sign in one way, so the first gets made-up keys: as many as the second has shared ones."""
    text = "".join(
        f'[sources.{name}]\npreset = "standard-webhooks"\nsecrets = {list(secrets)}\n'
        for name, secrets in (("alone", (PUBLIC,)), ("both", (PUBLIC, SHARED)))
    )
    made = {name: endpoint.verifier for name, endpoint in endpoints_of(parse_config(text)).items()}
    nobody = pad_work(made.values())
    for verifier in made.values():
        assert let_in(verifier, sent(SIGNATURE))
        assert not let_in(verifier, sent(v1a(Ed25519PrivateKey.generate())))
    assert [let_in(each, sent(BY_SHARED)) for each in (made["alone"], made["both"], nobody)] == [False, True, False]
