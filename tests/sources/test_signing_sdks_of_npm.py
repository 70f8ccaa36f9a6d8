"""Libraries of providers that are on npm alone, in one program of Node: they accept what is signed here, and sign."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.machine import ROOM

from inbox.clock import SystemClock
from inbox.config.values import Secret
from inbox.sources import PRESETS
from inbox.sources.signing import Message, sign
from tests.sources.presenting import NOW, a_request, a_secret, a_verifier, signed_sample, why_refused

NPM = Path(__file__).parent / "npm"
VERIFYING = ("github", "linear", "notion", "shopify", "zoom")
SIGNING = ("github", "notion")
BODIES = ["{}", '{"a":"€ \\u20ac 😀","b":[1.10,1e3]}', ' {"spaces" : true}\r\n', "no JSON"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]


class Libraries:
    """The installed libraries; one program answers many questions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, questions: Sequence[Mapping[str, object]]) -> list[Any]:
        done = subprocess.run(
            ["node", "sdks.mjs"],  # whichever the machine has
            cwd=self.folder,
            input="\n".join(map(json.dumps, questions)).encode(),
            capture_output=True,
            check=True,
            timeout=60,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def libraries() -> Iterator[Libraries]:
    folder = Path(tempfile.mkdtemp(prefix="inbox-relay-npm-", dir=ROOM))
    shutil.copytree(NPM, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    try:
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        if subprocess.run(command, cwd=folder, timeout=300, check=False).returncode:
            pytest.skip("npm can't install the libraries")
        yield Libraries(folder)
    finally:
        shutil.rmtree(folder)


def test_the_libraries_accept_what_is_signed_here_and_nothing_else(libraries: Libraries) -> None:
    now = SystemClock().now()  # linear's compares with the machine's clock
    asked = []
    for name in VERIFYING:
        raw = signed_sample(name, a_secret(PRESETS[name]), now)
        for number in (0, 1):
            secret = a_secret(PRESETS[name], number)
            asked.append({"name": name, "secret": secret, "body": raw.body.decode(), "headers": dict(raw.headers)})
    answers = libraries.ask(asked)
    assert [bool(answer) for answer in answers] == [True, False] * len(VERIFYING), answers


def test_a_request_that_a_library_signs_is_let_in(libraries: Libraries) -> None:
    asked = [
        {"name": name, "sign": True, "secret": "secret", "body": body} for name in SIGNING for body in BODIES if body
    ]
    for each, headers in zip(asked, libraries.ask(asked), strict=True):
        raw = a_request(str(each["name"]), str(each["body"]).encode(), headers, NOW)
        assert why_refused(a_verifier(str(each["name"]), Secret("secret")), raw) is None, each


def test_zooms_library_answers_the_validation_of_an_url_as_the_preset_does(libraries: Libraries) -> None:
    body = b'{"payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"},"event_ts":1654503849680,"event":"endpoint.url_validation"}'
    preset, secret = PRESETS["zoom"], a_secret(PRESETS["zoom"])
    raw = a_request("zoom", body, sign(preset.signatures[0], secret, Message(body=body), NOW), NOW)
    verifier = a_verifier("zoom", Secret(secret))
    answer = preset.handshake_response(raw, lambda content: verifier.mac(raw, content))
    assert answer is not None
    (theirs,) = libraries.ask([{"name": "zoom", "secret": secret, "body": body.decode(), "headers": dict(raw.headers)}])
    assert json.loads(answer.body) == theirs
