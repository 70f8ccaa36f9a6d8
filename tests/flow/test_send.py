"""`inbox send` signs as the provider would: what it sends is taken in, for every preset with a shared secret."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.errors import ConfigError
from inbox.loader.load import parse_config
from inbox.sources import PRESETS
from inbox.sources.base import Sample
from relay.cli import provider
from tests.helpers.receiver import serve_receiver
from tests.helpers.scripted import answer, serving
from tests.sources.presenting import SIGNING, SIGNING_IN_BODY, WITH_SAMPLE, make_secret

CUSTOM = """
[sources.custom]
preset = "custom"
secrets = ["s3cret"]
public_url = "https://hooks.example.com/webhooks/custom"
event = { type = "body.type", id = "body.id" }
signature = { header = "X-Sig", timestamp_header = "X-Time", timestamp_unit = "ms", content = "{url}{timestamp}{body}" }
[sources.secevent]
preset = "secevent"
secrets = ['{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE"}]}']
issuer = "i"
audience = "a"
"""


def table(name: str) -> str:
    if name in SIGNING_IN_BODY:
        proof = f'secrets = ["{make_secret(PRESETS[name])}"]'
    elif name in SIGNING:
        proof = f'secrets = ["{make_secret(PRESETS[name])}"]\npublic_url = "https://hooks.example.com/webhooks/{name}"'
    else:
        unsigned = "unsigned = true\n" if PRESETS[name].always_signs else ""  # only its provider can sign
        proof = f'{unsigned}auth = {{ kind = "none" }}'
    return f'[sources.{name}]\npreset = "{name}"\n{proof}\n'


@pytest.fixture(scope="module")
def config(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("send") / "inbox.db"
    path.write_bytes(sqlite_template.read_bytes())
    tables = [f'[database]\nurl = "sqlite:///{path}"', *map(table, WITH_SAMPLE), CUSTOM]
    return parse_config("\n".join(tables))


@pytest.fixture(scope="module")
def url(config: Config) -> Iterator[str]:
    with serve_receiver(config.database.url, config) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("name", WITH_SAMPLE)
def test_a_sample_is_accepted_and_the_same_again_is_a_duplicate(config: Config, url: str, name: str) -> None:
    at = SystemClock().now()
    source = config.sources[name]
    sample = provider.sample_of(source, ("issue", "1"), "issue.updated", at)
    first, second = (provider.send(source, url, sample, at) for _ in range(2))
    assert first.status == second.status == PRESETS[name].status
    if (own := PRESETS[name].acknowledgement) is not None:
        assert first.data == second.data == own[1]
    elif not PRESETS[name].answers_empty:
        assert (b'"accepted"' in first.data, b'"duplicate"' in second.data) == (True, True)


def test_a_custom_source_is_sent_a_body_of_ones_own(config: Config, url: str) -> None:
    at, custom = SystemClock().now(), config.sources["custom"]
    sample = Sample(b'{"type": "t", "id": "1"}')
    assert provider.send(custom, url, sample, at).status == 200
    assert provider.send(custom, url, sample, at - timedelta(minutes=6)).status == 401
    with pytest.raises(ConfigError, match="give a body of your own with --body"):
        provider.sample_of(custom, ("a", "1"), "t", at)


def test_a_body_of_ones_own_has_an_id_where_the_signature_covers_one(config: Config, url: str) -> None:
    at = SystemClock().now()
    mine = Sample(b'{"type": "user.created", "data": {"id": "u7"}}')
    replies = [
        provider.send(config.sources["standard-webhooks"], url, sample, at)
        for sample in (mine, mine, Sample(mine.body, {"Webhook-Id": "msg_1"}))
    ]
    assert [b"accepted" in reply.data for reply in replies] == [True, False, True]
    assert b"duplicate" in replies[1].data


def test_a_source_whose_sender_alone_can_sign_is_told_so(config: Config, url: str) -> None:
    with pytest.raises(ConfigError, match="only its provider can sign"):
        provider.send(config.sources["secevent"], url, Sample(b"a.b.c"), SystemClock().now())


@pytest.mark.parametrize("given", ["tok€n", "tok\nn", "http://127.0.0.1:80000", "http://[::1"])
def test_a_value_that_does_not_fit_http_is_one_sentence_without_it(config: Config, url: str, given: str) -> None:
    sample = Sample(b'{"type": "t", "id": "1"}', {"X-Token": given})
    with pytest.raises(ConfigError, match="the request can't be sent") as refused:
        provider.send(config.sources["custom"], given if given.startswith("http") else url, sample, SystemClock().now())
    assert given not in str(refused.value)


def test_no_redirect_and_no_proxy_of_the_environment_gets_the_secret(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(answer(200)) as elsewhere, serving(answer(302, Location=elsewhere.url)) as receiver:
        monkeypatch.setenv("http_proxy", elsewhere.url)
        custom, sample = config.sources["custom"], Sample(b'{"type": "t", "id": "1"}')
        sent = provider.send(custom, receiver.url, sample, SystemClock().now())
        assert sent.status == 302
        assert elsewhere.seen == []
