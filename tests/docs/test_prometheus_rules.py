"""The rules in deploy/prometheus: their expressions, their tests by promtool, their names and their runbooks."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.blocks.metrics import name_runbook, read_alerts
from relay.delivery.alerts import SENTENCES
from relay.doctor.examinations import EXAMINATIONS
from tests.docs.pages import PAGES, ROOT, blocks, shell
from tests.helpers.machine import program
from tests.helpers.metrics import unknown_in

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

OWN = {
    "receiver_gone": "only somebody else sees it",
    "nothing_arrives": "of all sources together, also without silent_after",
    "intake_unavailable": "senders get 503, whatever the cause is",
    "rejections_rising": "a rate, which Prometheus knows better",
    "relay_gone": "`relay status` lists it among the relays",
    "lanes_blocked": "`blocked`, of all routes",
    "paused_for_days": "`gate_closed`, for longer",
    "breaker_open_long": "`gate_closed`, for longer",
    "items_failed_alone": "the name of its metric",
    "database_trouble": "the name of its metric",
    "intake_budget_burns": "a service level, not a condition",
    "delivery_budget_burns": "a service level, not a condition",
}
"""Alerts that neither the relay nor the doctor has, and why."""
ALSO = {"breaker_open": "breaker_open_long"}
"""Alerts of the relay that begin at once, and the word for the condition when it lasts."""

SHOWN_AS_ALERTS = {
    "breaker_open", "endpoint_retired", "source_silent", "backlog_old", "webhooks_missed", "intake_stopped",
    "retention_behind",
}  # fmt: skip
"""Alerts of the relay that the doctor has no examination for: it lists open ones, as `alert`."""


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def page_of(page: str) -> str:
    """The path of a page on the site, which Sphinx builds from the repository as its source."""
    return page.removesuffix(".md") + ".html"


def promtool(*arguments: str | Path, folder: Path = FOLDER) -> str:
    tool = program("prometheus", tool="promtool")
    done = subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("rule", [*ALERTS, *RECORDS], ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_names_only_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    assert unknown_in(rule["expr"], RECORDED) == []


def test_promtool_accepts_the_rules_and_the_example_of_a_configuration() -> None:
    promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")


@pytest.mark.parametrize("file", ["rules_test.yml", pytest.param("rules_days_test.yml", marks=pytest.mark.nightly)])
def test_rules_fire_when_they_should_and_only_then(file: str) -> None:
    assert "SUCCESS" in promtool("test", "rules", file)


def test_every_alert_has_a_scene_in_which_it_fires() -> None:
    scenes = "".join((FOLDER / file).read_text(encoding="utf-8") for file in ("rules_test.yml", "rules_days_test.yml"))
    fired = set(re.findall(r"labels: '{alertname=\"(\w+)\"", scenes))
    assert fired == {rule["alert"] for rule in ALERTS}


def test_a_condition_has_one_name_everywhere() -> None:
    ours = {snake(rule["alert"]) for rule in ALERTS}
    findings = {kind.name for examination in EXAMINATIONS for kind in examination.kinds}
    assert ours - findings - SENTENCES.keys() == OWN.keys()
    assert {ALSO.get(kind, kind) for kind in SENTENCES} <= ours
    assert SENTENCES.keys() - findings == SHOWN_AS_ALERTS


def test_every_alert_has_a_severity_and_a_runbook_and_every_runbook_an_alert() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["labels"]["service"] == "inbox-relay"
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["runbook_url"] == SITE + page_of(RUNBOOKS + name_runbook(rule["alert"]))
    pages = {page: text for page, text in PAGES.items() if page.startswith(RUNBOOKS) and not page.endswith("README.md")}
    assert pages.keys() == {RUNBOOKS + name_runbook(rule["alert"]) for rule in ALERTS}
    for page, text in pages.items():
        title, *sections = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert page.endswith("/" + name_runbook(title))
        assert sections == ["Meaning", "Diagnose", "Fix"], page
        assert len(text.splitlines()) <= 45, f"{page}: a person with an alert reads a screen"


def test_the_page_of_service_levels_has_the_objectives_of_the_rules() -> None:
    objectives = [rule["expr"] for rule in RECORDS if rule["record"].endswith(":objective")]
    page = PAGES["docs/explanation/service-levels.md"]
    for expression in objectives:
        share = float(expression.removeprefix("vector(").removesuffix(")"))
        assert f"| {share * 100:g} % |" in page


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
