"""Files of `inbox init`: for every preset and database a configuration that passes the check."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import OKPAlgorithm

from inbox.loader.load import load_text
from inbox.sources import PRESETS
from relay import check
from relay.cli.starter import DATABASES, starter

KEY = json.loads(OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate().public_key()))
ECDSA_KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
VALUES = {
    "ADYEN_SECRET": "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056",
    "SECEVENT_SECRET": json.dumps({"keys": [{**KEY, "kid": "one", "alg": "EdDSA", "use": "sig"}]}),
    "STANDARD_WEBHOOKS_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "DISCORD_SECRET": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "SENDGRID_SECRET": b64encode(ECDSA_KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode(),
}


@pytest.mark.parametrize("database", DATABASES)
def test_it_passes_the_check_once_its_variables_are_set(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "inbox.toml"
    monkeypatch.setenv("INBOX_CONFIG", str(file))
    # A preset's own lines are the same whatever the database.
    for preset in PRESETS if database == "sqlite" else ("custom", "github", "trivore"):
        text, variables = starter(preset, database)
        environment = {name: VALUES.get(name, "secret") for name in variables}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        file.write_text(text, encoding="utf-8")
        loaded = load_text(text, environment=environment)
        assert check.findings(loaded, file, environment) == [], text
        assert set(environment) == {word for word in environment if f"env:{word}" in text}
        unset = load_text(text, environment={})
        for name in environment:
            monkeypatch.delenv(name)
        assert len(unset.mistakes) + sum(len(unset.further_mistakes(start)) for start in check.STARTS.values()) >= len(
            environment
        )
