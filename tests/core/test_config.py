"""The configuration file: its values, and the messages about its mistakes."""

from __future__ import annotations

import json
import tomllib
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import OKPAlgorithm

from inbox.config.mistakes import build, mistakes
from inbox.config.model import ForwardDestination
from inbox.config.sources import BearerAuth
from inbox.config.values import Duration, Secret
from inbox.errors import ConfigError
from inbox.loader.checks import check_links
from inbox.loader.load import config_path, load_text, parse_config, read_config
from inbox.sources import PRESETS
from relay import check
from relay.cli.starter import DATABASES, starter
from tests.docs.pages import PAGES, blocks
from tests.helpers.webhooks import mistake

EXAMPLE = next(block.text for block in blocks(PAGES["docs/reference/configuration.md"]) if block.info == "toml")
"""A file that uses every key."""


def change_example(old: str, new: str) -> str:
    assert EXAMPLE.count(old) == 1, old
    return EXAMPLE.replace(old, new)


# --- mistakes, with their place and the valid values


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('preset = "shopify"', 'presett = "shopify"', "[sources.shop] presett: unknown key; did you mean 'preset'?"),
        (
            '{ kind = "bearer", secrets',
            '{ kind = "x", secrets',
            "[sources.mirror] auth.kind: 'x' is not one of none, basic,",
        ),
        ('{ kind = "bearer", secrets', "{ secrets", "[sources.mirror] auth.kind: is missing"),
        ('kind = "forward"', 'kind = "x"', "[destinations.audit] kind: 'x' is not one of forward, python, slack, sync"),
        ('timeout = "15s"', 'timeout = "15 s"', '[destinations.crm] timeout: expected a duration such as "15s"'),
        ('timeout = "15s"', 'timeout = "0s"', "[destinations.crm] timeout: must be longer than nothing"),
        ("concurrency = 8", "concurrency = 0", "[destinations.crm] concurrency: expected a whole number from 1 to 256"),
        ("concurrency = 8", 'concurrency = "8"', "concurrency: expected a whole number, got text"),
        ('"env:CRM_TOKEN"', "5", '[destinations.crm] auth.token: expected "env:NAME"'),
        ("2027-01-31T00:00:00Z", "2027-01-31T00:00:00", "secrets[1]: expected a date and time with an offset"),
        ('{ value = "env:OLD', '{ not_before = 2028-01-01T00:00:00Z, value = "env:OLD', "secrets[1]: is never valid"),
        (
            'when = { entity_type = ["USER"] }',
            'when = { entity_type = "USER" }',
            "entity_type: expected a list in [ ], got",
        ),
        ("[routes.everything-to-audit]", '[routes."to audit"]', "[routes.'to audit']: a name has 1 to 64 characters"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_would_be_valid(old: str, new: str, expected: str) -> None:
    assert expected in mistake(change_example(old, new))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[database]\nurl = 'x'\n\n[sources.a]\npreset = 'b'\nauth = { kind = 'nine' }\n", 6),
        ("[sources.a]\npreset = 'b'\n\n[sources.a.auth]\n# a comment\nkind = 'nine'\n", 6),
        ("[sources]\na.preset = 'b'\na.auth.kind = 'nine'\n", 3),
        ('[ sources . "a" ]  # quoted\npreset = "b"\n"auth" = { kind = "nine" }\n', 3),
        ("[sources.b]\npreset = 'b'\nauth = { kind = 'none' }\n[sources.a]\npreset = 'b'\nauth={kind='nine'}", 6),
        ("[sources.a]\npreset = 'trivore'\n", 1),
    ],
)
def test_the_line_of_a_mistake_is_found_however_the_file_writes_its_tables(text: str, line: int) -> None:
    assert mistake(text).startswith(f"inbox.toml:{line}: [")


def test_rows_that_recognise_late_duplicates_are_kept_for_a_week() -> None:
    assert "[retention] events: must be at least 7d" in mistake('[retention]\nevents = "6d"\n')
    parse_config('[retention]\nevents = "7d"\n')


def test_a_wrong_value_is_never_shown_where_a_secret_may_stand() -> None:
    assert "hunter2" not in mistake(change_example('"env:CRM_TOKEN"', '["hunter2"]'))
    assert "hunter2" not in mistake(change_example('"env:CRM_TOKEN"', '{ value = "hunter2", x = 1 }'))
    assert "hunter2" not in mistake(
        change_example('auth = { kind = "bearer", token = "env:CRM_TOKEN" }', 'auth = "hunter2"')
    )


TOML_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes() | st.dates() | st.times(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "auth", "sync", "fetch", "name", "x", "value", ""]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@given(st.sampled_from([place for place in places(tomllib.loads(EXAMPLE)) if place]), TOML_VALUES, st.data())
def test_any_value_anywhere_is_valid_or_a_mistake(
    place: tuple[str | int, ...], value: object, data: st.DataObject
) -> None:
    tree = tomllib.loads(EXAMPLE)
    inner: Any = tree
    for key in place[:-1]:
        inner = inner[key]
    key = data.draw(st.sampled_from([place[-1], "unknown"])) if isinstance(inner, dict) else place[-1]
    inner[key] = value
    if not list(mistakes(tree)):
        config = build(tree)
        names = {section: getattr(config, section) for section in ("sources", "apis", "destinations")}
        list(check_links(config, names))  # a tree without mistakes breaks neither of these


# --- the file


def test_the_file_is_the_one_in_inbox_config_or_inbox_toml_here() -> None:
    assert str(config_path({})) == "inbox.toml"
    assert str(config_path({"INBOX_CONFIG": "/etc/relay.toml"})) == "/etc/relay.toml"


def test_a_folder_or_bytes_that_are_no_text_can_not_be_read_and_no_toml_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    for path in (tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(ConfigError, match="can't read"):
            read_config(path)
    assert mistake("[database]\nurl = sqlite") == "inbox.toml is not TOML: Invalid value (at line 2, column 7)"


# --- values


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("15s", 15), ("1.5m", 90), ("2h", 7200), ("1d", 86400)])
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "15", "s", "-1s", "1 s", "1w", "1e3s", "٣s", "15s\n", "367d", "9" * 400 + "d", 15, None]
)
def test_anything_else_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        Duration.parse(text)


def test_a_secret_is_read_from_its_place_or_says_where_it_should_be(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the file\n", encoding="utf-8")
    (tmp_path / "empty").write_text(" \n", encoding="utf-8")
    known = {"NAME": "of the environment", "EMPTY": ""}
    places = (f"file:{tmp_path}/secret", "env:NAME", "bare")
    assert [Secret(place).reveal(known) for place in places] == ["of the file", "of the environment", "bare"]
    missing = {
        "env:EMPTY": "EMPTY is empty",
        "env:NO": "NO is not set",
        "file:/no": "/no",
        f"file:{tmp_path}/empty": "empty",
    }
    for place, told in missing.items():
        with pytest.raises(ConfigError, match=f"^apis.a.auth.token: .*{told}"):
            Secret(place).reveal(known, at="apis.a.auth.token")


MEANT_FOR_A_PLACE = [
    *(f"{prefix}NAME" for prefix in ("ENV:", "Env:", " env:", "env :", "ENV :", "\tenv:")),
    *(f"{prefix}/run/secrets/x" for prefix in ("FILE:", "File:", " file:", "file :", "\nFILE : ")),
    *("env: NAME", "env:NAME ", "file: /x", "file:/x\n", "env:$NAME", "env:${NAME}", "env:{{ name }}"),
    *("file:~/x", "file:$CREDENTIALS_DIRECTORY/x", "file:/run/${NAME}", "file:/run/{{ name }}"),
    *("$NAME", "${NAME}", " $NAME ", "${NAME:-x}", "$(pass show x)", "%NAME%", "{{ name }}", "{{name}}\n"),
    *("", " ", "env:", "file:", " env: ", "\n"),
]


@pytest.mark.parametrize("reference", MEANT_FOR_A_PLACE)
def test_a_text_that_was_meant_to_name_a_place_is_no_secret_and_the_remedy_is_told(reference: str) -> None:
    for written in (reference, {"value": reference}):
        with pytest.raises(ValueError, match=r'write "(env:NAME|file:/path)"') as raised:
            Secret.parse(written)
        assert "NAME" not in reference or reference.strip() not in str(raised.value).replace("env:NAME", "")


OTHERS = [
    *("env:NAME", "env:my-name.x", "file:/run/secrets/x", "file:secret", "file:///x", "file:/a b/c$", "environment:x"),
    *("$2b$12$abcdefghijklmnopqrstuv", "pa$$word", "$", "$ x", "a$NAME", "{}", "{x}", "50%x%y", "s3cret env:x", "x "),
]


@pytest.mark.parametrize("reference", OTHERS)
def test_every_other_text_is_one(reference: str) -> None:
    assert Secret.parse(reference).reference == reference


def test_a_secret_is_never_shown() -> None:
    assert repr(Secret("hunter2")) == "Secret(…)"
    assert "hunter2" not in repr(BearerAuth(secrets=[Secret("hunter2")]))


def test_a_secret_is_valid_from_not_before_until_just_before_not_after() -> None:
    start, end = datetime(2027, 1, 1, tzinfo=UTC), datetime(2027, 2, 1, tzinfo=UTC)
    secret = Secret("x", start, end)
    assert [secret.valid_at(now) for now in (datetime(2026, 12, 31, tzinfo=UTC), start, end)] == [False, True, False]
    assert Secret("x").valid_at(start)


# --- Files of `inbox init`: for every preset and database a configuration that passes the check


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
def test_it_passes_the_check_with_its_variables(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert check.list_findings(loaded, file, environment) == [], text
        assert set(environment) == {word for word in environment if f"env:{word}" in text}
        unset = load_text(text, environment={})
        for name in environment:
            monkeypatch.delenv(name)
        assert len(unset.mistakes) + sum(len(unset.further_mistakes(start)) for start in check.STARTS.values()) >= len(
            environment
        )


def test_a_first_file_for_a_service_on_this_host_may_call_it() -> None:
    text, _ = starter("github", "sqlite", "http://127.0.0.1:9000/hook")
    service = parse_config(text).destinations["service"]
    assert isinstance(service, ForwardDestination)
    assert service.url.reveal() == "http://127.0.0.1:9000/hook"
    assert (service.allow_private, service.allow_http) == (True, True)
