"""Tables, examples and queries of reference pages are those of the product."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.config.model import Config
from inbox.config.sync import Fetch, MapField, SyncRoute
from inbox.db import guarantees
from inbox.db.engine import PINNED
from inbox.db.migrate import ROLES, roles_script
from inbox.errors import MappingError
from inbox.loader.load import parse_config
from relay import destinations
from relay.delivery.outcome import Delivered, Delivery
from relay.sync.expressions import encode
from relay.sync.fields import compile_fields
from tests.docs import cookbook
from tests.docs.pages import PAGES, blocks, the_block
from tests.helpers.databases import open_engine
from tests.helpers.delivering import LOCAL, a_delivery, as_delivered, context
from tests.helpers.machine import run_sqlite_shell
from tests.helpers.metrics import DASHBOARD, expressions, unknown_in, variables
from tests.helpers.page import TOKEN as WEB_TOKEN
from tests.helpers.page import Entrance, entrance, on_database
from tests.helpers.processes import site
from tests.helpers.receiver import receiving
from tests.helpers.relaying import CONFIG, FakeClock, Steps
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.tables import facts
from tests.helpers.webhooks import TOKEN, body
from tests.helpers.worlds import fill_page, happen

MAPPING = PAGES["docs/reference/mapping.md"]


def rows() -> list[dict[str, str]]:
    """Return the rows of all tables as maps from column heads to cells without backticks."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", MAPPING, re.MULTILINE):
        head, _, *body = (
            [cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table.splitlines()
        )
        found += [dict(zip(head, line, strict=True)) for line in body]
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: " ".join(row.values()))
def test_a_row_of_a_table_is_true(row: dict[str, str]) -> None:
    keys = {key: row[key] for key in ("cast", "read", "write") if row.get(key)}
    field = msgspec.convert({"from": "entity", **keys}, MapField)
    made = compile_fields("r", SyncRoute(fetch=Fetch(api="i", path="/"), map={"x": field}))
    scope = {"event": {}, "entity": json.loads(row["found"]), "target": None}
    if row["sent"] == "error":
        with pytest.raises(MappingError):
            made.evaluate(scope, creating=False)
    else:
        assert encode(made.evaluate(scope, creating=False)["x"]).decode() == row["sent"]


def test_the_example_sends_the_values_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    by_kind = {
        kind: [block.text for block in blocks(MAPPING) if block.info == kind] for kind in ("toml", "python", "json")
    }
    hooks = ModuleType("our_crm")
    exec(by_kind["python"][0], hooks.__dict__)  # noqa: S102  # the page's own
    monkeypatch.setitem(sys.modules, "our_crm", hooks)
    sync = parse_config(by_kind["toml"][0]).routes["user-to-crm"].sync
    assert sync is not None
    scope, sent = map(json.loads, by_kind["json"])
    made = compile_fields("user-to-crm", sync)
    assert made.evaluate(scope, creating=False) == sent
    created = made.evaluate({**scope, "target": None}, creating=True)
    assert created == {**{name: value for name, value in sent.items() if value is not None}, "owner": "nobody"}


# --- The configurations of docs/reference/sync.md, delivered


GITHUB, SHOP = (
    block.text
    for block in blocks(PAGES["docs/reference/sync.md"])
    if block.info == "toml" and "pages" not in block.text
)


def parse_local(text: str, server: ScriptedServer) -> Config:
    """Parse a configuration of the page with all services replaced by `server`."""
    lines = [
        f'base_url = "{server.url}"\n{LOCAL}' if line.startswith("base_url") else line for line in text.splitlines()
    ]
    return parse_config("\n".join(lines))


def deliver(config: Config, delivery: Delivery) -> Delivered:
    (route,) = config.routes
    return as_delivered(destinations.build(config)[route](delivery, context()))


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_SECRET", "GITHUB_TOKEN", "SHOP_SECRET", "SHOP_TOKEN"):
        monkeypatch.setenv(name, "a-secret-value")


def test_an_issue_of_github_is_fetched_and_written_as_a_ticket() -> None:
    issue = {"id": 70, "title": "Broken", "updated_at": "2026-01-01T00:00:00Z"}
    routes = {
        "GET /repos/acme/shop/issues/7": [answer(200, issue)],
        "GET /tickets?external_id=70": [answer(200, [])],
        "POST /tickets": [answer(201)],
    }
    body = json.dumps({"issue": {"id": 70, "number": 7}, "repository": {"full_name": "acme/shop"}}).encode()
    with serving(routes=routes) as server:
        delivery = a_delivery(route="issues", entity_type="issue", entity_id="70", body=body)
        outcome = deliver(parse_local(GITHUB, server), delivery)
        assert server.asked == list(routes)
        fetch, _, create = server.seen
        assert outcome.did == "created"
        assert (fetch.headers["accept"], fetch.headers["x-github-api-version"]) == (
            "application/vnd.github+json",
            "2022-11-28",
        )
        assert json.loads(create.body) == {"ticket": {"external_id": "70", "title": "Broken"}}


def test_a_customer_of_shopify_is_fetched_and_written_by_graphql() -> None:
    customer = {"id": "gid://shopify/Customer/5", "email": "ada@example.com", "updatedAt": "2026-01-01T00:00:00Z"}
    found = {"data": {"contacts": [{"id": "c1", "externalId": "5"}]}}
    routes = {
        "POST /graphql.json": [answer(200, {"data": {"customer": customer}})],
        "POST /graphql": [answer(200, found), answer(200, {"data": {"update": {"errors": []}}})],
    }
    with serving(routes=routes) as server:
        outcome = deliver(parse_local(SHOP, server), a_delivery(route="customers", entity_id="5"))
        fetch, find, update = (json.loads(seen.body)["variables"] for seen in server.seen)
    assert outcome.did == "updated"
    assert (fetch, find) == ({"id": "gid://shopify/Customer/5"}, {"id": "5"})
    assert update == {"id": "c1", "input": {"external_id": "5", "email": "ada@example.com"}}


# --- The examples of docs/reference/web-api.md


WEB_API = PAGES["docs/reference/web-api.md"]
ADDRESS = "http://127.0.0.1:8025"


@pytest.fixture
def running(sqlite_engine: Engine, sqlite_database_url: str, tmp_path: Path) -> Iterator[Entrance]:
    fill_page(Steps(sqlite_engine, clock=FakeClock()))
    with entrance(on_database(CONFIG, sqlite_database_url), tmp_path) as made:
        yield made


def test_the_examples_work_one_after_the_other(running: Entrance, tmp_path: Path) -> None:
    printed = [run_example(block.text, running, tmp_path) for block in blocks(WEB_API) if block.info == "sh"]
    assert printed[0].startswith('{"openapi":"3.1')
    assert len(json.loads(printed[1])["rows"]) == 2
    pages = [json.loads(line) for line in printed[2].replace("}{", "}\n{").splitlines()]
    assert [row["id"] for page in pages for row in page["rows"]] == [2, 1]
    (problem,) = (json.loads(block.text) for block in blocks(WEB_API) if block.info == "json")
    assert problem in [json.loads(text) for text in printed if text.startswith('{"title"')]


def run_example(command: str, running: Entrance, folder: Path) -> str:
    for slash in ("/", r"\/"):
        command = command.replace(ADDRESS.replace("/", slash), running.url.replace("/", slash))
    environment = {"PATH": "/usr/bin:/bin", "TOKEN": WEB_TOKEN}
    done = subprocess.run(
        ["bash", "-euc", command], env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- The handler of docs/how-to/write-a-handler.md in a real relay


HANDLER, HANDLER_CONFIG = (the_block("docs/how-to/write-a-handler.md", info) for info in ("python", "toml"))
MESSAGES = the_block("docs/how-to/receive-chat-messages.md", "toml")


async def receive(config: str, *payloads: bytes) -> None:
    """Post these bodies to a receiver."""
    async with receiving(parse_config(config)) as receiver:
        for payload in payloads:
            assert (await receiver.post(payload)).status_code == 200


def test_the_example_handler_delivers_skips_and_retries(
    sqlite_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handlers.py").write_text(HANDLER, encoding="utf-8")
    config = f"[database]\nurl = {json.dumps(sqlite_database_url)}\n{HANDLER_CONFIG}"
    asyncio.run(receive(config, body("u1"), body("u2", eventType="DELETE"), body("u3", draft=True)))
    with site(tmp_path, config) as place:
        relay = place.relay("--drain")
        assert relay.ends() == 0, relay.output

    with open_engine(sqlite_database_url) as engine:
        kinds = [fact["kind"] for fact in sorted(facts(engine), key=lambda fact: fact["seq"])]
    assert kinds == ["delivered", "dead", "attempt_failed"]
    written = (tmp_path / "changes.txt").read_text()
    assert re.fullmatch(r"USER u1 changed, msg_[0-9a-f]{32}-0\n", written)


def test_the_example_of_messages_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "handlers.py").write_text(HANDLER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CHAT_HOOK_URL", "https://hooks.example.com/services/x")
    assert destinations.build(parse_config(MESSAGES)).keys() == {"to-ours", "to-chat"}


# --- docs/reference/configuration.md has every verified database setting with its required value


SECTION = PAGES["docs/reference/configuration.md"].partition("## The database\n")[2].partition("\n## ")[0]


def test_each_required_setting_has_its_row() -> None:
    for name, (values, why) in guarantees.REQUIRED.items():
        assert f"| `{name}` | {' or '.join(f'`{value}`' for value in values)} | {why} |" in SECTION


def test_each_recommended_setting_is_named() -> None:
    for name in (*guarantees.RECOMMENDED, *guarantees.SQLITE_PRAGMAS):
        assert f"`{name}`" in SECTION


def test_each_pinned_setting_is_verified() -> None:
    read = {name.lower() for name in guarantees.REQUIRED}
    assert {name.removeprefix("default_") for name in PINNED} <= read


SHOWN = expressions(json.loads(DASHBOARD.read_text(encoding="utf-8")))


# --- Queries of the Grafana dashboard name metrics and labels of the registry


def test_queries_and_variables_of_the_dashboard_name_only_metrics_and_labels_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    shown = [expression for _, expression in expressions(dashboard)]
    shown += [f"{series}{{{label}=1}}" for series, label in variables(dashboard)]
    assert [wrong for expression in shown for wrong in unknown_in(expression)] == []


# --- The page about roles has those of the code with their settings; test_contributing.py runs its statements


ROLES_PAGE = "docs/how-to/limit-what-roles-may-do.md"


def test_each_role_and_each_of_its_settings_has_its_row() -> None:
    for role in ROLES:
        assert f"| `inbox_{role}` |" in PAGES[ROLES_PAGE]
    settings = re.findall(r"\(\d, 'inbox_(\w+)', '(\w+)', '(\w+)'\)", roles_script())
    assert len(settings) == 13
    for role, name, value in settings:
        said = f"{role}, reader_without_payloads" if role == "reader" else role
        assert f"| {said} | `{name}` | `{value}` |" in PAGES[ROLES_PAGE]


def test_the_command_of_the_page_reads_a_sqlite_file(sqlite_database_url: str) -> None:
    _, where, query = shlex.split(the_block(ROLES_PAGE, "sh", "mode=ro"))
    assert run_sqlite_shell(where.replace("inbox.db", sqlite_database_url.removeprefix("sqlite:///")), query) == "0"


# --- Queries of docs/reference/dba.md give the page's results on both databases


def test_every_query_gives_the_result_of_the_page(engine: Engine) -> None:
    night = happen(engine)
    wrong = []
    for question in cookbook.questions(engine.dialect.name):
        night.beat()
        with engine.begin() as connection:
            given = cookbook.answer(connection, question.statement)
        if given is None:
            night.operate()
        if given != question.answer:
            wrong.append(f"{cookbook.PAGE}:{question.line} {question.text}\n{given}")
    assert not wrong, "\n".join(wrong)
