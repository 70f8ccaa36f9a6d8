"""A receiver does not start without a key that can be used."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.processes import site
from tests.sources.test_secevent import AUDIENCE, ISSUER

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
