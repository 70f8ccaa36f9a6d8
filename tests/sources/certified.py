"""Requests of providers that publish their certificates, and forged ones.

AWS and PayPal publish no request with its certificate. These were signed with OpenSSL and accepted by the providers' own
libraries: `sns-validator` 0.3.5 on npm, and `paypalrestsdk` 1.13.3 on PyPI.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from inbox.config.sources import Source, UrlTokenAuth
from inbox.config.values import Secret, TopicArn
from inbox.events.event import RawRequest
from inbox.receiver.fetcher import Get, get_over_https
from inbox.sources import PRESETS
from inbox.sources.credentials import Verifier, build_verifier
from inbox.sources.keys import CertificateNeeded
from inbox.sources.presets.paypal import Transmission
from inbox.sources.presets.sns import SignedMessage
from tests.helpers.scripted import Act, ScriptedServer, answer
from tests.sources.presenting import find_refusal, make_request

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@cache
def signing_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the provider's key, generated once."""
    return rsa.generate_private_key(65537, bits)


def pem_of(
    name: str,
    key: PrivateKey,
    *,
    begins: datetime = datetime(2025, 1, 1, tzinfo=UTC),
    lasts: timedelta = timedelta(days=36_500),
    by: tuple[str, ec.EllipticCurvePrivateKey] | None = None,
    alternative: str | None = None,
) -> bytes:
    """Return a certificate of `name`: self-signed, or signed `by` an authority for TLS."""
    issuer, signer = by or (name, key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + lasts)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if by is None:
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        )
        signs = x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False)
        made = made.add_extension(signs, critical=True)
    if by is not None or alternative is not None:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(alternative or name)]), critical=False)
    return made.sign(signer, SHA256()).public_bytes(Encoding.PEM)


class CertificateHost(ScriptedServer):
    """A running certificate host; `asked` are host names and paths."""

    def __init__(self, context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
        super().__init__(answer(404), tls=context)
        self.trusting = trusting

    @property
    def asked(self) -> list[str]:
        return [f"{seen.headers['host']}{seen.target}" for seen in self.seen]

    def dial(self, _host: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def get(self, **options: Any) -> Get:  # noqa: ANN401
        """Return the product's own function, which resolves every name to this host."""
        return partial(get_over_https, dial=self.dial, context=self.trusting, **options)

    def serve(self, path: str, body: bytes) -> None:
        """Answer requests for this path with 200 and this body."""
        self.meet(path, answer(200, body))

    def meet(self, path: str, act: Act) -> None:
        """Answer requests for this path with this act."""
        self.routes[f"GET {path}"] = [act]


@contextlib.contextmanager
def certificate_host(folder: Path, name: str) -> Iterator[CertificateHost]:
    """Serve as host `name` for clients that trust its authority."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = pem_of("the authority of a test", authority)
    chain = folder / "chain.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain.write_bytes(private + pem_of(name, key, by=("the authority of a test", authority)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    trusting = ssl.create_default_context(cadata=root.decode())
    with contextlib.closing(CertificateHost(context, trusting)) as host:
        yield host


# --- Requests of providers that publish their certificates, and forged ones


TOPIC = TopicArn("arn:aws:sns:eu-west-1:123456789012:orders")
SNS_HOST = "sns.eu-west-1.amazonaws.com"
SNS_PATH = "/SimpleNotificationService-f3ecfb7224c7233fe7bb5f59f96de52f.pem"
SNS_NAME = "sns.amazonaws.com"
PAYPAL_HOST = "api.paypal.com"
PAYPAL_PATH = "/v1/notifications/certs/CERT-360caa42-fca2a594-a5cafa77"
PAYPAL_NAME = "messageverificationcerts.paypal.com"
WEBHOOK = "9XL90610J3647323C"
SNS_AT = datetime(2025, 5, 2, 0, 54, 7, tzinfo=UTC)
PAYPAL_AT = datetime(2025, 8, 29, 10, 49, 6, tzinfo=UTC)
_TEXT = {"Content-Type": "text/plain; charset=UTF-8"}

NOTIFICATION = {
    "Type": "Notification",
    "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
    "TopicArn": "arn:aws:sns:eu-west-1:123456789012:orders",
    "Subject": "Order 42",
    "Message": '{"order": 42,\n "note": "café"}',
    "Timestamp": "2025-05-02T00:54:06.655Z",
    "SignatureVersion": "2",
    "SigningCertURL": (
        "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-f3ecfb7224c7233fe7bb5f59f96de52f.pem"
    ),
    "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe",
    "Signature": (
        "Xl6AzNGH1kPN8GEdayou3yfSbYLLqSf9MeSXhARx8us5g2MS5fHtRinnZdDXjbotSVgldEUxm5dHn6FnmSp/6mVQkN"
        "c9qbQ127KYTgUUI0aQE9/ib0vDzD2v0Q+FMpX7Jz6fnG3BRlS5H8xmXO1iStHOyoq3wmQkSSYXxCRdsIpa2H8Ns+4I"
        "6InHl7LxzE0h00RPlzlFeN+zgSWBCC0A0DqX8nRi7mv1hO6GOlq6QDBz8d94bj+R2gcc4LaOIpA81OO+N4tMZcWntU"
        "Wy9kdp8WRsjsTpurcBIYZJvxaseDO+nFa5jysydtKN1XsguELytk0/sSnPfMahbNoAWxnqpg=="
    ),
}
CONFIRMATION = {
    "Type": "SubscriptionConfirmation",
    "MessageId": "165545c9-2a5c-472c-8df2-7ff2be2b3b1b",
    "Token": "2336412f37f",
    "TopicArn": "arn:aws:sns:eu-west-1:123456789012:orders",
    "Message": "You have chosen to subscribe to the topic.",
    "SubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=2336412f37f",
    "Timestamp": "2025-04-26T20:45:04.751Z",
    "SignatureVersion": "1",
    "SigningCertURL": (
        "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-f3ecfb7224c7233fe7bb5f59f96de52f.pem"
    ),
    "Signature": (
        "PRUevcpVq7glwcnb8PPtPb7fPzHZwWDeBKARZqQ8Z39FgQWmevZA0oxuTpLB86OrUudYsuOhWn+p/g+iLWB2qrgwZ1"
        "TAZouIY55CUlhiATzPIj5dvibXPRdqbLln0ejiQiVXM3K6KWUVVQAXnFXPJS9cQaN+5zpdj34gPXCQ4HuzU8dIlQ73"
        "f2RacEEin3vZOlzj4yAfURQ1rkH4jvqUBuszOvR7CioK+bKKTfmKDSEJ/KfCeEBotdEPSPVMnzzqqZEg8fhZCK0ueQ"
        "n+ZhVYwIWJ5lhESgBqYJWMlbiqMWqJtazqHafEINH4rdbM7NBLZKc4XMaamZn+im8Wmcz/sg=="
    ),
}
SNS_PEM = b"""\
-----BEGIN CERTIFICATE-----
MIIDGzCCAgOgAwIBAgIUKE+8muw3Z09yA0ggegPh23j4DiowDQYJKoZIhvcNAQEL
BQAwHDEaMBgGA1UEAwwRc25zLmFtYXpvbmF3cy5jb20wIBcNMjUwMTAxMDAwMDAw
WhgPMjEyNTAxMDEwMDAwMDBaMBwxGjAYBgNVBAMMEXNucy5hbWF6b25hd3MuY29t
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAzCfMspcIlFUfQgvi4uWJ
Te/898yALtzcJ6KcPgB56vSMM4Wrm+O7IsHwKpw2UyiSbVbTx9OsD1Fcarc+PmGP
3jpKrailAUC+S9McPAIpk5WuPLubtuqR6k29qZ1Ho/0iuGbvJyGYlzsFm5EEIOlv
v6dvUBSvPrAq6XdAUUtnjYV6Ajq2AM9J75Sd35srZ9DpUH2R1iCz9rbXhspMfXHP
ZTxwjbHN2bC24X2OFenUTEKpWYxOdkn+eDS1qlTHQa2yPTwKRC5Ig8An8Q2A2JTm
Kns/Lb7trkK+zoeXqACdamx0BcTjxHFiHZNZLgWkroMk7OaUjkWwenHN6Rw8AGMu
4QIDAQABo1MwUTAdBgNVHQ4EFgQUXAp4zvnMcOcr9ou4ifN7D40KtY8wHwYDVR0j
BBgwFoAUXAp4zvnMcOcr9ou4ifN7D40KtY8wDwYDVR0TAQH/BAUwAwEB/zANBgkq
hkiG9w0BAQsFAAOCAQEAbn7s22+Pbd30DQamefNObH+7agE78jTvZVjcURNFiffx
8OP3JJc1iW0WzyoNJijdr4ohrcBFSmcpiv3gYbMck/gWGZbTSoNhDGWBHmTQNBPT
vYKz8PN0+77cjrzY0ZTZDO8s66wRtjJfo9HXuDJQM5J5QjugT6JTQ4wdowpds+L+
yvB44A5MFN8fM32UBOm5YOQJZmet0hmGQcBmgK1t0zXutydHOGApd6uh8uO7Tq6V
5aeBh3rvq0zjoC3pG2vqF4iubfvqzwEVemx5J6o+csLhBrhjgDvka7cIR9/tkpfR
FxMw1LDMhtTbVt7tCbaucZjP+6XbNv1SnAu+4SDGXQ==
-----END CERTIFICATE-----
"""
PAYPAL_BODY = (
    b'{"id":"WH-7MU294299R542214K-4N1831857K851783H","create_time":"2025-08-29T10:49:03.439Z","resource_ty'
    b'pe":"capture","event_type":"PAYMENT.CAPTURE.COMPLETED","resource":{"id":"42","status":"COMPLETED"}}'
)
PAYPAL_HEADERS = {
    "Content-Type": "application/json",
    "PAYPAL-AUTH-ALGO": "SHA256withRSA",
    "PAYPAL-CERT-URL": f"https://{PAYPAL_HOST}{PAYPAL_PATH}",
    "PAYPAL-TRANSMISSION-ID": "d938e770-8046-11e6-8103-6b62a8a99ac4",
    "PAYPAL-TRANSMISSION-TIME": "2025-08-29T10:49:05Z",
    "PAYPAL-TRANSMISSION-SIG": (
        "ugahMHclFR78wNDPfbjltBiCpJAQKc5xBSqYnGI2OWvfYW9jHJ90yirghU0hZJ0i2Wd2pkrbO2sJjrZMBxEQvIrJ1B"
        "B4Q+DX1TTgnSp3rI0XF29sX9eS4rTOfMz7qxdNSYzhoLiO5BmsWYLlENU+npjj5IFxJaW46BvKj2jW7wSFccXpK8c2"
        "GZ2XtbhjvLuADmAC//naT2EQozuhpijZILFv9cjqY8ZWxfafOtg0XDXFh0+a9txEcOpi+SM7kCgrzfrpni/I0bQP/L"
        "aLYWLUDxtwjAEliRhz6wv9JpV/KNDfVeDwkoAFQ59a7jy+AXcavkdTYhBCrwdLXqIeSlFILw=="
    ),
}
PAYPAL_PEM = b"""\
-----BEGIN CERTIFICATE-----
MIIDPzCCAiegAwIBAgIURev7Ky72F1UzQ66Cdt7oov0UomQwDQYJKoZIhvcNAQEL
BQAwLjEsMCoGA1UEAwwjbWVzc2FnZXZlcmlmaWNhdGlvbmNlcnRzLnBheXBhbC5j
b20wIBcNMjUwMTAxMDAwMDAwWhgPMjEyNTAxMDEwMDAwMDBaMC4xLDAqBgNVBAMM
I21lc3NhZ2V2ZXJpZmljYXRpb25jZXJ0cy5wYXlwYWwuY29tMIIBIjANBgkqhkiG
9w0BAQEFAAOCAQ8AMIIBCgKCAQEA6/VH6CAr8vl5CR6FniRMi0aXFbCHDvcpyJbf
4XLyeeV+SDacNNyq5iLC+NsW/pOQLgId6XvK+cwpAiEFm/b6DnO+4LtN3rgDi8pZ
9/USZ0vYYBeML8aDEOc4ckJrjAPxDco+/wwNYphOrP6xVoNP5ZP1TV1UirxuAAD4
hxL9/QZx2SHcwDxpqYx9BbnWQ+M0sSks5ojsTYnfoznQdC5jua8KAES1yZGgGDiO
HScY+ClENUt8K0T/W0ymL69tr5geNrP+TtpNwGCLpOlDIl5IcyNTcbsDKMycMGoU
5BHxVea1FQq8UrCnF57avkUcRLr0HTtJcPXkD+t2NtKUiubDDQIDAQABo1MwUTAd
BgNVHQ4EFgQU69UBuYkYg3mhvbMvHGzRnqVUPTEwHwYDVR0jBBgwFoAU69UBuYkY
g3mhvbMvHGzRnqVUPTEwDwYDVR0TAQH/BAUwAwEB/zANBgkqhkiG9w0BAQsFAAOC
AQEA4Y2AFjFzNaCUglOPg0M/Sqxn+xpg66dMXm9T40yvHyhMeepiPwkPaZM2WJy2
aOAhVH3hOnbmTvSc/3PTiCnmRnJ1LTT/lZNvbggRSa08+86Cq8BO/3u3EsoqeiKf
7QPIujQf91V36oF1pCY69KuJgmt8nrzSYf+SDoY2xEF6VmKBeRhZFzXsCxe78ryd
5Ck1KbCU1f0fgbnmiLcyAG52x2J73TUFy0qaDEeTT5oS12Q9nA8AhDVFUm/21eLj
KZubVfZFNsxvb63bZSNSfRjtDLpzxhUp6Ri/EC1ZsyP0VNt+oSAIN4T2o+aTOYXL
CW5kzLCJwdjr0E5Tu6puQpt9jw==
-----END CERTIFICATE-----
"""
_SIGNED = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": (*("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),),
}


def make_sns(message: Mapping[str, Any], at: datetime = SNS_AT, **headers: str) -> RawRequest:
    return make_request("sns", json.dumps(message).encode(), {**_TEXT, **headers}, at)


def make_paypal(body: bytes = PAYPAL_BODY, at: datetime = PAYPAL_AT, **changed: str) -> RawRequest:
    """Make a request with `changed` headers, whose names have `_` for `-`."""
    changed = {name.replace("_", "-").upper(): value for name, value in changed.items()}
    return make_request("paypal", body, {**PAYPAL_HEADERS, **changed}, at)


def sign_sns(key: RSAPrivateKey | None = None, **members: str | None) -> dict[str, str]:
    """Sign a notification with other members for SNS; None omits a member."""
    message = {name: value for name, value in {**NOTIFICATION, **members}.items() if value is not None}
    names = _SIGNED.get(message["Type"], _SIGNED["Notification"])
    text = "".join(f"{name}\n{message[name]}\n" for name in names if name in message).encode()
    algorithm = SHA1() if message["SignatureVersion"] == "1" else SHA256()  # noqa: S303  # SNS' version 1
    return {**message, "Signature": base64.b64encode((key or signing_key()).sign(text, PKCS1v15(), algorithm)).decode()}


def sign_paypal(
    body: bytes = PAYPAL_BODY, at: datetime = PAYPAL_AT, webhook: str = WEBHOOK, **changed: str
) -> RawRequest:
    """Sign a request with other headers for PayPal."""
    raw = make_paypal(body, at, **changed)
    parts = (raw.headers["paypal-transmission-id"], raw.headers["paypal-transmission-time"], webhook)
    text = "|".join([*parts, str(zlib.crc32(body))]).encode()
    signature = base64.b64encode(signing_key().sign(text, PKCS1v15(), SHA256())).decode()
    return msgspec.structs.replace(raw, headers={**raw.headers, "paypal-transmission-sig": signature})


def sns_verifier(pem: bytes | None = SNS_PEM, *topics: TopicArn, **options: Any) -> Verifier:  # noqa: ANN401
    """Return the verifier of a source, with `pem` as the cached certificate."""
    source = Source(name="sns", preset="sns", topics=list(topics or [TOPIC]), **options)
    verifier = build_verifier(source, PRESETS["sns"], {})
    _add(verifier, SignedMessage, f"https://{SNS_HOST}{SNS_PATH}", pem, SNS_AT)
    return verifier


def paypal_verifier(pem: bytes | None = PAYPAL_PEM, *webhooks: Secret, **options: Any) -> Verifier:  # noqa: ANN401
    """Return the verifier of a source, with `pem` as the cached certificate."""
    source = Source(name="paypal", preset="paypal", secrets=list(webhooks or [Secret(WEBHOOK)]), **options)
    verifier = build_verifier(source, PRESETS["paypal"], {})
    _add(verifier, Transmission, f"https://{PAYPAL_HOST}{PAYPAL_PATH}", pem, PAYPAL_AT)
    return verifier


def _add(
    verifier: Verifier, kind: type[SignedMessage | Transmission], place: str, pem: bytes | None, at: datetime
) -> None:
    """Cache a certificate under its URL, if there is one."""
    if pem is None:
        return
    (proof,) = [each for each in verifier.proofs if isinstance(each, kind)]
    url = proof.certificates.url(place)
    assert url is not None
    proof.certificates.add(url, pem, at)


def with_token(token: str) -> UrlTokenAuth:
    return UrlTokenAuth(secrets=[Secret(token)])


def find_fetched(verifier: Verifier, raw: RawRequest) -> str | None:
    """Return the URL of the certificate that a request makes the receiver fetch, or None."""
    try:
        find_refusal(verifier, raw)
    except CertificateNeeded as needed:
        return str(needed.missing.url)
    return None
