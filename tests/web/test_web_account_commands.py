"""`relay web passwd`, `relay web token`, and the checks of `[web]` in a configuration."""

from __future__ import annotations

import re
import shlex
import socket
import tempfile
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from inbox.config.model import Config, Web
from inbox.errors import ConfigError
from inbox.exposure import exposure_warnings
from inbox.loader.load import parse_config
from relay.accounts import (
    check_accounts,
    hash_token,
    is_password,
    parse_entries,
)
from relay.check import STARTS
from relay.cli.output import WRONG_USE
from relay.cli.web import become_gunicorn
from relay.cli.web import web_app as app
from tests.helpers.page import PASSWORD, behind_proxy, token, user

Run = CliRunner()


def test_a_password_from_a_pipe_becomes_a_line(tmp_path: Path) -> None:
    done = Run.invoke(app, ["passwd", "anna", "--role", "operator"], input=f"{PASSWORD}\nsecond line\n")
    assert done.exit_code == 0
    assert PASSWORD not in done.output
    entry = parse_entries(done.stdout, "out", "users")["anna"]
    assert entry.role == "operator"
    assert is_password(PASSWORD, entry.hash)
    file = tmp_path / "users"
    for role in ("operator", "viewer"):
        done = Run.invoke(app, ["passwd", "anna", "--role", role, "--into", str(file)], input=PASSWORD)
        assert (done.exit_code, done.stdout) == (0, "")
    assert {entry.role for entry in parse_entries(file.read_text(), "users", "users").values()} == {"viewer"}


@pytest.mark.parametrize("bind", ["127.0.0.1:{taken}", "127.0.0.1:80000", "nowhere.invalid:8025", f"{'a' * 64}:8025"])
def test_an_address_that_can_not_be_listened_at_is_one_sentence(bind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(typer.Exit) as ended:
        become_gunicorn("no.settings", bind.format(taken=other.getsockname()[1]), None)
    assert ended.value.exit_code == WRONG_USE
    assert re.fullmatch("error: .*can't listen on .*--bind\n|.*can't listen on .*--bind\n", capsys.readouterr().err)


def test_a_token_is_printed_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    done = Run.invoke(app, ["token", "grafana", "--role", "viewer", "--into", str(file)])
    made = done.stdout.strip()
    assert made.startswith("irw_")
    assert made not in file.read_text()
    assert parse_entries(file.read_text(), "tokens", "tokens")["grafana"].hash == hash_token(made)
    shown = Run.invoke(app, ["token", "grafana", "--role", "viewer"]).stdout.splitlines()
    assert shown[1] == f"grafana:viewer:{hash_token(shown[0])}"


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("passwd anna --role boss", PASSWORD),
        ("passwd an:na --role viewer", PASSWORD),
        ("passwd '' --role viewer", PASSWORD),
        ("passwd anna --role viewer", "short\n"),
        ("passwd anna --role viewer", ""),
        ("token 'a\nb' --role viewer", ""),
        ("passwd anna --role viewer --into /no/such/folder/users", PASSWORD),
        ("token anna --role viewer --into /", ""),
    ],
)
def test_wrong_use_is_said_and_writes_nothing(words: str, given: str) -> None:
    done = Run.invoke(app, shlex.split(words), input=given)
    assert (done.exit_code, done.stdout, bool(done.stderr)) == (2, "", True)


# --- the configuration


def of(text: str, environment: dict[str, str] | None = None) -> Config:
    return parse_config(text, environment=environment)


@pytest.mark.parametrize(
    "text",
    [
        'origin = "https://relay.example.com/page"',
        'origin = "relay.example.com"',
        'session = "10s"',
        'session = "32d"',
        'users = { value = "file:/u", not_after = 2027-01-31T00:00:00Z }',
        'proxy = { networks = ["::/0"] }',
        "proxy = { networks = [] }",
        'proxy = { networks = ["127.0.0.1"], header = "Host" }',
        'proxy = { networks = ["127.0.0.1"], header = "X Y" }',
        'user = "file:/u"',
    ],
)
def test_a_mistake_in_the_table_is_named(text: str) -> None:
    key = "users" if text.startswith("user ") else text.partition(" ")[0]
    with pytest.raises(ConfigError, match=rf"inbox.toml:\d+: \[web.*{key}"):
        of(f"[web]\n{text}\n")


_POSTGRES = '[database]\nurl = "postgresql+psycopg://relay@db/inbox"\n'


@pytest.mark.parametrize(
    ("database", "viewer_url"),
    [
        ("", "sqlite:///other.db"),  # a file has no roles
        (_POSTGRES, "postgresql+psycopg://relay@db/inbox"),  # the database's own
        (_POSTGRES, "postgresql+psycopg://v@db/other"),
        (_POSTGRES, "env:NOT_THERE"),
    ],
)
def test_viewers_get_a_url_of_their_own_or_none(database: str, viewer_url: str) -> None:
    with pytest.raises(ConfigError, match=r"\[web\] viewer_url"):
        of(f'{database}[web]\nviewer_url = "{viewer_url}"\n', {})


def test_the_url_of_viewers_may_stand_elsewhere_and_is_never_printed() -> None:
    given = "postgresql+psycopg://v:secret@replica/inbox"
    config = of(f'{_POSTGRES}schema = "s"\n[web]\nviewer_url = "env:VIEWERS"\n', {"VIEWERS": given})
    assert config.web.viewer_url == f"{given}?schema=s"
    assert "secret" not in repr(config)


def test_nobody_may_use_the_page_unless_somebody_is_named() -> None:
    with pytest.raises(
        ConfigError, match="configures no access to the page: write a users file with `relay web passwd"
    ):
        check_accounts(Web())
    check_accounts(Web(proxy=behind_proxy("127.0.0.1")))


def test_a_check_reads_both_files_and_names_their_lines(tmp_path: Path) -> None:
    users, tokens = tmp_path / "users", tmp_path / "tokens"
    users.write_text(f"\n\n{user('anna')}ben\n")
    tokens.write_text("# nobody yet\n")
    config = of(f'[web]\nusers = "file:{users}"\ntokens = "file:{tokens}"\n')
    for check in (STARTS["page"], lambda config: check_accounts(config.web)):
        with pytest.raises(ConfigError) as raised:
            check(config)
        assert str(raised.value).splitlines() == [
            f"[web] users: {users}, line 4: expected NAME:ROLE:HASH, as written by `relay web passwd` and `relay web token`",
            "[web] tokens: has no account; add one with `relay web token NAME --role operator`",
        ]
    users.unlink()
    tokens.write_text(token("t", "irw_x", "viewer"))
    with pytest.raises(ConfigError, match=r"\[web\] users: can't read the secret in .*users: ") as missing:
        check_accounts(config.web)
    assert str(missing.value).endswith(f"; write it with `relay web passwd NAME --role operator --into {users}`")


def test_a_users_file_that_others_may_read_is_an_open_door() -> None:
    with tempfile.TemporaryDirectory(prefix="users-") as folder:  # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        users = Path(folder) / "users"
        users.write_text(user("anna"))
        config = of(f'[web]\nusers = "file:{users}"\n')
        users.chmod(0o644)
        (said,) = exposure_warnings(Path(folder) / "inbox.toml", config)
        assert f"`chmod o= {users}`" in said
        users.chmod(0o640)
        assert not [*exposure_warnings(Path(folder) / "inbox.toml", config)]
