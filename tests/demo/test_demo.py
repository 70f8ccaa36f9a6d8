"""`relay demo`: its services, webhooks and screen, and the whole demo with real processes."""

from __future__ import annotations

import io
import os
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
from relay.demo.run import DemoScreen
from relay.demo.scenario import ChangeMade, sample_user
from relay.demo.services import (
    USER,
    App,
    IdentityService,
    WebhookSender,
    serve,
)
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
