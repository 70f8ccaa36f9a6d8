"""Every mistake at once, each with its line: those of the file, of expressions, of secrets and of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from inbox.config.mistakes import Mistake, TomlText
from inbox.errors import ConfigError
from inbox.loader.load import load_file, load_text
from inbox.receiver.app import endpoints_of
from relay.daemon.generation import prepare

MISTAKEN = """\
[alert]
x = 1
[sources.trivore]
preset = "trivor"
auth = { kind = "bearer", secrets = ["env:NOT_THERE"] }
[sources.misshapen]
preset = 1
[sources.fine]
preset = "trivore"
auth = { kind = "bearer", secrets = [
  "env:NOT_THERE",
] }
[[sources.fine.sweeps]]
api = "identity"
path = "/user"
entity_type = "USER"
every = "1h"
[[sources.fine.sweeps]]
api = "sound"
path = "/group"
entity_type = "GROUP"
id = "group_id["
every = "1h"
[apis.identity]
base_url = "http://127.0.0.1:1"
auth = { kind = "basic", user = "u", password = "env:NOT_THERE" }
[destinations.crm]
kind = "sync"
base_url = "https://crm.example.com"
auth = { kind = "oauth2", token_url = "https://[", client_id = "id", client_secret = "env:NOT_THERE" }
ca_file = "/not/there.pem"
[destinations.misshapen]
kind = "forward"
[routes.to-misshapen]
source = "misshapen"
destination = "misshapen"
[routes.users]
source = "fine"
destination = "crm"
[routes.users.sync]
fetch = { api = "identity", path = "/user/{evnt.entity_id}" }
create = { path = "contacts" }
missing = "create"
clear_when_absent = ["phne"]
[routes.users.sync.map]
"odd.name: x" = "entity.["
phone = { function = "no_such_module:name" }
[routes.nowhere]
source = "fin"
destination = "crm"
[apis.sound]
base_url = "https://sound.example.com"
[apis.directory]
base_url = "https://directory.example.com"
auth = { kind = "oauth2", token_url = "https://[", client_id = "id", client_secret = "env:NOT_THERE" }
[routes.groups]
source = "fine"
destination = "crm"
sync.fetch = { api = "directory", path = "/" }
sync.create = { path = "/" }
sync.gone = "skip"
sync.map = { id = "event.entity_id" }
"""

EXPECTED = """\
1: [alert]: unknown key; did you mean 'alerts'?
4: [sources.trivore] preset: there is no preset 'trivor'; did you mean 'trivore'?
7: [sources.misshapen] preset: expected text in quotes, got a number
10: [sources.fine] auth: the environment variable NOT_THERE is not set
22: [sources.fine.sweeps[1]] id: 'group_id[' is not a JMESPath expression
25: [apis.identity] base_url: 127.0.0.1 is loopback; allow_private = true lets the call out
25: [apis.identity] base_url: is plain http; use https, or set allow_http = true
26: [apis.identity] auth.password: the environment variable NOT_THERE is not set
30: [destinations.crm] auth.client_secret: the environment variable NOT_THERE is not set
31: [destinations.crm] ca_file: can't use ca_file /not/there.pem
32: [destinations.misshapen] url: is missing
40: [routes.users.sync] delete: is missing, and gone = "delete" (the default) needs it
41: [routes.users.sync] fetch.path: 'evnt.entity_id' looks for 'evnt'; did you mean 'event'?
42: [routes.users.sync] create.path: 'contacts' must begin with a slash
44: [routes.users.sync] clear_when_absent: 'phne' is not a field of the map; did you mean 'phone'?
46: [routes.users.sync.map] 'odd.name: x': 'entity.[' is not a JMESPath expression
47: [routes.users.sync.map] phone.function: there is no module 'no_such_module'
48: [routes.nowhere]: 'crm' is a sync destination; add [routes.nowhere.sync] with fetch and map
49: [routes.nowhere] source: there is no source 'fin'; did you mean 'fine'?
55: [apis.directory] auth.client_secret: the environment variable NOT_THERE is not set
55: [apis.directory] auth.token_url: can't be used; write it as https://host/path
"""


def lines_of(error: ConfigError) -> set[str]:
    return set(str(error).splitlines())


def all_mistakes(text: str) -> set[str]:
    """Give what both sides say of it, when they start."""
    file = load_text(text, environment={})
    found: set[str] = set()
    for make in (endpoints_of, prepare):
        with pytest.raises(ConfigError) as caught:
            file.make(make)
        found |= lines_of(caught.value)
    return found


def test_both_sides_tell_every_mistake_at_once_each_with_its_line() -> None:
    found = all_mistakes(MISTAKEN)
    untold = [line for line in EXPECTED.splitlines() if not any(f"inbox.toml:{line}" in each for each in found)]
    assert untold == [], "\n".join(sorted(found))
    unexpected = [each for each in found if not any(f"inbox.toml:{line}" in each for line in EXPECTED.splitlines())]
    assert unexpected == []


def test_a_mistake_in_a_table_is_no_mistake_of_those_that_name_it() -> None:
    found = all_mistakes(MISTAKEN)
    assert not any("to-misshapen" in each for each in found)
    assert not any("there is no source 'misshapen'" in each for each in found)


# --- the database's url


URL = "postgresql+psycopg://relay@db.example.com/inbox"


def database_of(text: str, environment: dict[str, str]) -> str:
    return load_text(f"[database]\n{text}", environment=environment).config.database.url


def test_the_database_url_comes_from_a_variable_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{URL}\n", encoding="utf-8")
    assert database_of('url = "env:DB"', {"DB": URL}) == URL
    assert database_of(f'url = "file:{tmp_path}/url"', {}) == URL
    assert database_of('url = "sqlite:///x.db"', {"INBOX_DATABASE_URL": f"file:{tmp_path}/url"}) == URL


def test_its_password_may_stand_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p@ss&w=rd%\n", encoding="utf-8")
    whole = database_of(f'url = "{URL}"\npassword = "file:{tmp_path}/password"', {})
    assert whole == f"{URL}?password=p%40ss%26w%3Drd%25"
    whole = database_of(f'url = "{URL}?sslmode=require"\npassword = "env:PW"', {"PW": "x"})
    assert whole == f"{URL}?sslmode=require&password=x"


def test_its_schema_stays_whichever_url_counts_unless_that_names_one() -> None:
    text = f'url = "{URL}"\nschema = "apart"\npassword = "env:PW"'
    assert database_of(text, {"PW": "x"}) == f"{URL}?schema=apart&password=x"
    for given in ("postgresql://other/x", "postgresql://other/x?schema=apart"):
        assert database_of(text, {"INBOX_DATABASE_URL": given}) == "postgresql://other/x?schema=apart"
    assert database_of(text, {"INBOX_DATABASE_URL": f"{URL}?schema=mine"}) == f"{URL}?schema=mine"


@pytest.mark.parametrize(
    ("text", "environment", "told"),
    [
        ('url = "env:DB"', {}, "inbox.toml:2: [database] url: the environment variable DB is not set"),
        ('url = "env:DB"', {"DB": ""}, "inbox.toml:2: [database] url: the environment variable DB is empty"),
        ('url = "file:/not/there"', {}, "inbox.toml:2: [database] url: can't read the secret in /not/there"),
        ('url = "ENV:DB"', {}, 'inbox.toml:2: [database] url: would be the secret as it stands; write "env:NAME"'),
        ('url = "$DB"', {}, "inbox.toml:2: [database] url: is not expanded"),
        ("url = 5", {}, "inbox.toml:2: [database] url: expected"),
        ("", {"INBOX_DATABASE_URL": "file:/not/there"}, "INBOX_DATABASE_URL: can't read the secret in /not/there"),
        ("", {"INBOX_DATABASE_URL": "${DB}"}, "INBOX_DATABASE_URL: is not expanded"),
        ('password = "x"', {}, "inbox.toml:2: [database] password: a SQLite file has none; remove it"),
        ('schema = "inbox"', {}, "inbox.toml:2: [database] schema: a SQLite file has no schemas"),
        (
            f'schema = "inbox"\nurl = "{URL}"',
            {"INBOX_DATABASE_URL": "sqlite:///x.db"},
            "inbox.toml:2: [database] schema: a SQLite file has no schemas",
        ),
        ('schema = "Inbox"', {}, "inbox.toml:2: [database] schema: "),
        ('schema = "pg_inbox"', {}, "inbox.toml:2: [database] schema: "),
        (
            'url = "postgresql://me:secret@db/x"\npassword = "x"',
            {},
            "inbox.toml:3: [database] password: the url has one already",
        ),
        (
            'url = "postgresql://me@db/x?password=secret"\npassword = "x"',
            {},
            "inbox.toml:3: [database] password: the url has one already",
        ),
    ],
)
def test_a_url_that_is_not_where_it_should_be_is_a_mistake(text: str, environment: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        database_of(text, environment)
    assert str(caught.value).startswith(told)
    assert "secret@" not in str(caught.value)


def test_no_password_is_in_the_repr_of_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "inbox.toml").write_text(f'[database]\nurl = "{URL}"\npassword = "hush-hush"\n', encoding="utf-8")
    config = load_file(tmp_path / "inbox.toml", {}).config
    assert "hush-hush" in config.database.url
    assert "hush-hush" not in repr(config)


def test_a_table_without_a_header_of_its_own_has_the_line_of_the_first_in_it() -> None:
    read = TomlText("inbox.toml", "\n[source.github]\npreset = 'github'\n", {})
    found = read.locate(Mistake(("source",), "unknown key"))
    assert (found.line, found.key) == (2, "source")
