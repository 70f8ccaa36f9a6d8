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


@pytest.mark.parametrize("prefix", ["webhook", "svix"])
def test_a_request_that_svix_signs_with_its_private_key_is_let_in(prefix: str) -> None:
    assert let_in(by(PUBLIC), sent(SIGNATURE, prefix=prefix))
    assert let_in(by(PUBLIC.rstrip("=")), sent(SIGNATURE, prefix=prefix))
    assert not let_in(by(key_of(Ed25519PrivateKey.generate())), sent(SIGNATURE, prefix=prefix))


def test_the_id_the_time_and_the_body_are_signed() -> None:
    assert not let_in(by(PUBLIC), sent(SIGNATURE, body=BODY + b" "))
    assert not let_in(by(PUBLIC), sent(SIGNATURE, seconds=str(int(SECONDS) + 1)))
    assert not let_in(by(PUBLIC), sent(SIGNATURE, at=AT + timedelta(seconds=301)))
    raw = sent(SIGNATURE)
    assert not let_in(by(PUBLIC), a_request("standard-webhooks", BODY, {**raw.headers, "webhook-id": "msg_2"}, AT))


def test_one_of_several_is_enough_and_each_counts_by_its_own_prefix_only() -> None:
    other = v1a(Ed25519PrivateKey.generate())
    cases: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        ((PUBLIC,), (BY_SHARED, SIGNATURE)),
        ((PUBLIC,), (other, SIGNATURE)),
        ((SHARED,), (SIGNATURE, BY_SHARED)),
        ((SHARED, PUBLIC), (SIGNATURE,)),
        ((SHARED, PUBLIC), (BY_SHARED,)),
        ((PUBLIC, SHARED), (other, BY_SHARED)),
    ]
    for secrets, signatures in cases:
        assert let_in(by(*secrets), sent(*signatures)), (secrets, signatures)
    cases = [
        ((PUBLIC,), (BY_SHARED,)),
        ((SHARED,), (SIGNATURE,)),
        ((PUBLIC,), (SIGNATURE.replace("v1a,", "v1,"),)),
        ((PUBLIC,), (SIGNATURE.replace("v1a,", "v2a,"),)),
        ((SHARED,), (BY_SHARED.replace("v1,", "v1a,"),)),
        ((SHARED, PUBLIC), (BY_SHARED.replace("v1,", "v1a,"), SIGNATURE.replace("v1a,", "v1,"))),
        ((PUBLIC,), (*[other] * 5, SIGNATURE)),
    ]
    for secrets, signatures in cases:
        assert not let_in(by(*secrets), sent(*signatures)), (secrets, signatures)


def test_the_public_key_as_a_shared_secret_lets_nobody_in() -> None:
    """The confusion of algorithms: everybody knows the public key, and could make an HMAC with it."""
    text = PUBLIC.removeprefix("whpk_")
    for key in (base64.b64decode(text), text.encode(), PUBLIC.encode(), b""):
        for prefix in ("v1,", "v1a,"):
            forged = written(hmac.digest(key, CONTENT, "sha256"), prefix)
            assert not let_in(by(PUBLIC), sent(forged))
            assert not let_in(by(PUBLIC, SHARED), sent(forged))


@pytest.mark.parametrize("name", ["gitlab", "github", "shopify", "slack", "stripe"])
def test_a_public_or_private_key_is_a_mistake_where_only_shared_secrets_are_of_use(name: str) -> None:
    for secret in (PUBLIC, "whsk_" + "A" * 43 + "="):
        with pytest.raises(ConfigError, match="key of Standard Webhooks") as caught:
            a_verifier(name, Secret(secret))
        assert secret not in str(caught.value)


def test_the_senders_private_key_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="is a private key"):
        by("whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "AAAA",
        "not base64!",
        PUBLIC.removeprefix("whpk_") + "AAAA",
        base64.b64encode(bytes(31)).decode(),
        base64.b64encode(bytes(64)).decode(),
    ],
)
def test_a_public_key_of_another_length_is_a_mistake(key: str) -> None:
    with pytest.raises(ConfigError):
        by(f"whpk_{key}")


@pytest.mark.parametrize("point", sorted(keys._SMALL_ORDER), ids=bytes.hex)
@pytest.mark.parametrize("sign", [0, 0x80])
def test_a_key_for_which_anybody_can_sign_is_a_mistake(point: bytes, sign: int) -> None:
    key = point[:-1] + bytes([point[-1] | sign])
    with pytest.raises(ConfigError, match="anybody could sign for it"):
        by(written(key, "whpk_"))


def test_a_signature_has_one_form() -> None:
    """RFC 8032 §5.1.7: the second half is less than the order of the group, or everyone could make a second from a first."""
    first, second = raw_signature()[:32], int.from_bytes(raw_signature()[32:], "little")
    assert not let_in(by(PUBLIC), sent(written(first + (second + GROUP_ORDER).to_bytes(32, "little"))))
    plain = SIGNATURE.removeprefix("v1a,")
    for other in (
        plain.rstrip("="),
        plain[:-3] + "h==",
        f"{plain}=",
        plain.replace("+", "-").replace("/", "_"),
        f" {plain}\n",
    ):
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
    until = Secret(key_of(old), not_after=AT + timedelta(seconds=1))
    verifier = a_verifier("standard-webhooks", until, Secret(key_of(new)))
    later = AT + timedelta(seconds=1)
    assert [let_in(verifier, sent(v1a(each), at=moment)) for moment in (AT, later) for each in (old, new)] == [
        True, True, False, True,
    ]  # fmt: skip


def test_a_custom_source_may_have_public_keys_as_discord_does() -> None:
    """https://discord.com/developers/docs/interactions/overview#setting-up-an-endpoint: in hex, over time and body."""
    private = Ed25519PrivateKey.generate()
    config = parse_config(f"""
[sources.chat]
preset = "custom"
secrets = ["{private.public_key().public_bytes_raw().hex()}"]
event = {{ type = "'interaction'" }}
[sources.chat.signature]
header = "X-Signature-Ed25519"
timestamp_header = "X-Signature-Timestamp"
content = "{{timestamp}}{{body}}"
algorithm = "ed25519"
key = "hex"
""")
    asked = endpoints_of(config)["chat"].verifier
    headers = {"X-Signature-Timestamp": SECONDS, "X-Signature-Ed25519": private.sign(SECONDS.encode() + BODY).hex()}
    assert let_in(asked, a_request("chat", BODY, headers, AT))
    assert not let_in(asked, a_request("chat", BODY + b" ", headers, AT))


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
