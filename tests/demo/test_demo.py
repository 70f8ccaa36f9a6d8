"""`relay demo`: its services and their webhooks, its screen, and all of it as a user runs it: real processes and a real kill."""

from __future__ import annotations

import io
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from rich.console import Console

from inbox.clock import SystemClock
from relay.demo.run import CHANGES, DemoScreen
from relay.demo.scenario import ChangeMade, Scenario, sample_edit, sample_user
from relay.demo.services import CONTACT, GROUP, USER, App, CommercialService, IdentityService, WebhookSender, served
from tests.helpers.planted import HOSTILE, harm_of
from tests.helpers.processes import Program, invoke
from tests.helpers.scripted import answer, serving
from tests.helpers.waiting import until

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
def asking(app: App, authorization: str) -> Iterator[Any]:
    """A function that asks a running service, and gives its answer."""
    with served(app) as url, requests.Session() as session:
        session.trust_env = False

        def ask(method: str, path: str, **options: Any) -> requests.Response:  # noqa: ANN401  # requests' own
            headers = {"Authorization": authorization, **options.pop("headers", {})}
            return session.request(method, f"{url}{path}", timeout=WAIT, headers=headers, **options)

        yield ask


def test_users_come_in_pages_and_a_sweep_asks_for_those_changed_since_an_instant() -> None:
    with closing(WebhookSender()) as webhooks:
        service = IdentityService(webhooks)
        ids = [service.create(USER, sample_user(number))["id"] for number in range(5)]
        with asking(service.app, "Basic ZGVtbzpkZW1v") as ask:
            page = ask("GET", f"{API}user", params={"startIndex": 3, "count": 3}).json()
            assert [user["id"] for user in page.pop("resources")] == ids[3:]
            assert page == {"totalResults": 5, "startIndex": 3, "itemsPerPage": 2}
            since = service.replace(USER, ids[0], {"username": "aino"})["meta"]["lastModified"]
            later = ask("GET", f"{API}user", params={"filter": f'meta.lastModified ge "{since}"'}).json()
            assert ids[0] in [user["id"] for user in later["resources"]]
            refused = ask("GET", f"{API}user", headers={"Authorization": "Basic ZGVtbzp3cm9uZw=="})
            assert refused.status_code == 401


def test_a_call_that_fails_on_purpose_changes_nothing_and_a_wrong_token_opens_nothing() -> None:
    service = CommercialService(fail_share=1)
    with asking(service.app, BEARER) as ask:
        refused = ask("POST", "/contacts", json={})
        assert (refused.status_code, refused.headers["Retry-After"], list(service.all(CONTACT))) == (503, "0.2", [])
        service.fail_share = 0
        assert ask("GET", "/contacts", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_webhook_is_sent_again_until_it_is_accepted_and_so_is_one_whose_answer_got_lost() -> None:
    """Any error status counts, and so do redirects; the screen gets every try, and each entity's come in order."""
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


def test_the_scenario_makes_changes_of_every_kind_and_there_are_always_users_left() -> None:
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
def test_no_value_of_a_change_a_webhook_or_a_call_moves_a_cursor_hides_or_is_markup(width: int | None) -> None:
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
    """`relay demo`, after some Python that makes the run another one."""
    return [sys.executable, "-c", f"{before}\nfrom relay.cli.main import main\nmain()", "demo", *arguments]


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, before=before), capture_output=True, text=True, timeout=WAIT, check=False)


def test_it_ends_well_when_both_services_agree(tmp_path: Path) -> None:
    """One call in ten failing, answers lost, the relay killed over its work: nothing is missing, no orphan is left."""
    ended = run("--folder", str(tmp_path), before=SHORT_ROUND)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for expected in (
        r"killed the relay \(SIGKILL\)",
        r"^ +trivore +USER +\d+ +1 +1 ",
        r"^ +trivore +GROUP +\d+ +1 +1 ",
        r"^Both services agree in all fields",
        r"command replay[^$]*call    DELETE 204",
    ):
        assert re.search(expected, ended.stdout, re.MULTILINE), (expected, ended.stdout)
    assert len(re.findall(r"^ +\d+ entit\w+ compared: in sync$", ended.stdout, re.MULTILINE)) == 2
    assert (tmp_path / "inbox.toml").stat().st_mode & 0o777 == 0o600
    again = invoke("relay", "demo", "--folder", str(tmp_path))
    assert (again.status, "is not empty, and stays as it is" in again.stderr) == (2, True)


def test_a_part_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    ended = run("--folder", str(tmp_path), before=BROKEN_FILE)
    assert (ended.returncode, "pre_set" in ended.stderr) == (2, True), ended.stdout + ended.stderr


@pytest.mark.long
def test_a_signal_ends_everything_in_order(tmp_path: Path) -> None:
    staying = command("--stay", "--folder", str(tmp_path / "demo"), before=SHORT_ROUND)
    demo = Program(staying, log=tmp_path / "log", environment={})
    try:
        demo.writes("\nend it", within=WAIT)
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
