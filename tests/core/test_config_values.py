from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inbox.config.sources import BearerAuth
from inbox.config.values import Duration, Secret
from inbox.errors import ConfigError
from tests.helpers.mistakes import mistake


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("15s", 15), ("1.5m", 90), ("2h", 7200), ("1d", 86400)])
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "15", "s", "-1s", "1 s", "1w", "1e3s", "٣s", "15s\n", "367d", "9" * 400 + "d", 15, None]
)
def test_anything_else_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        Duration.parse(text)


def test_a_secret_is_read_from_its_place_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from the file\n", encoding="utf-8")
    assert Secret("env:NAME").reveal({"NAME": "from the environment"}) == "from the environment"
    assert Secret(f"file:{tmp_path}/secret").reveal({}) == "from the file"
    assert Secret("bare").reveal({}) == "bare"


def test_a_secret_that_is_not_there_says_where_it_should_be(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n", encoding="utf-8")
    for reference, told in [
        ("env:NAME", "NAME is empty"),
        ("env:OTHER", "OTHER is not set"),
        ("file:/no/such", "/no/such"),
        (f"file:{tmp_path}/empty", "is empty"),
    ]:
        with pytest.raises(ConfigError, match=f"^apis.a.auth.token: .*{told}"):
            Secret(reference).reveal({"NAME": ""}, at="apis.a.auth.token")


MEANT_FOR_A_PLACE = [
    *(f"{prefix}NAME" for prefix in ("ENV:", "Env:", " env:", "env :", "ENV :", "\tenv:")),
    *(f"{prefix}/run/secrets/x" for prefix in ("FILE:", "File:", " file:", "file :", "\nFILE : ")),
    *("env: NAME", "env:NAME ", "file: /x", "file:/x\n", "env:$NAME", "env:${NAME}", "env:{{ name }}"),
    *("file:~/x", "file:$CREDENTIALS_DIRECTORY/x", "file:/run/${NAME}", "file:/run/{{ name }}"),
    *("$NAME", "${NAME}", " $NAME ", "${NAME:-x}", "$(pass show x)", "%NAME%", "{{ name }}", "{{name}}\n"),
    *("", " ", "env:", "file:", " env: ", "\n"),
]


@pytest.mark.parametrize("reference", MEANT_FOR_A_PLACE)
def test_what_was_meant_to_name_a_place_is_no_secret_and_it_is_said_what_to_write(reference: str) -> None:
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


def test_the_file_says_on_which_line_such_a_secret_stands() -> None:
    text = '[sources.s]\npreset = "trivore"\nauth = { kind = "bearer", secrets = ["ENV:HUNTER2"] }\n'
    found = mistake(text)
    assert re.match(r"inbox.toml:3: \[sources.s\] auth.secrets\[0\]: .* write \"env:NAME\"", found)
    assert "HUNTER2" not in found


def test_a_secret_is_never_shown() -> None:
    assert repr(Secret("hunter2")) == "Secret(…)"
    assert "hunter2" not in repr(BearerAuth(secrets=[Secret("hunter2")]))


def test_a_secret_is_valid_from_not_before_until_just_before_not_after() -> None:
    start, end = datetime(2027, 1, 1, tzinfo=UTC), datetime(2027, 2, 1, tzinfo=UTC)
    secret = Secret("x", start, end)
    assert [secret.valid_at(now) for now in (datetime(2026, 12, 31, tzinfo=UTC), start, end)] == [False, True, False]
    assert Secret("x").valid_at(start)
