"""`inbox check`: says what both sides say when they start, and asks the systems that a configuration names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.test_config_links import MISTAKEN
from tests.helpers.planted import Planted
from tests.helpers.processes import Ended, Site, site
from tests.helpers.scripted import answer, closed_port, hang, serving

SECRET = Planted()
GOOD = """
[database]
url = "{database}"
[sources.github]
preset = "github"
secrets = ["env:GITHUB_SECRET"]
[destinations.audit]
kind = "forward"
url = "{url}/hook"
allow_private = true
allow_http = true
timeout = "30s"
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


def configured(place: Site, database: str, url: str = "https://audit.example.com", more: str = "") -> None:
    place.configure(GOOD.format(database=database, url=url) + more)


def checked(place: Site, *options: str, **environment: str) -> Ended:
    ended = place.invoke("inbox", "check", *options, **(ENVIRONMENT | environment))
    assert SECRET.leaks({"stdout": ended.stdout, "stderr": ended.stderr}) == []
    return ended


def findings(ended: Ended) -> list[tuple[str, int | None, str | None, str]]:
    """Give the findings, without the warnings of the tests' own Postgres, which writes nothing through to its disk."""
    found = json.loads(ended.stdout)["findings"]
    of_server = ("the database has fsync = off", "the database has full_page_writes = off")
    return [(e["level"], e["line"], e["key"], e["text"]) for e in found if not e["text"].startswith(of_server)]


def test_a_configuration_that_can_work_gets_a_summary_and_0(place: Site, database_url: str) -> None:
    configured(place, database_url)
    ended = checked(place)
    assert ended.status == 0, ended.stdout
    assert "inbox.toml: 1 source, 1 route, 0 apis, 1 destination\n" in ended.stdout
    assert ended.stdout.endswith("both sides would start\n")


def test_it_says_what_both_sides_say_when_they_start_word_for_word(place: Site) -> None:
    place.configure(MISTAKEN)
    ended = place.invoke("inbox", "check", "--json")
    document = json.loads(ended.stdout)
    told = {
        f"{each['file']}:{each['line']}: {each['key']}: {each['text']}"
        for each in document["findings"]
        if each["level"] == "mistake" and each["line"]
    }
    assert ended.status == 2
    assert document["mistakes"] == len([each for each in document["findings"] if each["level"] == "mistake"])
    receiver, relay = place.refused_receiver(), place.relay()
    serve = place.run("inbox", "serve")
    assert (receiver.ends(), relay.ends(), serve.status) == (2, 2, 2)
    of_receiver = {line.removeprefix("inbox: ") for line in receiver.output.splitlines() if "inbox.toml" in line}
    of_relay, of_serve = (
        {line.removeprefix("error: ").strip() for line in output.splitlines() if "inbox.toml" in line}
        for output in (relay.output, serve.stderr)
    )
    assert of_serve == of_receiver
    assert of_receiver | of_relay == told
    assert of_receiver & of_relay  # those of the file itself
    assert of_receiver - of_relay
    assert of_relay - of_receiver


def test_a_file_that_can_not_be_read_is_a_mistake(place: Site) -> None:
    place.configure("[sources\nx = 1\n")
    ended = checked(place)
    assert ended.status == 2
    assert "inbox.toml:1: is not TOML" in ended.stdout
    (place.folder / "inbox.toml").unlink()
    ended = checked(place, "--json")
    assert ended.status == 2
    assert "write one with `inbox init`" in findings(ended)[0][3]


# --- the database


def test_a_database_without_a_schema_is_a_mistake_and_stays_as_it_is(place: Site) -> None:
    configured(place, f"sqlite:///{place.folder}/new.db")
    ended = checked(place)
    assert ended.status == 2
    assert "run `inbox migrate`" in ended.stdout
    assert not (place.folder / "new.db").exists()
    assert place.invoke("inbox", "migrate", **ENVIRONMENT).status == 0
    assert checked(place).status == 0


def test_a_database_that_does_not_answer_is_a_mistake_once_it_is_asked(place: Site) -> None:
    url = f"postgresql+psycopg://relay:{SECRET.plain('database')}@127.0.0.1:{closed_port()}/inbox"
    configured(place, "env:DB")
    ended = checked(place, "--json", DB=url)
    assert (ended.status, json.loads(ended.stdout)["database"]["state"]) == (0, "not asked")
    ended = checked(place, "--online", "--json", DB=url)
    assert ended.status == 2
    level, line, key, text = findings(ended)[0]
    assert (level, line, key) == ("mistake", 3, "[database] url")
    assert text.startswith("env:DB: the database does not answer: connection failed")


def test_it_says_where_the_databases_url_comes_from(place: Site, database_url: str) -> None:
    configured(place, "sqlite:///elsewhere.db")
    ended = checked(place, "--online", "--json", INBOX_DATABASE_URL=database_url)
    database = json.loads(ended.stdout)["database"]
    assert (database["origin"], database["state"]) == ("INBOX_DATABASE_URL", "current")
    ended = checked(place, INBOX_DATABASE_URL="mysql://me:secret@host/x")
    assert ended.status == 2
    assert "mistake  INBOX_DATABASE_URL: it is neither postgresql" in ended.stdout


# --- warnings


def test_a_secret_that_is_hardly_meant_so_is_a_warning(place: Site, sqlite_database_url: str) -> None:
    for value in ('"plain-secret"', '"ODD"', '"env:BLANK"', '"env:QUOTED"', '"env:UNEXPANDED"'):
        configured(place, sqlite_database_url)
        text = (place.folder / "inbox.toml").read_text(encoding="utf-8")
        place.configure(text.replace('"env:GITHUB_SECRET"', value))
        ended = checked(place, "--json", ODD="x", BLANK="x ", QUOTED='"x"', UNEXPANDED="${X}")
        assert ended.status == 1
        assert [each[:3] for each in findings(ended) if each[1]] == [("warning", 6, "[sources.github] secrets[0]")]


def test_what_nothing_uses_yet_can_only_warn(place: Site, sqlite_database_url: str) -> None:
    spare = '[destinations.spare]\nkind = "slack"\nurl = "env:NO"\ntext = "{event.seq:foo}"\n'
    configured(place, sqlite_database_url, more=spare + API.format(url="http://10.0.0.1").replace("allow_private", "#"))
    ended = checked(place, "--json")
    assert ended.status == 1
    assert {(level, key) for level, _, key, _ in findings(ended)} == {
        ("warning", "[destinations.spare] url"),
        ("warning", "[destinations.spare] text"),
        ("warning", "[apis.a] base_url"),
        ("warning", "[apis.a] auth.token_url"),
    }


# --- online


def asked(ended: Ended) -> dict[str, dict[str, Any]]:
    return {each["key"]: each for each in json.loads(ended.stdout)["asked"]}


def test_each_system_is_asked_without_a_change_and_any_answer_is_one(place: Site, database_url: str) -> None:
    token = {"access_token": SECRET.plain("token")}
    routes = {
        "POST /token": [answer(200, token)],
        "OPTIONS /api": [answer(404)],
        "OPTIONS /hook": [answer(302, Location="/elsewhere")],
    }
    with serving(answer(500), routes=routes) as server:
        configured(place, database_url, server.url, API.format(url=server.url))
        ended = checked(place, "--online", "--json")
        assert findings(ended) == []
        assert ended.status == (0 if database_url.startswith("sqlite") else 1)  # its Postgres has a warning
        assert {key: (each["reached"], each["text"]) for key, each in asked(ended).items()} == {
            "apis.a": (True, "answered 404"),
            "destinations.audit": (True, "answered 302"),
        }
        assert sorted(server.asked) == ["OPTIONS /api", "OPTIONS /hook", "POST /token"]


def test_a_system_that_is_not_reached_is_a_warning_with_its_line(place: Site, sqlite_database_url: str) -> None:
    with serving(hang) as server:
        for url, told in ((server.url, "0.5 s"), (f"http://127.0.0.1:{closed_port()}", "Connection refused")):
            configured(
                place, sqlite_database_url, url, f'[alerts]\nurl = "{url}/x"\nallow_private = true\nallow_http = true'
            )
            patient = (place.folder / "inbox.toml").read_text(encoding="utf-8")
            place.configure(patient.replace('"30s"', '"500ms"'))
            ended = checked(place, "--online", "--json")
            assert ended.status == 1
            assert {(level, line, key) for level, line, key, _ in findings(ended) if line} >= {
                ("warning", 7, "[destinations.audit]"),
                ("warning", 16, "[alerts]"),
            }
            assert told in asked(ended)["destinations.audit"]["text"]
