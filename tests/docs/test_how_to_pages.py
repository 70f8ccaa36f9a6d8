"""Messages, commands, statements, rules and sweeps of pages are those of the product."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from docs.blocks.metrics import name_runbook, read_alerts
from inbox.loader.load import parse_config
from relay.delivery.policy import policies
from relay.destinations.base import without_lease
from relay.store.database import Database
from relay.store.operator import execution
from relay.store.operator.execution import OpenCommands
from relay.store.sweeps import SweepFindings
from relay.store.work import Work
from relay.sweep.run import CompiledSweep
from tests.docs.pages import PAGES, ROOT, blocks, find_expected, parse_command, shell, shows, the_block
from tests.helpers.databases import ON_SQLITE
from tests.helpers.directory import parse_filter
from tests.helpers.machine import program
from tests.helpers.metrics import unknown_in
from tests.helpers.processes import Site, site
from tests.helpers.relaying import DONE, HOPELESS, Steps, work_of
from tests.helpers.scripted import Act, answer
from tests.helpers.storing import an_event
from tests.helpers.tables import rows
from tests.helpers.webhooks import config_text
from tests.vendors import github_api, hubspot_api, shopify_api, stripe_api
from tests.vendors.github_api import GitHub
from tests.vendors.hubspot_api import HubSpot
from tests.vendors.service import Asked, VendorService
from tests.vendors.shopify_api import Shopify
from tests.vendors.stripe_api import Stripe

TROUBLESHOOT = PAGES["docs/how-to/troubleshoot.md"]
MESSAGES = dict(re.findall(r"^### ([^\n]+)\n\n```text\n(.*?)```", TROUBLESHOOT, re.MULTILINE | re.DOTALL))
FEW_WORDS = 7
"""Shorter messages are mostly values, or words of HTTP or of the database."""


def words_of(text: str) -> list[str]:
    return re.sub(r"[^\w.`/-]", " ", text).split()


def test_a_message_has_words_of_the_product() -> None:
    texts = [
        node.value
        for folder in ("inbox", "relay")
        for path in Path(folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    product = " ".join(words_of("\n".join(texts)))
    long = {heading: words_of(text) for heading, text in MESSAGES.items() if len(words_of(text)) >= FEW_WORDS}
    threes = {heading: {" ".join(words[n : n + 3]) for n in range(len(words) - 2)} for heading, words in long.items()}
    strange = [heading for heading, said in threes.items() if not any(three in product for three in said)]
    assert strange == ["404"], "Falcon's own words"
    assert len(long) > 15


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`((?:inbox|relay) [^`\n]+)`", TROUBLESHOOT))))
def test_every_command_is_valid(line: str) -> None:
    parse_command(re.sub(r"\b(ID|SEQ)\b", "1", line))


# --- Each statement of docs/how-to/give-commands-in-sql.md shows the page's output on both databases


COMMANDS_IN_SQL = "docs/how-to/give-commands-in-sql.md"
CONFIG = parse_config(the_block(COMMANDS_IN_SQL, "toml"))


def run_statement(steps: Steps, statement: str) -> str:
    """Run a statement, let a relay execute all commands, and return the output."""
    if statement.startswith("SELECT"):
        return "\n".join(" ".join(map(str, row.values())) for row in steps.rows(statement))
    try:
        steps.do(statement)
    except IntegrityError as error:
        return str(error.orig)
    working = OpenCommands()
    while working.work(steps.work):
        pass
    working.work(steps.work)
    return ""


def test_every_statement_shows_the_output_of_the_page(engine: Engine) -> None:
    steps = Steps(engine, policies(CONFIG))
    steps.config = CONFIG
    steps.arrive(*(an_event(n, f"u{n}", routes=["to-crm"]) for n in (1, 2)))
    steps.record_all(steps.claim_due(10, "to-crm"), HOPELESS)
    page = blocks(PAGES[COMMANDS_IN_SQL])
    for position, block in enumerate(page):
        if block.info == "sql":
            shown, expected = run_statement(steps, block.text.strip()), find_expected(page, position)
            assert shows(expected or "", shown), f"line {block.line}: {shown}"
    assert [state for _, _, state in steps.states()] == ["ready", "ready"]


# --- The pragma of docs/how-to/repair-the-database.md keeps a `sqlite3` shell from making checkpoints


def makes_checkpoints(path: Path, pragma: str) -> bool:
    """Return whether a program that runs `pragma` and writes 16 MB beside another one changes the database file itself."""
    with closing(sqlite3.connect(path)) as other, closing(sqlite3.connect(path, isolation_level=None)) as shell:
        other.execute("PRAGMA journal_mode = WAL")
        shell.execute("CREATE TABLE t (x)")
        shell.executescript(pragma)
        for _ in range(2):
            shell.execute("INSERT INTO t VALUES (zeroblob(8000000))")
        return path.stat().st_size > 8_000_000


def test_the_pragma_of_the_page_ends_automatic_checkpoints(tmp_path: Path) -> None:
    pragma = the_block("docs/how-to/repair-the-database.md", "sql")
    assert makes_checkpoints(tmp_path / "as-it-is.db", "")
    assert not makes_checkpoints(tmp_path / "as-told.db", pragma)


# --- The commands and statements of docs/how-to/erase-a-person.md


ERASE = blocks(PAGES["docs/how-to/erase-a-person.md"])
COMMANDS = [shlex.split(block.text) for block in ERASE if block.info == "text"]
REQUEST, MAINTENANCE = (block.text for block in ERASE if block.info == "sql")


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, config_text(database_url)) as made:
        yield made


def store_ended_event(engine: Engine, number: int) -> None:
    steps = Steps(engine)
    steps.arrive(an_event(number, "IDNUMBER1234"))
    steps.until_nothing_is_due()


def test_the_commands_show_the_plan_and_erase(place: Site, engine: Engine) -> None:
    store_ended_event(engine, 1)
    plan, done = (place.invoke(*command) for command in COMMANDS)
    assert (plan.status, done.status) == (0, 0)
    assert "events: 1" in plan.stdout
    assert done.stderr.endswith("1 event erased\n")


def test_a_relay_executes_the_statement(engine: Engine) -> None:
    store_ended_event(engine, 1)
    with engine.begin() as connection:
        connection.execute(text(REQUEST.replace(":", "\\:")))
    commands = execution.OpenCommands()
    while commands.work(work_of(Database(engine))):
        pass
    assert rows(engine, "SELECT count(*) AS number FROM inbox WHERE erased_at IS NOT NULL") == [{"number": 1}]


def test_the_maintenance_runs(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in MAINTENANCE.split(";")[:-1]:
            if engine.dialect.name == "postgresql" or "FULL" not in statement:
                connection.execute(text(statement))


# --- docs/how-to/change-the-configuration.md


def test_a_renamed_route_continues_under_its_new_name(database_url: str, engine: Engine, tmp_path: Path) -> None:
    page = "docs/how-to/change-the-configuration.md"
    config = f'[database]\nurl = "{database_url}"\n{the_block(page, "toml", "routes.all-to-audit")}'
    rename, *commands = the_block(page, "sh", "--open-on").splitlines()
    steps = Steps(engine, policies(parse_config(config)))
    steps.arrive(*(an_event(number, f"u{number}", routes=["all-to-audit", "users-to-chat"]) for number in range(1, 4)))
    steps.attempt_each(DONE, HOPELESS, route="all-to-audit")
    with site(tmp_path, config) as place:
        subprocess.run(shlex.split(rename), cwd=tmp_path, check=True)
        told = " ".join(place.invoke("inbox", "show", "3").stdout.split())
        assert "inbox.toml has no such route any more" in told
        assert commands[0].partition(" --reason")[0] in place.invoke("relay", "status").stdout
        assert [place.invoke(*shlex.split(command)).status for command in commands] == [0, 0]
    remaining = rows(engine, "SELECT seq, route, state FROM open_delivery WHERE route <> 'users-to-chat' ORDER BY seq")
    left = [tuple(row.values()) for row in remaining]
    assert left == [(2, "all-to-archive", "ready"), (3, "all-to-archive", "ready")]


# --- The sweeps of docs/reference/sync.md page through services that behave as their vendors document


SIZE = 250
START = datetime(2026, 11, 2, 9, 0, 1, tzinfo=UTC)
"""Time of a vendor's first change; the others follow each second."""
SINCE = START + timedelta(seconds=10)
CHANGED = range(10, SIZE)


def time_of(number: int) -> datetime:
    return START + timedelta(seconds=number)


def iso(number: int) -> str:
    return time_of(number).isoformat().replace("+00:00", "Z")


def github() -> GitHub:
    made = GitHub()
    for number in range(SIZE):
        made.issue("acme/shop", f"issue {number}", id=number)
    return made


def stripe() -> Stripe:
    made = Stripe()
    for number in range(SIZE):
        made.customer(f"cus_{number}", int(time_of(number).timestamp()))
    return made


def shopify() -> Shopify:
    made = Shopify()
    for number in range(SIZE):
        made.order("ada@example.com", "1.00", id=number)
    return made


def hubspot() -> HubSpot:
    made = HubSpot()
    for number in range(SIZE):
        made._create({"email": f"u{number}@example.com"})
    return made


class Vendor(VendorService):
    """A service that responds by a function."""

    def __init__(self, act: Callable[[Asked], Act]) -> None:
        self._act = act
        super().__init__()

    def respond(self, asked: Asked) -> Act:
        return self._act(asked)


def scim(asked: Asked) -> Act:
    """Respond with at most 100 users a page, from 1; without results there is no list (RFC 7644 §3.4.2)."""
    assert asked.path == ("scim", "v2", "Users")
    criterion = asked.query.get("filter")
    passes = (lambda _: True) if criterion is None else parse_filter(criterion)
    of_all = SIZE if "lastModified" in (criterion or "") else SIZE - 1
    users = [{"id": str(n), "externalId": f"{n}", "meta": {"lastModified": iso(n)}} for n in range(of_all)]
    found = [user for user in users if passes(user)]
    begin = max(int(asked.query["startIndex"]), 1) - 1
    some = found[begin : begin + min(int(asked.query["count"]), 100)]
    return answer(200, {"totalResults": len(found), **({"Resources": some} if some else {})})


def graphql(asked: Asked) -> Act:
    assert (asked.method, asked.path) == ("POST", ("graphql",))
    assert "nodes { id updatedAt title }" in asked.body["query"]
    variables = asked.body["variables"]
    assert variables["since"] == iso(10)
    begin, first = int(variables.get("after", "c0")[1:]), variables["first"]
    assert "after" not in variables or begin
    nodes = [{"id": str(number), "updatedAt": iso(number), "title": "x"} for number in CHANGED[begin : begin + first]]
    info = {"endCursor": f"c{begin + first}", "hasNextPage": begin + first < len(CHANGED)}
    return answer(200, {"data": {"issues": {"nodes": nodes, "pageInfo": info}}})


VENDORS: dict[str, tuple[Callable[[], VendorService], str, Callable[[int], str]]] = {
    "GitHub": (github, github_api.TOKEN, str),
    "Stripe": (stripe, stripe_api.KEY, "cus_{}".format),
    "Shopify": (shopify, shopify_api.TOKEN, str),
    "HubSpot": (hubspot, hubspot_api.TOKEN, lambda number: str(501 + number)),
    "SCIM": (partial(Vendor, scim), "x", str),
    "GraphQL": (partial(Vendor, graphql), "x", str),
}
"""Maps a heading to a service, its token, and the ids of its entities."""


def config_of(vendor: str, url: str) -> str:
    """Return the configuration below the vendor's heading, with its services at `url`."""
    page = PAGES["docs/reference/sync.md"]
    section = page[page.index(f"\n### {vendor}\n") :]
    text = section[section.index("```toml\n") + 8 : section.index("\n```\n")]
    here = re.sub(
        r'base_url = "https://[^/"]+([^"]*)"', rf'base_url = "{url}\1"\nallow_private = true\nallow_http = true', text
    )
    assert here != text
    return re.sub(r'"env:\w+"', f'"{VENDORS[vendor][1]}"', here)


def sweep(config: str, engine: Engine, since: datetime) -> SweepFindings:
    parsed = parse_config(config)
    (source,) = parsed.sources
    *_, last = CompiledSweep(parsed, source, 0).run(Work(Database(engine), parsed, {}), without_lease(), since)
    return last


@ON_SQLITE
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_sweep_of_the_page_reads_each_change_of_the_vendor_once(vendor: str, engine: Engine) -> None:
    made, _, name = VENDORS[vendor]
    with contextlib.closing(made()) as server:
        last = sweep(config_of(vendor, server.url), engine, SINCE)
    assert (last.compared, last.added, last.left_out) == (len(CHANGED), len(CHANGED), 0)
    stored = rows(engine, "SELECT entity_id, body, occurred_at FROM inbox JOIN inbox_payload USING (seq)")
    assert sorted(row["entity_id"] for row in stored) == sorted(map(name, CHANGED))
    assert 3 <= len(server.seen) <= 5, "a hundred a page"
    if vendor == "GitHub":
        body = json.loads(stored[0]["body"])
        assert body["issue"]["updated_at"] == body["sweep"]["modified"]
        assert body["repository"] == {"full_name": "acme/shop"}


def test_every_vendor_of_the_page_has_a_service_here() -> None:
    headings = re.findall("^### (.*)$", PAGES["docs/reference/sync.md"], re.MULTILINE)
    assert headings == [*VENDORS]


# --- The rules in deploy/prometheus: expressions, tests by promtool, names and runbooks


FOLDER = ROOT / "deploy" / "prometheus"
RUNBOOKS = "docs/how-to/runbooks/"
SITE = "https://docs.example.com/"
ALERTS = list(read_alerts())
RECORDS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "slo.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"]: frozenset({"route"} if rule["record"].startswith("route:") else ()) for rule in RECORDS}


def page_of(page: str) -> str:
    """Return the path of a page on the site that Sphinx builds from the repository."""
    return page.removesuffix(".md") + ".html"


def promtool(*arguments: str | Path, folder: Path = FOLDER) -> str:
    tool = program("prometheus", tool="promtool")
    done = subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("rule", [*ALERTS, *RECORDS], ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_names_only_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    assert unknown_in(rule["expr"], RECORDED) == []


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")


@pytest.mark.parametrize("file", ["rules_test.yml", pytest.param("rules_days_test.yml", marks=pytest.mark.nightly)])
def test_rules_fire_when_they_should_and_only_then(file: str) -> None:
    assert "SUCCESS" in promtool("test", "rules", file)


def test_every_alert_has_a_scene_in_which_it_fires() -> None:
    scenes = "".join((FOLDER / file).read_text(encoding="utf-8") for file in ("rules_test.yml", "rules_days_test.yml"))
    fired = set(re.findall(r"labels: '{alertname=\"(\w+)\"", scenes))
    assert fired == {rule["alert"] for rule in ALERTS}


def test_every_alert_has_a_severity_and_a_runbook_and_every_runbook_an_alert() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["labels"]["service"] == "inbox-relay"
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["runbook_url"] == SITE + page_of(RUNBOOKS + name_runbook(rule["alert"]))
    pages = {
        page: words for page, words in PAGES.items() if page.startswith(RUNBOOKS) and not page.endswith("README.md")
    }
    assert pages.keys() == {RUNBOOKS + name_runbook(rule["alert"]) for rule in ALERTS}
    for page, words in pages.items():
        title, *sections = re.findall(r"^#+ (.+)$", words, re.MULTILINE)
        assert page.endswith("/" + name_runbook(title))
        assert sections == ["Meaning", "Diagnose", "Fix"], page
        assert len(words.splitlines()) <= 45, f"{page}: longer than a screen"


def test_the_commands_of_the_page_work_in_a_copy_of_the_folder(tmp_path: Path) -> None:
    tool = program("prometheus", tool="promtool").parent
    with shell(tmp_path, tool) as terminal:
        for file in FOLDER.iterdir():
            shutil.copy(file, tmp_path / "here")
        for block in blocks(PAGES["docs/how-to/watch-with-prometheus.md"]):
            if block.info == "sh":
                terminal.run(block, None)
        copied = (tmp_path / "here" / "alerts.yml").read_text(encoding="utf-8")
    links = re.findall(r"runbook_url: (.+)", copied)
    assert len(links) == len(ALERTS)
    assert all(link.startswith("https://wiki.example.org/inbox-relay/docs/how-to/runbooks/") for link in links)
