"""`inbox init` writes a first configuration, and `inbox check` reports its mistakes before a program starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.test_config_links import MISTAKEN
from tests.helpers.planted import Planted
from tests.helpers.processes import Ended, Site, site
from tests.helpers.scripted import answer, find_closed_port, hang, serving

SECRET = Planted()
GOOD = """
[database]
url = "{database}"
[sources.github]
preset = "github"
secrets = [{secret}]
[destinations.audit]
kind = "forward"
url = "{url}/hook"
allow_private = true
allow_http = true
timeout = "{timeout}"
[routes.all]
source = "github"
destination = "audit"
"""
API = """
[apis.a]
base_url = "{url}/api"
allow_private = true
allow_http = true
timeout = "30s"
auth = {{ kind = "oauth2", token_url = "{url}/token", client_id = "id", client_secret = "env:CLIENT_SECRET" }}
"""
ENVIRONMENT = {"GITHUB_SECRET": SECRET.plain("github"), "CLIENT_SECRET": SECRET.plain("client")}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, "") as made:
        yield made


def configure(
    place: Site,
    database: str,
    url: str = "https://audit.example.com",
    *,
    secret: str = '"env:GITHUB_SECRET"',
    timeout: str = "30s",
    more: str = "",
) -> None:
    place.configure(GOOD.format(database=database, url=url, secret=secret, timeout=timeout) + more)


def check(place: Site, *options: str, **environment: str) -> Ended:
    ended = place.invoke("inbox", "check", *options, **(ENVIRONMENT | environment))
    assert SECRET.leaks({"stdout": ended.stdout, "stderr": ended.stderr}) == []
    return ended


def findings(ended: Ended) -> list[tuple[str, int | None, str | None, str]]:
    """Return the findings, without those of the tests' Postgres, which does not sync its files."""
    found = json.loads(ended.stdout)["findings"]
    of_server = ("the database has fsync = off", "the database has full_page_writes = off")
    return [(e["level"], e["line"], e["key"], e["text"]) for e in found if not e["text"].startswith(of_server)]


# --- the first file


def test_init_replaces_a_file_only_with_force_and_follows_no_link(place: Site) -> None:
    file = place.folder / "inbox.toml"
    file.unlink()
    for wrong in ((), ("--source", "githbu"), ("--source", "github", "--database", "mysql")):
        assert place.invoke("inbox", "init", *wrong).status == 2
        assert not file.exists()
    assert place.invoke("inbox", "init", "--source", "stripe").status == 0
    before = file.read_text(encoding="utf-8")
    assert (place.folder / "inbox.schema.json").read_text("utf-8") == place.invoke("inbox", "schema").stdout
    assert place.invoke("inbox", "init", "--source", "okta").status == 2
    assert file.read_text(encoding="utf-8") == before
    assert place.invoke("inbox", "init", "--source", "okta", "--force").status == 0
    assert "[sources.okta]" in file.read_text(encoding="utf-8")
    file.unlink()
    file.symlink_to(place.folder / "elsewhere.toml")
    assert place.invoke("inbox", "init", "--source", "okta").status == 2
    assert not (place.folder / "elsewhere.toml").exists()


# --- the file


def test_both_sides_report_the_same_mistakes_when_they_start(place: Site) -> None:
    place.configure(MISTAKEN)
    ended = place.invoke("inbox", "check", "--json")
    document = json.loads(ended.stdout)
    mistakes = [each for each in document["findings"] if each["level"] == "mistake"]
    told = {f"{each['file']}:{each['line']}: {each['key']}: {each['text']}" for each in mistakes if each["line"]}
    assert (ended.status, document["mistakes"]) == (2, len(mistakes))
    receiver, relay = place.start_refused_receiver(), place.relay()
    serve = place.invoke("inbox", "serve")
    assert (receiver.ends(), relay.ends(), serve.status) == (2, 2, 2)
    of_receiver, of_serve, of_relay = (
        {line.removeprefix(prefix).strip() for line in output.splitlines() if "inbox.toml" in line}
        for prefix, output in (("inbox: ", receiver.output), ("error: ", serve.stderr), ("error: ", relay.output))
    )
    assert of_serve == of_receiver
    assert of_receiver | of_relay == told
    assert of_receiver & of_relay  # those of the file itself
    assert of_receiver - of_relay
    assert of_relay - of_receiver


def test_a_secret_that_looks_like_a_mistake_is_a_warning(place: Site, sqlite_database_url: str) -> None:
    for value in ('"plain-secret"', '"env:BLANK"', '"env:QUOTED"', '"env:UNEXPANDED"'):
        configure(place, sqlite_database_url, secret=value)
        ended = check(place, "--json", BLANK="x ", QUOTED='"x"', UNEXPANDED="${X}")
        assert [each[:3] for each in findings(ended) if each[1]] == [("warning", 6, "[sources.github] secrets[0]")]


def test_a_mistake_in_an_unused_table_is_only_a_warning(place: Site, sqlite_database_url: str) -> None:
    spare = '[destinations.spare]\nkind = "slack"\nurl = "env:NO"\ntext = "{event.seq:foo}"\n'
    configure(place, sqlite_database_url, more=spare + API.format(url="http://10.0.0.1").replace("allow_private", "#"))
    ended = check(place, "--json")
    assert ended.status == 1
    assert {(level, key) for level, _, key, _ in findings(ended)} == {
        ("warning", "[destinations.spare] url"),
        ("warning", "[destinations.spare] text"),
        ("warning", "[apis.a] base_url"),
        ("warning", "[apis.a] auth.token_url"),
    }


# --- the database


def test_a_database_without_a_schema_is_a_mistake_and_is_not_created(place: Site) -> None:
    configure(place, f"sqlite:///{place.folder}/new.db")
    ended = check(place)
    assert (ended.status, "run `inbox migrate`" in ended.stdout) == (2, True)
    assert not (place.folder / "new.db").exists()
    assert place.invoke("inbox", "migrate", **ENVIRONMENT).status == 0
    ended = check(place)
    assert (ended.status, ended.stdout.splitlines()[-1]) == (0, "both sides would start")


def test_an_unreachable_database_is_a_mistake_with_online_only(place: Site, database_url: str) -> None:
    url = f"postgresql+psycopg://relay:{SECRET.plain('database')}@127.0.0.1:{find_closed_port()}/inbox"
    configure(place, "env:DB")
    ended = check(place, "--json", DB=url)
    assert (ended.status, json.loads(ended.stdout)["database"]["state"]) == (0, "not asked")
    ended = check(place, "--online", "--json", DB=url)
    assert ended.status == 2
    level, line, key, text = findings(ended)[0]
    assert (level, line, key) == ("mistake", 3, "[database] url")
    assert text.startswith("env:DB: the database does not answer: connection failed")
    ended = check(place, "--online", "--json", DB=url, INBOX_DATABASE_URL=database_url)
    database = json.loads(ended.stdout)["database"]
    assert (database["origin"], database["state"]) == ("INBOX_DATABASE_URL", "current")
    assert check(place, DB=url, INBOX_DATABASE_URL="mysql://me:secret@host/x").status == 2


# --- other systems


def calls_of(ended: Ended) -> dict[str, dict[str, Any]]:
    return {each["key"]: each for each in json.loads(ended.stdout)["asked"]}


def test_online_calls_each_system_without_changing_it_and_accepts_any_response(
    place: Site, sqlite_database_url: str
) -> None:
    routes = {
        "POST /token": [answer(200, {"access_token": SECRET.plain("token")})],
        "OPTIONS /api": [answer(404)],
        "OPTIONS /hook": [answer(302, Location="/elsewhere")],
    }
    with serving(answer(500), routes=routes) as server:
        configure(place, sqlite_database_url, server.url, more=API.format(url=server.url))
        ended = check(place, "--online", "--json")
        assert (ended.status, findings(ended)) == (0, [])
        assert {key: (each["reached"], each["text"]) for key, each in calls_of(ended).items()} == {
            "apis.a": (True, "answered 404"),
            "destinations.audit": (True, "answered 302"),
        }
        assert sorted(server.asked) == sorted(routes)


def test_an_unreachable_system_is_a_warning_with_its_line(place: Site, sqlite_database_url: str) -> None:
    with serving(hang) as server:
        for url, told in ((server.url, "0.2 s"), (f"http://127.0.0.1:{find_closed_port()}", "Connection refused")):
            configure(place, sqlite_database_url, url, timeout="200ms")
            ended = check(place, "--online", "--json")
            assert [each[:3] for each in findings(ended)] == [("warning", 7, "[destinations.audit]")]
            assert (ended.status, told in calls_of(ended)["destinations.audit"]["text"]) == (1, True)
