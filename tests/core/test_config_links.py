"""Mistakes between tables and in maps: all are reported at once, each with its line and the valid values."""

from __future__ import annotations

from pathlib import Path

import pytest

from inbox.config.mistakes import Mistake, TomlText
from inbox.errors import ConfigError, collect_config_errors
from inbox.loader.load import load_file, load_text, parse_config
from inbox.receiver.app import make_endpoints
from relay.daemon.generation import prepare
from tests.helpers.webhooks import mistake

LINKS = """\
[sources.trivore]
preset = "trivore"
auth = { kind = "none" }
[apis.identity]
base_url = "https://id.example.com"
[destinations.crm]
kind = "sync"
base_url = "https://crm.example.com"
[destinations.audit]
kind = "forward"
url = "https://audit.example.com/hook"
[routes.all]
source = "trivore"
destination = "audit"
[routes.users]
source = "trivore"
destination = "crm"
[routes.users.sync]
fetch = { api = "identity", path = "/user/{event.entity_id}" }
find = { path = "/contacts", verify = false }
create = { path = "/contacts" }
update = { path = "/contacts/{target.id}" }
delete = { path = "/contacts/{ target.id }" }
map = { email = "entity.email" }
"""


def change_links(*changes: tuple[str, str]) -> str:
    text = LINKS
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


NO_CREATE = ('create = { path = "/contacts" }\n', "")
NO_DELETE = ('delete = { path = "/contacts/{ target.id }" }\n', "")


def test_a_sync_table_needs_a_sync_destination() -> None:
    expected = "18: [routes.users.sync]: 'audit' is not a sync destination; give it kind = \"sync\", or"
    assert f"inbox.toml:{expected}" in mistake(change_links(('= "crm"', '= "audit"')))


FETCH = 'fetch = { api = "identity", path = "/user/{event.entity_id}" }\n'


def test_a_sync_without_a_fetch_is_strict_and_reads_bodies_alone() -> None:
    text = change_links((FETCH, ""))
    config = parse_config(text)
    assert [config.get_ordering(route) for route in config.routes.values()] == ["strict", "strict"]
    assert parse_config(LINKS).get_ordering(parse_config(LINKS).routes["users"]) == "latest"
    told = mistake(text.replace("[routes.users.sync]", 'lane = "event"\n[routes.users.sync]') + SWEEP)
    assert "[routes.users] lane: lets an older body overwrite a newer one" in told
    assert "event_body: is missing: route 'users' has no fetch, so it maps the body" in told
    assert parse_config(f'{text}{SWEEP}event_body = {{ email = "mail" }}\n').sources["trivore"].sweeps


@pytest.mark.parametrize(
    ("entity", "preset", "expected"),
    [
        (
            '{ type = "user", id = "$.sender.id" }',
            "github",
            "id: '$.sender.id' is a JSONPath, and this takes a JMESPath; write 'body.sender.id'",
        ),
        (
            '{ type = "user", id = "sender.id" }',
            "github",
            "id: 'sender.id' must read from body alone; write 'body.sender.id'",
        ),
        ('{ type = "user", id = "body.[" }', "github", "id: 'body.[' is not a JMESPath"),
        ('{ type = "", id = "body.id" }', "github", "type: must be a text of 1 to 100 characters"),
        ('{ type = "user", ids = "body.id" }', "github", "ids: unknown key; did you mean 'id'?"),
        ('{ type = "user" }', "github", "id: is missing"),
        ('{ type = "user", id = "body.id" }', "custom", "id: is for other presets; here, set event.entity_type"),
        ('{ type = "user", id = "body.id" }', "salesforce", "the bodies of Salesforce"),
    ],
)
def test_a_wrong_entity_of_a_source_is_told_with_the_right_spelling(entity: str, preset: str, expected: str) -> None:
    text = f'[sources.s]\npreset = "{preset}"\nauth = {{ kind = "none" }}\nunsigned = true\nentity = {entity}\n'
    assert f"[sources.s] entity.{expected}" in mistake(text) or expected in mistake(text)


def test_no_call_replaces_the_header_of_its_endpoints_secret() -> None:
    crm = 'base_url = "https://crm.example.com"\n'
    auth = 'auth = { kind = "header", name = "X-Key", value = "env:K" }\n'
    create = 'create = { path = "/contacts", headers = { x-key = "1" } }\n'
    told = mistake(change_links((crm, crm + auth), (NO_CREATE[0], create)))
    assert "[routes.users.sync] create.headers: 'X-Key' is set by the endpoint's auth" in told
    swept = f'{LINKS}{SWEEP}headers = {{ x-key = "1" }}\n'.replace("[destinations.crm]", f"{auth}[destinations.crm]")
    assert "headers: 'X-Key' is set by the endpoint's auth" in mistake(swept)


SWEEP = '[[sources.trivore.sweeps]]\napi = "identity"\npath = "/user"\nentity_type = "USER"\n'

ONLY_LOGINS_AND_UPDATES = """\
[routes.users.when]
event_type = ["UPDATE"]
[routes.all.when]
event_type = ["LOGIN"]
"""
ONLY_CREATIONS = """\
[routes.users.when]
action = ["create"]
[routes.all.when]
entity_type = ["GROUP"]
"""


@pytest.mark.parametrize(
    ("sweeps", "expected"),
    [
        (SWEEP + SWEEP, "entity_type: 'USER' has a sweep already; one table for each type"),
        (SWEEP + ONLY_LOGINS_AND_UPDATES, "'sweep' with the action 'update' is taken by no route of 'USER'"),
        (SWEEP + ONLY_CREATIONS, "'sweep' with the action 'update' is taken by no route of 'USER'"),
        (f'{SWEEP}every = "0s"', "every: must be longer than nothing; leave it out for `relay sweep` by hand"),
    ],
)
def test_sweeps_that_can_not_be_run_are_told(sweeps: str, expected: str) -> None:
    assert expected in mistake(LINKS + sweeps)


def test_a_sweep_whose_events_are_taken_or_whose_type_has_no_route_is_valid() -> None:
    groups = 'entity_type = ["GROUP"]\n'
    none_is_for_its_type = f"[routes.users.when]\n{groups}[routes.all.when]\n{groups}"
    for more in (ONLY_LOGINS_AND_UPDATES.replace('"LOGIN"', '"LOGIN", "sweep"'), none_is_for_its_type):
        assert parse_config(LINKS + SWEEP + more).sources["trivore"].sweeps


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ('"lnk"', "'lnk' is not one of link, none, scim; did you mean 'link'?"),
        ('{ by = "offset" }', "pages.by: 'offset' is not one of cursor, link, page, start, url"),
        ('{ by = "cursor" }', "pages.next: is missing: the JMESPath that finds the value for {next} in a page"),
        ('{ by = "page", next = "x" }', 'pages.next: means nothing with by = "page"; remove it, or set by = "cursor"'),
        ('{ by = "url", next = "x", more = "y" }', 'pages.more: means nothing with by = "url"'),
        ('{ by = "page", most = 1 }', "pages.most: expected a whole number from 2 to 100000, got 1"),
    ],
)
def test_a_mistake_in_pages_is_told(pages: str, expected: str) -> None:
    assert expected in mistake(f"{LINKS}{SWEEP}pages = {pages}\n")


@pytest.mark.parametrize(
    ("posts", "pages"), [('method = "POST"', '"link"'), ('graphql = "{ x }"', '{ by = "url", next = "next" }')]
)
def test_links_are_followed_by_get_alone(posts: str, pages: str) -> None:
    expected = 'follows links by GET alone; page by = "cursor"'
    assert expected in mistake(f"{LINKS}{SWEEP}{posts}\npages = {pages}\n")


AGED = '[sources.s]\npreset = "{}"\nsecrets = ["env:S"]\nmax_age = "1d"\n'
OF_OUR_OWN = AGED.format("custom") + 'signature = { header = "X-Signature" }\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AGED.format("github"), "have no time of the event that is signed"),
        (f"{OF_OUR_OWN}event = {{ type = \"'t'\" }}", "have no time of the event that is signed"),
        (f"{OF_OUR_OWN}event = {{ type = \"'t'\", time = 'headers.\"x-time\"' }}", "anyone could change it"),
        (
            AGED.format("github").replace("max_age", 'dedup = ["{body}", "id"]\n#'),
            "dedup: has '{body}', which is all there is",
        ),
    ],
)
def test_an_unsigned_age_and_a_redundant_key_are_mistakes(text: str, expected: str) -> None:
    assert expected in mistake(text)


# --- Mistakes in the map of a sync route, which the configuration's reader reports to both sides


def a_map(fields: str = 'x = "entity.x"', options: str = "") -> str:
    table = f"{options}\n[routes.users.sync.map]\n{fields}\n"
    return change_links(
        NO_CREATE, NO_DELETE, ('map = { email = "entity.email" }\n', f'missing = "skip"\ngone = "skip"\n{table}')
    )


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("x = 7", "x: expected text in quotes or a table, got a number"),
        ('x = { form = "entity.x" }', "x.form: unknown key; did you mean 'from'?"),
        ("x = { from = 7 }", "x.from: expected text in quotes, got a number"),
        ("x = {}", "x: a field takes one of from, value and function; this has none"),
        ('x = { from = "entity.x", value = 0 }', "one of from, value and function; this has from and value"),
        ('x = { from = "entity.x", function = "a:b" }', "one of from, value and function; this has from and function"),
        ('x = { from = "entity.x", cast = "integer" }', "x.cast: 'integer' is not one of bool, date, datetime, float"),
        ('x = { function = "package.module" }', "x.function: expected \"package.module:name\", got 'package.module'"),
        ('x = { function = "a:b:c" }', 'x.function: expected "package.module:name"'),
        ('x = { from = "entity.x", read = "%Y-%m-%d" }', 'x.read: is about dates; add cast = "date"'),
        ('x = { from = "entity.x", cast = "int", write = "%Y" }', 'x.write: is about dates; add cast = "date"'),
        ('x = { from = "entity.x", cast = "date", read = "%Q" }', "x.read: '%Q' has %Q; valid here: %% %A %B"),
        ('x = { from = "entity.x", cast = "date", read = "%d.%m." }', "x.read: '%d.%m.' must name a day with its year"),
        ('x = { from = "entity.x", cast = "date", read = "%Y-%m-%d %d" }', "must name a day with its year, once"),
    ],
)
def test_a_mistake_in_a_field_is_told_with_its_place(field: str, expected: str) -> None:
    told = mistake(a_map(field))
    assert told.startswith("inbox.toml:26: [routes.users.sync.map] ")
    assert expected in told


def test_with_a_transform_the_map_may_be_empty_or_missing_and_any_field_cleared() -> None:
    text = a_map("", 'transform = "our.module:finish"\nclear_when_absent = ["anything"]')
    for each in (text, text.replace("[routes.users.sync.map]\n", "")):
        sync = parse_config(each).routes["users"].sync
        assert sync is not None
        assert (sync.map, sync.transform) == ({}, "our.module:finish")


def test_a_mistake_that_several_parts_find_is_told_once() -> None:
    def fail() -> None:
        raise ConfigError("a: is wrong\nb: is wrong")

    def also() -> None:
        raise ConfigError("c: is wrong\nb: is wrong")

    with pytest.raises(ConfigError) as caught:
        collect_config_errors({"x": fail, "y": also})
    assert str(caught.value).splitlines() == ["a: is wrong", "b: is wrong", "c: is wrong"]


# --- Every mistake at once, each with its line: those of the file, of expressions, of secrets and of the environment


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
25: [apis.identity] base_url: 127.0.0.1 is loopback; allow_private = true allows the call
25: [apis.identity] base_url: is plain http; use https, or set allow_http = true
26: [apis.identity] auth.password: the environment variable NOT_THERE is not set
30: [destinations.crm] auth.client_secret: the environment variable NOT_THERE is not set
31: [destinations.crm] ca_file: can't use ca_file /not/there.pem
32: [destinations.misshapen] url: is missing
40: [routes.users.sync] delete: is missing, and gone = "delete" (the default) needs it
41: [routes.users.sync] fetch.path: 'evnt.entity_id' uses an unknown name 'evnt'; did you mean 'event'?
42: [routes.users.sync] create.path: 'contacts' must begin with a slash
44: [routes.users.sync] clear_when_absent: 'phne' is not a field of the map; did you mean 'phone'?
46: [routes.users.sync.map] 'odd.name: x': 'entity.[' is not a JMESPath expression
47: [routes.users.sync.map] phone.function: there is no module 'no_such_module'
48: [routes.nowhere]: 'crm' is a sync destination; add [routes.nowhere.sync] with fetch and map
49: [routes.nowhere] source: there is no source 'fin'; did you mean 'fine'?
55: [apis.directory] auth.client_secret: the environment variable NOT_THERE is not set
55: [apis.directory] auth.token_url: is not a valid URL; write it as https://host/path
"""


def lines_of(error: ConfigError) -> set[str]:
    return set(str(error).splitlines())


def all_mistakes(text: str) -> set[str]:
    """Return the mistakes that both sides report when they start."""
    file = load_text(text, environment={})
    found: set[str] = set()
    for make in (make_endpoints, prepare):
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
        ('url = "file:/not/there"', {}, "inbox.toml:2: [database] url: can't read the secret in /not/there"),
        ("", {"INBOX_DATABASE_URL": "file:/not/there"}, "INBOX_DATABASE_URL: can't read the secret in /not/there"),
        ('password = "x"', {}, "inbox.toml:2: [database] password: a SQLite file has none; remove it"),
        ('schema = "inbox"', {}, "inbox.toml:2: [database] schema: a SQLite file has no schemas"),
        ('schema = "Inbox"', {}, "inbox.toml:2: [database] schema: "),
        (
            'url = "postgresql://me:secret@db/x"\npassword = "x"',
            {},
            "inbox.toml:3: [database] password: the url has one",
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
