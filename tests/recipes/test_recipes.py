"""Each recipe is followed as its page says, with services of the test instead of the page's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import pytest
from scim2_models import ListResponse, User

from inbox.clock import SystemClock
from inbox.loader.load import read_config
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.store.database import Database
from tests.docs.pages import PAGES, Block, blocks, find_expected, shows
from tests.helpers.databases import open_engine
from tests.helpers.processes import invoke
from tests.helpers.receiver import serve_receiver
from tests.helpers.scripted import Seen, answer, serving
from tests.vendors import clients, github_api, hubspot_api, okta_api, scim_api, shopify_api, stripe_api, trivore_api
from tests.vendors.github_api import GitHub
from tests.vendors.hubspot_api import HubSpot
from tests.vendors.okta_api import Okta
from tests.vendors.scim_api import serving_scim
from tests.vendors.service import Records
from tests.vendors.shopify_api import Shopify
from tests.vendors.stripe_api import Stripe
from tests.vendors.trivore_api import Trivore

SLACK = "https://hooks.slack.com"
INCOMING_WEBHOOK = f"{SLACK}/services/T0001/B0001/abc"


def test_issues_of_gitlab_become_messages(sqlite_database_url: str, tmp_path: Path) -> None:
    secrets = {"GITLAB_TOKEN": "a-token", "CHANNEL_URL": INCOMING_WEBHOOK}
    with serving(answer(200, b"ok")) as slack:
        follow("gitlab-to-chat", tmp_path, sqlite_database_url, {SLACK: slack}, **secrets)
        assert len(slack.seen) == 1


def test_a_message_becomes_a_ticket_even_after_a_rejection_and_a_replay(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    secrets = {
        "SLACK_SIGNING_SECRET": "8f742231b10e8888abcd99yyyzzz85a5",
        "TRACKER_URL": "https://tracker.example.com/api/tickets",
        "TRACKER_TOKEN": "tracker-token",
    }
    with serving(answer(201, {"id": 1}), answer(422, {"error": "no title"}), answer(201, {"id": 2})) as tracker:
        follow("slack-to-ticket", tmp_path, sqlite_database_url, {"https://tracker.example.com": tracker}, **secrets)
        first, rejected, replayed = tracker.seen
    assert rejected.body == replayed.body
    assert len({seen.headers["idempotency-key"] for seen in (first, rejected, replayed)}) == 3


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_destination_that_is_down_delays_no_other(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    secrets = {"GITHUB_SECRET": "one", "AUDIT_SECRET": "two", "TEAM_URL": INCOMING_WEBHOOK}
    database_url = request.getfixturevalue(f"{kind}_database_url")
    with (
        serving(answer(204)) as ours,
        serving(answer(503), answer(204)) as audit,
        serving(answer(200, b"ok")) as slack,
    ):
        services = {"https://ours.example.com": ours, "https://audit.example.com": audit, SLACK: slack}
        folder = follow("fan-out", tmp_path, database_url, services, **secrets)
        assert ours.seen[0].body == (folder / "pull.json").read_bytes()
        assert (len(ours.seen), len(slack.seen)) == (1, 1)


def test_every_webhook_becomes_a_line_of_the_log(sqlite_database_url: str, tmp_path: Path) -> None:
    folder = follow("audit-log", tmp_path, sqlite_database_url, {}, GITHUB_SECRET="one", STRIPE_SECRET="two")
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines() if line]
    assert len({line["key"] for line in lines}) == 4


def test_single_and_batched_events_are_counted_once(sqlite_database_url: str, tmp_path: Path) -> None:
    follow("cloudevents-to-function", tmp_path, sqlite_database_url, {}, EVENTS_TOKEN="a-token")


def test_every_recipe_has_a_test_and_the_same_sections() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for page, text in PAGES.items():
        if page.startswith("docs/recipes/") and not page.endswith("README.md"):
            assert f'"{Path(page).stem}"' in tests, f"no test follows {page}"
            headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
            parts = ["Configure", "Input", "Result", "Troubleshoot"]
            assert [each for each in headings if each in parts] == parts, page


# --- Recipes with services of tests/vendors, which the vendors' own clients verify


OWN_TOKEN = "own-token"


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the vendors' clients call the services themselves."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_issues_of_github_become_tickets(sqlite_database_url: str, tmp_path: Path) -> None:
    with closing(GitHub()) as github, closing(Records("tickets", OWN_TOKEN)) as tracker:
        for number, title in enumerate(("Spelling error in the README file", "A second one"), start=1):
            github.issue("Codertocat/Hello-World", title, labels=("bug",), id=444_500_040 + number)
        github.issue("Codertocat/Hello-World", "A pull request", pull_request={"url": "…"})
        services = {"https://api.github.com": github, "https://tracker.example.com": tracker}
        secrets = {"GITHUB_SECRET": "x", "GITHUB_TOKEN": github_api.TOKEN, "TRACKER_TOKEN": OWN_TOKEN}
        follow("github-to-tracker", tmp_path, sqlite_database_url, services, **secrets)
        assert [ticket["title"] for ticket in tracker.all.values()] == [
            "Spelling error in the README file",
            "A second one",
        ]


def test_orders_of_shopify_come_to_an_erp(sqlite_database_url: str, tmp_path: Path) -> None:
    with closing(Shopify()) as shopify, closing(Records("sales-orders", OWN_TOKEN)) as erp:
        shopify.order("jon@example.com", "398.00", id=820_982_911_946_154_508, name="#9999")
        shopify.order("eve@example.com", "12.00")
        services = {"https://example.myshopify.com": shopify, "https://erp.example.com": erp}
        secrets = {"SHOPIFY_SECRET": "x", "SHOPIFY_TOKEN": shopify_api.TOKEN, "ERP_TOKEN": OWN_TOKEN}
        follow("shopify-to-erp", tmp_path, sqlite_database_url, services, **secrets)
        assert [order["customer"] for order in erp.all.values()] == ["jon@example.com", "eve@example.com"]


def test_customers_of_stripe_become_contacts_of_hubspot(sqlite_database_url: str, tmp_path: Path) -> None:
    with closing(Stripe()) as stripe, closing(HubSpot("stripe_customer_id")) as hubspot:
        stripe.customer("cus_NffrFeUfNV2Hib", email="jennyrosen@example.com", name="Jenny Rosen")
        stripe.customer("cus_2", 1_686_089_971, email="jon@example.com", name="Jon")
        stripe.customer("cus_3", 1_686_089_972)
        services = {"https://api.stripe.com": stripe, "https://api.hubapi.com": hubspot}
        secrets = {"STRIPE_SECRET": "x", "STRIPE_KEY": stripe_api.KEY, "HUBSPOT_TOKEN": hubspot_api.TOKEN}
        follow("stripe-to-hubspot", tmp_path, sqlite_database_url, services, **secrets)
        names = [contact["properties"] for contact in hubspot.contacts.values()]
        assert [(each.get("firstname"), each.get("lastname")) for each in names] == [("Jenny", "Rosen"), (None, "Jon")]


def test_users_of_okta_have_accounts(postgres_database_url: str, tmp_path: Path) -> None:
    with closing(Okta()) as okta, serving_scim() as app, clients.scim_client(app.url) as scim:
        names = (("00uuv7y8Aq6kYDqT70h7", "Isaac", "Brock"), ("00uuv7y8Aq6kYDqT70h9", "Jeremiah", "Green"))
        for second, (number, first, last) in enumerate(names):
            email = f"{first}.{last}@example.com".lower()
            at = f"2026-11-02T09:00:0{second + 1}.000Z"
            okta.user(number, at, login=email, email=email, firstName=first, lastName=last)
        scim.create(
            User[Any].model_validate({"userName": "eric.judy@example.com", "externalId": "00uuv7y8Aq6kYDqT70h8"})
        )
        services: dict[str, Service] = {
            "https://example.okta.com": okta,
            "https://app.example.com": scim_api.AtRoot(app),
        }
        secrets = {"OKTA_API_TOKEN": f"SSWS {okta_api.TOKEN}", "SCIM_TOKEN": scim_api.TOKEN}
        follow("okta-to-scim", tmp_path, postgres_database_url, services, OKTA_HOOK_SECRET="x", **secrets)
        found = scim.query(User, query_parameters={"sortBy": "userName"})
        assert isinstance(found, ListResponse)
        assert [(user.user_name, user.active) for user in found.resources or ()] == [
            ("eric.judy@example.com", False),
            ("isaac.brock@example.com", True),
            ("jeremiah.green@example.com", True),
        ]


def test_users_of_trivore_have_contacts(sqlite_database_url: str, tmp_path: Path) -> None:
    with closing(Trivore()) as trivore, closing(Records("contacts", OWN_TOKEN)) as crm:
        trivore.user("IDNUMBER1234", "2026-11-02T09:00:01.000Z", "Aino", "Aalto", "aino@example.com")
        trivore.user("IDNUMBER1235", "2026-11-02T09:00:02.000Z", "Eino", "Leino", "eino@example.com")
        services = {"https://id.example.com": trivore, "https://crm.example.com": crm}
        secrets = {"TRIVORE_CLIENT": trivore_api.CLIENT, "TRIVORE_SECRET": trivore_api.SECRET, "CRM_TOKEN": OWN_TOKEN}
        follow("trivore-to-contacts", tmp_path, sqlite_database_url, services, WEBHOOK_TOKEN="x", **secrets)
        assert [contact["last_name"] for contact in crm.all.values()] == ["Aalto", "Leino"]


def test_webhooks_that_hold_the_data_become_contacts(sqlite_database_url: str, tmp_path: Path) -> None:
    with closing(Records("contacts", OWN_TOKEN)) as crm:
        secrets = {"REGISTER_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "CRM_TOKEN": OWN_TOKEN}
        services = {"https://crm.example.com": crm}
        follow("webhooks-to-contacts", tmp_path, sqlite_database_url, services, **secrets)
        assert [seen.method for seen in crm.seen if seen.method != "GET"] == ["POST", "DELETE"]


# --- Following a page


_FILE = re.compile(r"\b([\w-]+\.(?:json|py|txt))\b")
_URL_LINE = re.compile(r'^(?:url|base_url) = "([^"]*)".*$', re.MULTILINE)
_ALLOWED = "allow_private = true\nallow_http = true"
_RECEIVER = "http://127.0.0.1:8000"


class Service(Protocol):
    """A server of a test, such as a `ScriptedServer`."""

    url: str
    seen: list[Seen]


class Walk:
    """A reader of one page of `docs/recipes/`, with a folder, a receiver and a relay.

    The blocks of a page, in their order:

    - `toml` becomes `inbox.toml`, and the receiver starts (`inbox serve`). Each page has one.
    - `python` and `json` become the file that the last words before them name (`… handlers.py:`).
    - `sh` is run in the folder of these files: our commands in this process, others by bash. Then a relay delivers all events.
    - `text` directly after `sh` is its output; `…` matches any text.
    - `http` is a request to a service: its first line, some of its headers with `Host`, and its body or `…`.

    Services are named by the page's URL, such as `https://tracker.example.com`.
    """

    def __init__(self, page: str, folder: Path, database_url: str, services: Mapping[str, Service]) -> None:
        self.folder = folder
        self._page = page
        self._database_url = database_url
        self._services = services
        self._matched: set[int] = set()
        self._now = SystemClock().now()
        self._stack = contextlib.ExitStack()
        self.urls = {name: service.url for name, service in services.items()}

    def follow(self) -> None:
        """Follow the page and compare its outputs and requests."""
        read = blocks(PAGES[self._page])
        assert sum(block.info == "toml" for block in read) == 1, f"{self._page} needs one inbox.toml"
        for position, block in enumerate(read):
            where = f"{self._page}:{block.line}"
            match block.info:
                case "toml":
                    self._configure(block.text, where)
                case "python" | "json":
                    self._write(block, where)
                case "sh":
                    self._run(block.text, find_expected(read, position), where)
                case "http":
                    self._expect_request(block.text, where)
        self._run("inbox check", "… both sides would start…", self._page)

    def close(self) -> None:
        """Stop the receiver and unload the page's functions."""
        self._stack.close()
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                del sys.modules[name]

    def _configure(self, text: str, where: str) -> None:
        (self.folder / "inbox.toml").write_text(self._reachable(text, where), encoding="utf-8")
        port = self._stack.enter_context(serve_receiver(self._database_url, read_config()))
        self.urls[_RECEIVER] = f"http://127.0.0.1:{port}"

    def _reachable(self, text: str, where: str) -> str:
        """Replace the page's services by those of the test, which are local and have no TLS."""
        given = os.environ.values()
        found = {name for name in self._services if any(value.startswith(self.urls[name]) for value in given)}

        def allow(match: re.Match[str]) -> str:
            value = match[1]
            actual = os.environ.get(value.removeprefix("env:"), "") if value.startswith("env:") else value
            here = {name for name, url in self.urls.items() if actual.startswith((name, url))}
            found.update(here)
            return f"{match[0]}\n{_ALLOWED}" if here else match[0]

        reachable = self.replace_services(_URL_LINE.sub(allow, text))
        assert found >= self._services.keys(), f"{where} has no url of {sorted(self._services.keys() - found)}"
        return reachable

    def _write(self, block: Block, where: str) -> None:
        named = _FILE.findall(block.after)
        assert named, f"{where}: name the file before its block"
        if block.info == "json":
            json.loads(block.text)
        (self.folder / named[-1]).write_text(block.text, encoding="utf-8")

    def _run(self, script: str, expected: str | None, where: str) -> None:
        actual = re.sub(r"\binbox send\b", self._sending, self.replace_services(script))
        output, status = "", 0
        for line in actual.replace("\\\n", " ").splitlines():
            shown, status = _run_line(line)
            output += shown
        for name, url in self.urls.items():
            output = output.replace(url, name)
        assert expected is not None or status == 0, f"{where} ended with {status}:\n{output}"
        assert expected is None or shows(expected, output), f"{where} showed:\n{output}\ninstead of:\n{expected}"
        if any(word in script for word in ("inbox send", "--yes", "relay sweep")):
            self._drain()

    def _sending(self, _command: re.Match[str]) -> str:
        """Return the command for this receiver; its events are a second apart, like those of a reader."""
        self._now += timedelta(seconds=1)
        return f"inbox send --url {self.urls[_RECEIVER]} --at {self._now:%Y-%m-%dT%H:%M:%SZ}"

    def _drain(self) -> None:
        """Deliver all due deliveries."""
        with open_engine(self._database_url) as engine:
            Relay(Database(engine), prepare(read_config()), grace_seconds=20).run(drain=True)

    def _expect_request(self, text: str, where: str) -> None:
        head, _, body = text.partition("\n\n")
        line, *headers = head.splitlines()
        wanted = {name.lower(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
        service = self._services[f"https://{wanted.pop('host')}"]
        method, target = line.split()[:2]
        for seen in service.seen:
            fits = (
                id(seen) not in self._matched
                and (seen.method, seen.target) == (method, target)
                and all(name in seen.headers and shows(value, seen.headers[name]) for name, value in wanted.items())
                and _same_body(body, seen.body.decode())
            )
            if fits:
                self._matched.add(id(seen))
                return
        came = "\n".join(f"{seen.method} {seen.target} {seen.headers} {seen.body!r}" for seen in service.seen)
        raise AssertionError(f"{where}: no such request came, but:\n{came}")

    def replace_services(self, text: str) -> str:
        """Replace the page's services by those of the test."""
        for name, url in self.urls.items():
            text = text.replace(name, url)
        return text


def _run_line(line: str) -> tuple[str, int]:
    """Run a command and return its output and status; ours run in this process, up to their `||`."""
    ours, _, otherwise = line.partition(" || ")
    shown, rest = "", line
    if line.startswith(("inbox ", "relay ")):
        ended = invoke(*shlex.split(ours), COLUMNS="200")
        shown = ended.stdout + ended.stderr
        if not ended.status or not otherwise:
            return shown, ended.status
        rest = f"(exit {ended.status}) || {otherwise}"
    done = subprocess.run(
        ["bash", "-c", rest], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
    )
    return shown + done.stdout, done.returncode


def _same_body(expected: str, body: str) -> bool:
    """Compare bodies; in JSON, the order of keys and white space are ignored."""
    try:
        return shows(_canonical(expected), _canonical(body))
    except ValueError:
        return shows(expected, body)


def _canonical(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True, indent=1, ensure_ascii=False)


def follow(page: str, folder: Path, database_url: str, services: Mapping[str, Service], **environment: str) -> Path:
    """Follow `docs/recipes/PAGE.md` with these environment variables; return the folder of its files."""
    here = folder / "here"
    here.mkdir()
    walk = Walk(f"docs/recipes/{page}.md", here, database_url, services)
    variables = {name: walk.replace_services(value) for name, value in environment.items()}
    variables |= {"INBOX_DATABASE_URL": database_url, "INBOX_CONFIG": "inbox.toml"}
    with contextlib.chdir(here), mock.patch.dict(os.environ, variables), contextlib.closing(walk):
        walk.follow()
    return here
