"""`relay demo`: its services, webhooks and screen, the whole demo with real processes, and the vendor's own client."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from rich.console import Console
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.loader.load import parse_config, read_config
from relay.demo.run import CHANGES, DemoScreen, configuration
from relay.demo.scenario import ChangeMade, Scenario, sample_edit, sample_user
from relay.demo.services import (
    CONTACT,
    GROUP,
    TEAM,
    USER,
    App,
    CommercialService,
    IdentityService,
    WebhookSender,
    serve,
)
from relay.demo.services import serve as served_service
from tests.helpers.daemon import relaying
from tests.helpers.planted import HOSTILE, harm_of
from tests.helpers.processes import Program, invoke
from tests.helpers.receiver import serve_receiver as served_receiver
from tests.helpers.scripted import answer, serving
from tests.helpers.tables import count, open_states
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, TOKEN

WAIT = 150.0
API = "/api/rest/v1/"
BEARER = "Bearer demo"
BROKEN_FILE = """\
from relay.demo import run
right = run.configuration
run.configuration = lambda **values: right(**values).replace("preset =", "pre_set =")
"""
SHORT_ROUND = "from relay.demo import run; run.CHANGES, run.KILL_AFTER = 9, 5"

# --- the services


@contextmanager
def client_of(app: App, authorization: str) -> Iterator[Any]:
    """Serve an app and yield a function that sends it requests."""
    with serve(app) as url, requests.Session() as session:
        session.trust_env = False

        def ask(method: str, path: str, **options: Any) -> requests.Response:  # noqa: ANN401  # requests' own
            headers = {"Authorization": authorization, **options.pop("headers", {})}
            return session.request(method, f"{url}{path}", timeout=WAIT, headers=headers, **options)

        yield ask


def test_users_are_paged_and_filtered_by_their_last_change() -> None:
    with closing(WebhookSender()) as webhooks:
        service = IdentityService(webhooks)
        ids = [service.create(USER, sample_user(number))["id"] for number in range(5)]
        with client_of(service.app, "Basic ZGVtbzpkZW1v") as ask:
            page = ask("GET", f"{API}user", params={"startIndex": 3, "count": 3}).json()
            assert [user["id"] for user in page.pop("resources")] == ids[3:]
            assert page == {"totalResults": 5, "startIndex": 3, "itemsPerPage": 2}
            since = service.replace(USER, ids[0], {"username": "aino"})["meta"]["lastModified"]
            later = ask("GET", f"{API}user", params={"filter": f'meta.lastModified ge "{since}"'}).json()
            assert ids[0] in [user["id"] for user in later["resources"]]
            refused = ask("GET", f"{API}user", headers={"Authorization": "Basic ZGVtbzp3cm9uZw=="})
            assert refused.status_code == 401


def test_a_planned_failure_changes_nothing_and_a_wrong_token_is_refused() -> None:
    service = CommercialService(fail_share=1)
    with client_of(service.app, BEARER) as ask:
        refused = ask("POST", "/contacts", json={})
        assert (refused.status_code, refused.headers["Retry-After"], list(service.all(CONTACT))) == (503, "0.2", [])
        service.fail_share = 0
        assert ask("GET", "/contacts", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_webhook_is_retried_until_it_is_accepted_even_if_only_the_response_got_lost() -> None:
    """Error statuses and redirects count as failures; the screen gets every try, and an entity's tries stay in order."""
    tries: list[int | None] = []
    lost = iter([True])
    acts = [answer(status) for status in (503, 401, 302, 200)]
    with serving(*acts) as receiver:
        sender = WebhookSender(
            receiver.url,
            headers={"X-Webhook-Token": "t"},
            on_webhook=lambda _, status: tries.append(status),
            loses_answer=lambda: next(lost, False),
        )
        with closing(sender):
            service = IdentityService(sender)
            user = service.create(USER, sample_user(0))
            service.replace(USER, user["id"], {})
            service.replace(USER, user["id"], {"username": "unseen"}, report=False)
            service.delete(USER, user["id"])
            until(lambda: sender.pending() == 0, "every webhook is accepted")
    assert tries == [503, 401, 302, 200, 200, 200, 200]
    kinds = [re.findall(rb'"eventType": ?"(\w+)"', seen.body)[0] for seen in receiver.seen]
    assert kinds == [b"CREATE"] * 5 + [b"UPDATE", b"DELETE"]
    assert {seen.headers["x-webhook-token"] for seen in receiver.seen} == {"t"}


def test_the_scenario_makes_changes_of_every_kind_and_keeps_some_users() -> None:
    with closing(WebhookSender("http://127.0.0.1:9")) as webhooks:
        identity = IdentityService(webhooks)
        scenario = Scenario(identity, random.Random(1))
        changes = [scenario.step() for _ in range(5 * CHANGES)]
        assert {(change.action, change.entity_type) for change in changes} == {
            *(("create", USER), ("update", USER), ("delete", USER), ("create", GROUP), ("update", GROUP))
        }
        assert 6 <= len(identity.all(USER)) <= 7
        reported = webhooks.pending()
        assert reported == len(changes)
        assert not scenario.edit(USER, report=False).is_reported
        assert not scenario.delete(report=False).is_reported
        assert webhooks.pending() == reported
    users = [sample_user(number) for number in range(2000)]
    assert len({user["username"] for user in users}) == 2000
    rng = random.Random(3)
    assert all(sample_edit(user, rng, seen_there=True) != user for user in users)


@pytest.mark.parametrize("width", [None, 4000], ids=["file", "terminal"])
def test_the_screen_escapes_hostile_values(width: int | None) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=width is not None, width=width or 10_000, highlight=False)
    screen = DemoScreen(console, SystemClock())
    screen.change(ChangeMade("create", USER, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}))
    screen.webhook({"entityType": HOSTILE, "id": HOSTILE, "eventType": HOSTILE}, 200)
    screen.call(HOSTILE, HOSTILE, 201, {HOSTILE: HOSTILE})
    screen.call("DELETE", HOSTILE, 204, {})
    screen.say(HOSTILE)
    shown = output.getvalue()
    assert harm_of(shown, terminal=width is not None) == []
    assert len(shown.splitlines()) == 5
    assert "[link=https://evil.example]" in shown


# --- as a user runs it


def command(*arguments: str, before: str = "") -> list[str]:
    """Return the command line of `relay demo`, preceded by Python code."""
    return [sys.executable, "-c", f"{before}\nfrom relay.cli.main import main\nmain()", "demo", *arguments]


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, before=before), capture_output=True, text=True, timeout=WAIT, check=False)


def test_the_demo_ends_with_0_when_both_services_agree(tmp_path: Path) -> None:
    """One call in ten fails, responses get lost, and the relay is killed at work."""
    ended = run("--folder", str(tmp_path), before=SHORT_ROUND)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for expected in (
        r"killed the relay \(SIGKILL\)",
        r"^ +trivore +USER +\d+ +1 +1 ",
        r"^ +trivore +GROUP +\d+ +1 +1 ",
        r"^Both services agree on all fields",
        r"command replay[^$]*call    DELETE 204",
    ):
        assert re.search(expected, ended.stdout, re.MULTILINE), (expected, ended.stdout)
    assert len(re.findall(r"^ +\d+ entit\w+ compared: in sync$", ended.stdout, re.MULTILINE)) == 2
    assert (tmp_path / "inbox.toml").stat().st_mode & 0o777 == 0o600
    again = invoke("relay", "demo", "--folder", str(tmp_path))
    assert (again.status, "is not empty" in again.stderr) == (2, True)


def test_a_part_that_does_not_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    ended = run("--folder", str(tmp_path), before=BROKEN_FILE)
    assert (ended.returncode, "pre_set" in ended.stderr) == (2, True), ended.stdout + ended.stderr


@pytest.mark.long
def test_a_signal_stops_all_processes_in_order(tmp_path: Path) -> None:
    staying = command("--stay", "--folder", str(tmp_path / "demo"), before=SHORT_ROUND)
    demo = Program(staying, log=tmp_path / "log", environment={})
    try:
        demo.writes("\nto stop", within=WAIT)
        children = [int(number) for number in re.findall(r"\bpid (\d+)", demo.output)]
        assert (len(children), demo.stop(within=30)) == (2, 0), demo.output
    finally:
        demo.clean_up()
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert " stopped node=" in (tmp_path / "demo" / "relay.log").read_text()


def test_a_service_runs_alone_until_it_is_told_to_stop(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "relay", "demo", "identity", "--users", "3", "--port", "0"]
    program = Program(arguments, log=tmp_path / "log", environment={})
    try:
        program.writes("http://127.0.0.1:")
        url = re.findall(r"http://127\.0\.0\.1:\d+", program.output)[0]
        with requests.Session() as session:
            session.trust_env = False
            found = session.get(f"{url}{API}user", headers={"Authorization": "Basic ZGVtbzpkZW1v"}, timeout=WAIT)
        assert found.json()["totalResults"] == 3
        program.send(signal.SIGINT)
        assert (program.ends(), "Traceback" in program.output) == (0, False)
    finally:
        program.clean_up()


# --- The vendor's own client, PyPI trivoreid 2.0.10, keeps both demo services in sync through a receiver and a relay


USERS, GROUPS = "users-to-contacts", "groups-to-teams"


def connect(url: str) -> Any:  # noqa: ANN401  # the package has no types
    """Return a client of the service at `url`; it uses proxies unless NO_PROXY is set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # trivoreid 2.0.10 compares numbers with `is`
        from trivoreid.client import TrivoreID  # noqa: PLC0415 - the warnings come with the first import
    return TrivoreID(path="/nowhere", server=url, client_id="demo", client_secret="demo")


@contextmanager
def start_all_but_relay(database_url: str, file: Path) -> Iterator[tuple[Any, IdentityService, CommercialService]]:
    """Start both demo services and a receiver; yield the vendor's client and the services."""
    with closing(WebhookSender(headers=HEADERS)) as webhooks:
        source, target = IdentityService(webhooks), CommercialService()
        with served_service(source.app) as at_source, served_service(target.app) as at_target:
            urls = {"identity_url": at_source, "commercial_url": at_target}
            text = configuration(database_url=database_url, users="file:users", token=TOKEN, **urls)
            file.write_text(text, encoding="utf-8")
            with served_receiver(database_url, parse_config(text)) as port:
                webhooks.url = f"http://127.0.0.1:{port}/webhooks/trivore"
                yield connect(at_source), source, target


@pytest.mark.parametrize("database_url", ["sqlite", pytest.param("postgres", marks=pytest.mark.nightly)], indirect=True)
def test_a_user_and_a_group_of_the_vendors_client_are_kept_in_sync(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("INBOX_CONFIG", str(tmp_path / "inbox.toml"))
    with start_all_but_relay(database_url, tmp_path / "inbox.toml") as (client, identity, commercial):
        from trivoreid.models.groups import Group  # noqa: PLC0415  # as above
        from trivoreid.models.user import User  # noqa: PLC0415

        def wait_until_received(number: int) -> None:
            until(lambda: not identity.webhooks.pending(), "all is received")
            assert count(engine, "inbox") == number

        def wait_until_delivered(number: int) -> None:
            wait_until_received(number)
            until(lambda: not open_states(engine), "all is delivered")

        def plan(route: str) -> tuple[int, list[dict[str, Any]]]:
            ended = invoke("relay", "plan", "--route", route, "--json")
            return ended.status, json.loads(ended.stdout)

        users, groups = client.user_service, client.group_service
        user = users.create(User(sample_user(0)))
        wait_until_received(1)
        status, (found,) = plan(USERS)
        assert (status, found["entity_id"], found["change"]) == (1, user.id, "create")
        with relaying(engine, read_config()):
            group = groups.create(Group({"name": "Drivers", "nsCode": "demo"}))
            wait_until_delivered(2)
            user.name.familyName = "Virtanen"
            user.mobiles = []
            users.update(user)
            group.name = "Pilots"
            groups.update(group)
            wait_until_delivered(4)
            assert [plan(route) for route in (USERS, GROUPS)] == [(0, [])] * 2
            (contact,) = commercial.all(CONTACT)
            assert (contact["external_id"], contact["last_name"], contact["phone"]) == (user.id, "Virtanen", None)
            assert contact["email"] == user.emails[0].address
            assert [team["name"] for team in commercial.all(TEAM)] == ["Pilots"]
            users.delete(user.id)
            wait_until_delivered(5)
        assert commercial.all(CONTACT) == []
