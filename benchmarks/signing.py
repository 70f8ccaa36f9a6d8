"""Cost of verifying one request of each preset that signs, at 1 KiB and at its largest, in microseconds.

Run it with `.venv/bin/python -m benchmarks.signing`. The bar: less than 150 µs at 1 KiB.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from inbox.config.sources import Source
from inbox.config.values import Secret
from inbox.events.event import RawRequest
from inbox.sources import PRESETS
from inbox.sources.credentials import Verifier, verifier_of
from inbox.sources.signing import Message, sign

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BAR_MICROSECONDS = 150.0
ROUNDS = 7
KIB = 1024


def best_of(verifier: Verifier, raw: RawRequest) -> float:
    """The best of some rounds, in microseconds for each request."""
    number = max(3, min(2_000, 20_000_000 // max(len(raw.body), KIB)) // 10)
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(number):
            verifier.verify(raw, NOW)
        rounds.append((time.perf_counter() - begun) / number * 1e6)
    return min(rounds)


def signed(name: str, size: int) -> tuple[Verifier, RawRequest]:
    """A request of so many bytes by a source with two secrets, of which the second one fits."""
    signature = PRESETS[name].signatures[0]
    text = f"{signature.key_prefix}c2VjcmV0c2VjcmV0c2VjcmV0"
    body = b'{"padding":"%b"}' % (b"x" * (size - 14))
    headers = sign(signature, text, Message(id=b"msg_1", body=body), NOW)
    source = Source(name=name, preset=name, secrets=[Secret(f"{text[:-4]}bm90"), Secret(text)])
    raw = RawRequest(name, {key.lower(): value for key, value in headers.items()}, body, NOW)
    return verifier_of(source, PRESETS[name]), raw


def token(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, algorithm: str) -> tuple[Verifier, RawRequest]:
    """A security event token of about 1 KiB."""
    claims = {"iss": "i", "aud": "a", "iat": int(NOW.timestamp()), "jti": "1", "events": {"e": {"x": "x" * 500}}}
    body = jwt.encode(claims, key, algorithm=algorithm).encode()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    source = Source(name="s", preset="secevent", secrets=[Secret(pem)], issuer="i", audience="a")
    return verifier_of(source, PRESETS["secevent"]), RawRequest("s", {}, body, NOW)


def main() -> int:
    """Print the figures; exit status 1 if one at 1 KiB misses the bar."""
    made = {name: signed(name, KIB) for name, preset in PRESETS.items() if preset.signatures}
    made["secevent RS256"] = token(rsa.generate_private_key(65537, 2048), "RS256")
    made["secevent ES256"] = token(ec.generate_private_key(ec.SECP256R1()), "ES256")
    figures = {}
    for name, (verifier, raw) in made.items():
        figures[name] = {"1 KiB": round(best_of(verifier, raw), 1)}
        preset = PRESETS.get(name)
        if preset is not None:
            largest = best_of(*signed(name, preset.max_body))
            figures[name][f"{preset.max_body // KIB} KiB"] = round(largest, 1)
    print(msgspec.json.format(msgspec.json.encode(figures)).decode())
    return 0 if all(each["1 KiB"] < BAR_MICROSECONDS for each in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
