"""A receiver does not start without a key that can be used, and keeps those it has when the next ones can't be."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.processes import site
from tests.helpers.receiver import posted
from tests.process.test_receiver_reload import refusals, reload
from tests.sources.test_secevent import AUDIENCE, EC, ISSUER, RSA, a_token, jwks

SHARED = json.dumps({"keys": [{"kty": "oct", "kid": "s", "k": "dG9wc2VjcmV0"}]})
TOLD = "[sources.signals] secrets: a"


def config(database_url: str, keys: Path) -> str:
    return f"""
[database]
url = {json.dumps(database_url)}
[sources.signals]
preset = "secevent"
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
secrets = ["file:{keys}"]
"""


def test_it_does_not_start_without_a_usable_key_and_says_why(sqlite_database_url: str, tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    with site(tmp_path, config(sqlite_database_url, keys)) as place:
        keys.write_text(SHARED)
        receiver = place.refused_receiver()
        assert receiver.ends() != 0
        assert TOLD in receiver.output
        assert "dG9wc2VjcmV0" not in receiver.output


def test_old_keys_stay_in_force_when_the_new_document_has_none(sqlite_database_url: str, tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text(jwks(r=RSA))
    with site(tmp_path, config(sqlite_database_url, keys)) as place:
        receiver, port = place.receiver(workers=1)

        def status_of(jti: str) -> int:
            headers = {"Content-Type": "application/secevent+jwt"}
            return posted(port, "/webhooks/signals", a_token(RSA, "RS256", "r", jti=jti), headers)

        keys.write_text(SHARED)
        (told,) = refusals(reload(receiver))
        assert TOLD in told
        assert status_of("1") == 202
        keys.write_text(jwks(e=EC))
        assert refusals(reload(receiver)) == []
        assert status_of("2") == 401
