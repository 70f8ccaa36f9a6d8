"""Accounts of the page: `relay web passwd` and `token`, the checks of `[web]`, limits of sign-ins, and database roles."""

from __future__ import annotations

import os
import re
import shlex
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path

import msgspec
import pytest
import typer
from sqlalchemy import Engine
from typer.testing import CliRunner

from inbox.config.model import Config, Web
from inbox.config.values import DatabaseUrl
from inbox.errors import ConfigError
from inbox.exposure import exposure_warnings
from inbox.loader.load import parse_config
from relay.accounts import check_accounts, hash_token, is_password, parse_entries
from relay.check import STARTS
from relay.cli.output import WRONG_USE
from relay.cli.web import become_gunicorn
from relay.cli.web import web_app as app
from relay.web import guard
from relay.web.query import FORM_TYPE
from relay.web.reading import Screen
from relay.web.screens import SCREENS
from tests.helpers.databases import Granted, grant_roles
from tests.helpers.page import (
    OPERATOR,
    OTHER_PASSWORD,
    PASSWORD,
    TOKEN,
    VIEWER,
    Entrance,
    Page,
    behind_proxy,
    entrance,
    on_database,
    serving,
    token,
    user,
)
from tests.helpers.relaying import CONFIG, FakeClock, Steps
from tests.helpers.tables import rows
from tests.helpers.worlds import WORDS, fill_page

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
def test_an_unusable_address_is_reported_in_one_sentence(bind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(typer.Exit) as ended:
        become_gunicorn("no.settings", bind.format(taken=other.getsockname()[1]), None)
    assert ended.value.exit_code == WRONG_USE
    assert re.fullmatch("error: .*can't listen on .*--bind\n|.*can't listen on .*--bind\n", capsys.readouterr().err)


def test_a_token_is_printed_once_and_only_its_hash_is_stored(tmp_path: Path) -> None:
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
def test_wrong_use_ends_with_2_and_writes_nothing(words: str, given: str) -> None:
    done = Run.invoke(app, shlex.split(words), input=given)
    assert (done.exit_code, done.stdout, bool(done.stderr)) == (2, "", True)


# --- the configuration


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
        parse_config(f"[web]\n{text}\n")


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
def test_the_url_of_viewers_must_be_another_role_of_the_same_database(database: str, viewer_url: str) -> None:
    with pytest.raises(ConfigError, match=r"\[web\] viewer_url"):
        parse_config(f'{database}[web]\nviewer_url = "{viewer_url}"\n', environment={})


def test_the_url_of_viewers_may_come_from_the_environment_and_is_never_printed() -> None:
    given = "postgresql+psycopg://v:secret@replica/inbox"
    text = f'{_POSTGRES}schema = "s"\n[web]\nviewer_url = "env:VIEWERS"\n'
    config = parse_config(text, environment={"VIEWERS": given})
    assert config.web.viewer_url == f"{given}?schema=s"
    assert "secret" not in repr(config)


def test_a_page_without_users_or_a_proxy_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="configures no access to the page: write a users file with `relay web passwd"
    ):
        check_accounts(Web())
    check_accounts(Web(proxy=behind_proxy("127.0.0.1")))


def test_a_check_reads_both_files_and_names_their_lines(tmp_path: Path) -> None:
    users, tokens = tmp_path / "users", tmp_path / "tokens"
    users.write_text(f"\n\n{user('anna')}ben\n")
    tokens.write_text("# no token yet\n")
    config = parse_config(f'[web]\nusers = "file:{users}"\ntokens = "file:{tokens}"\n')
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


def test_a_users_file_that_others_may_read_is_a_warning() -> None:
    with tempfile.TemporaryDirectory(prefix="users-") as folder:  # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        users = Path(folder) / "users"
        users.write_text(user("anna"))
        config = parse_config(f'[web]\nusers = "file:{users}"\n')
        users.chmod(0o644)
        (said,) = exposure_warnings(Path(folder) / "inbox.toml", config)
        assert f"`chmod o= {users}`" in said
        users.chmod(0o640)
        assert not [*exposure_warnings(Path(folder) / "inbox.toml", config)]


# --- Guessing passwords is slow, takes the same time for every name, is logged, and does not burden the page


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parameters of each computed hash."""
    settings: list[str] = []

    def count(password: str, hashed: str) -> bool:
        settings.append(hashed.split("$")[3])
        return is_password(password, hashed)

    monkeypatch.setattr(guard, "is_password", count)
    return settings


def test_after_ten_wrong_passwords_even_the_right_one_has_to_wait(door: Entrance, hashed: list[str]) -> None:
    assert [door.sign_in("anna", "wrong").status_code for _ in range(11)] == [401] * 10 + [429]
    denied = door.sign_in()
    assert (denied.status_code, denied.headers["retry-after"], "set-cookie" in denied.headers) == (429, "30", False)
    assert len(hashed) == 10, "a limited attempt costs nothing"
    assert door.get("/rejected.json", authorization=f"Bearer {TOKEN}").status_code == 200, "tokens are not limited"
    assert door.sign_in("veikko", OTHER_PASSWORD).status_code == 303, "others do not wait"
    door.later(30)
    assert door.sign_in().status_code == 303


def test_behind_a_listed_proxy_each_browser_has_its_own_limit(page_config: Config, tmp_path: Path) -> None:
    with entrance(page_config, tmp_path, forwarding=("127.0.0.1", "10.0.0.0/8")) as door:

        def sign_in(number: int, forwarded: str) -> int:
            form = {"name": f"name{number}", "password": PASSWORD}
            return door.post("/sign-in", form, x_forwarded_for=forwarded).status_code

        answers = [sign_in(number, f"192.0.2.{number}, 198.51.100.7, 10.0.0.9") for number in range(32)]
        assert answers == [401] * 30 + [429] * 2, "the browser's own header is ignored"
        assert sign_in(40, "198.51.100.8, 10.0.0.9") == 401, "others do not wait"
        assert sign_in(41, "2001:db8::7") == 401


@pytest.mark.parametrize("name", ["unknown", "", "x" * 64, "anna\x00", "\U0001f600", "anna:operator"])
def test_an_unknown_name_costs_as_much_as_a_known_one(door: Entrance, hashed: list[str], name: str) -> None:
    known = door.sign_in("anna", "wrong")
    unknown = door.sign_in(name, "wrong")
    assert hashed == ["m=8,t=1,p=1"] * 2
    assert (known.status_code, unknown.status_code) == (401, 401)


@pytest.mark.parametrize("field", ["name", "password"])
def test_a_too_long_field_is_refused_before_it_is_processed(
    door: Entrance, hashed: list[str], monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """Sorting combining marks takes quadratic time; a form may have this many."""
    monkeypatch.setattr(guard, "visible", pytest.fail)
    form = {"name": "anna", "password": PASSWORD, field: "\u0301" * 5_000 + "\u0316" * 5_000}
    answer = door.post("/sign-in", form)
    assert (answer.status_code, "at most" in answer.text, "\u0301" * 65 in answer.text) == (400, True, False)
    assert hashed == []


def test_every_failed_sign_in_is_logged_in_one_line_without_the_password(
    door: Entrance, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gunicorn.error")
    door.sign_in("anna\n2026 forged \u202eline", "secret-guess")
    door.sign_in()
    said = [each.getMessage() for each in caplog.records if each.name == "gunicorn.error"]
    assert said == [
        r"failed sign-in as anna\n2026 forged \u202eline from 127.0.0.1",
        "anna has signed in from 127.0.0.1 as operator",
    ]
    assert "secret-guess" not in caplog.text
    assert PASSWORD not in caplog.text


def test_simultaneous_sign_ins_are_hashed_one_by_one_and_too_many_get_429(
    door: Entrance, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, one_by_one, overlaps = threading.Event(), threading.Lock(), []

    def slow(_password: str, _hashed: str) -> bool:
        overlaps.append(not one_by_one.acquire(blocking=False))
        going.wait(20)
        one_by_one.release()
        return False

    monkeypatch.setattr(guard, "is_password", slow)
    with ThreadPoolExecutor(14) as pool:
        tries = [pool.submit(door.sign_in, f"n{number}", "x" * 12) for number in range(14)]
        denied = [each.result() for each in islice(as_completed(tries, timeout=20), 4)]
        assert door.get("/rejected.json", authorization=f"Bearer {TOKEN}").status_code == 200, "the page goes on"
        going.set()
    assert not any(overlaps)
    assert [(each.status_code, each.headers["retry-after"]) for each in denied] == [(429, "5")] * 4


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"name=anna&name=ben&password=x", FORM_TYPE),
        (b"name=%ff&password=x", FORM_TYPE),
        (b"\xff\xfe", FORM_TYPE),
        (b'{"name": "anna"}', "application/json"),
        (b"&".join(b"a%d=1" % n for n in range(600)), FORM_TYPE),
        (b"name=" + b"x" * 70_000, FORM_TYPE),
        (b"", ""),
    ],
)
def test_a_malformed_form_is_refused_and_costs_nothing(
    door: Entrance, hashed: list[str], body: bytes, content_type: str
) -> None:
    sent = {"Sec-Fetch-Site": "same-origin", "Content-Type": content_type}
    assert door.send("POST", "/sign-in", sent, data=body).status_code in {400, 413}
    assert hashed == []


# --- The page with the roles of `inbox roles`: each connection has the rights that its people need, and no others


PARTS = {"seq": 1, "source": "trivore", "type": "USER", "name": "strict"}
SELECTIONS: Mapping[str, Mapping[str, object]] = {
    "replay": {"route": "strict"},
    "retry": {"route": "latest"},
    "cancel": {"seq": 2},
    "unblock": {"route": "blocking"},
    "pause": {"route": "strict"},
    "resume": {"destination": "audit"},
    "sweep": {"source": "trivore"},
    "prune": {},
    "erase": {"source": "trivore", "entity_type": "USER", "entity_id": "u3", "again": "u3"},
    "readmit": {"source": "trivore"},
}


@pytest.fixture(scope="module")
def roles(module_database_url: str, module_engine: Engine) -> Iterator[Granted]:
    with grant_roles(module_database_url, f"p{os.getpid()}") as made:
        fill_page(Steps(module_engine, clock=FakeClock()))
        yield made


@pytest.fixture(scope="module", params=["reader", "reader_without_payloads"])
def page(request: pytest.FixtureRequest, roles: Granted) -> Iterator[Page]:
    """A page whose operators have the role `web`, and whose viewers have a role of a reader."""
    config = on_database(CONFIG, roles.url("web"))
    web = msgspec.structs.replace(config.web, viewer_url=DatabaseUrl(roles.url(request.param)))
    with serving(msgspec.structs.replace(config, web=web), FakeClock()) as made:
        yield made


def path_of(screen: Screen) -> str:
    given = {**PARTS, "id": "u1" if screen.name == "entity" else 1}
    needed = [field.name for field in msgspec.structs.fields(screen.query) if field.required]
    query = "&".join(f"{name}={given[name]}" for name in needed if "{" not in screen.path)
    return f"{screen.path.format_map(given)}?{query}"


def test_every_screen_answers_to_both_roles(page: Page) -> None:
    answers = {
        (screen.name, actor.role): page.get(path_of(screen), actor).status_code
        for screen in SCREENS
        if screen.name != "difference"  # which only operators see
        for actor in (OPERATOR, VIEWER)
    }
    assert set(answers.values()) == {200}, answers


def test_operators_may_plan_and_request_every_act(page: Page, module_engine: Engine) -> None:
    """A missing right would be a 500; 400 and 409 mean that an act has nothing to do here."""
    for kind in SELECTIONS:
        assert page.get(f"/acts/{kind}", params=SELECTIONS[kind]).status_code in {200, 400}, kind
        order = {**SELECTIONS[kind], "reason": "a test"}
        assert page.post(f"/api/v1/acts/{kind}", json=order).status_code in {202, 400, 409}, kind
    found = rows(module_engine, "SELECT DISTINCT kind FROM relay_command WHERE asked_by = 'olga'")
    assert {row["kind"] for row in found} >= {"replay", "unblock", "pause", "resume", "prune"}


def test_operators_may_stop_and_continue_a_command(page: Page, module_engine: Engine) -> None:
    for step, state in (("stop", "cancelled"), ("continue", "running")):
        assert page.post(f"/acts/{step}", {"command": 1, "reason": "the wrong route"}).status_code == 303
        assert rows(module_engine, "SELECT state FROM relay_command WHERE id = 1") == [{"state": state}]


def test_both_roles_may_record_and_see_a_reveal(page: Page, module_engine: Engine) -> None:
    for actor in (OPERATOR, VIEWER):
        before = rows(module_engine, REVEALS)
        assert WORDS["body"] in page.post("/events/1/reveal", {"reason": "a ticket"}, actor).text
        assert rows(module_engine, REVEALS) == [*before, {"who": actor.name}]


REVEALS = "SELECT who FROM payload_reveal WHERE seq = 1 ORDER BY id"


def test_the_role_of_the_page_may_not_change_commands(roles: Granted) -> None:
    """tests/store/test_roles.py has the tables that it may not write at all."""
    for change in ("asked_by = 'x'", "selection = '{}'", "affected = 1"):
        assert not roles.allows("web", f"UPDATE relay_command SET {change}")
