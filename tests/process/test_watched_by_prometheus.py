"""A real Prometheus with our configuration and rules scrapes a receiver and a relay: every panel and rule has data."""

from __future__ import annotations

import json
import math
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, the_block
from tests.helpers.machine import program
from tests.helpers.metrics import DASHBOARD, expressions, plain, variables
from tests.helpers.processes import free_port, listening, site
from tests.helpers.receiver import ask, status_of, webhook
from tests.helpers.traffic import serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import body

FOLDER = ROOT / "deploy" / "prometheus"
MADE: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
PAGE = the_block("docs/how-to/watch-with-prometheus.md", "toml")
COUNTED = sorted(
    set(
        re.findall(
            r"(?:rate|increase)\((\w+)", "".join((FOLDER / name).read_text() for name in ("alerts.yml", "slo.yml"))
        )
    )
)
"""Counters in which rules look for an increase."""
HEALTHY = {"ReceiverGone", "NoRelay", "RelayGone"}
"""Alerts that would fire if Prometheus did not find what it looks for."""


class Prometheus:
    """The HTTP API of one that runs."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401  # JSON
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def is_ready(self) -> bool:
        """Return whether it answers queries."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=10):
                return True
        except OSError:
            return False

    def values(self, expression: str) -> list[float]:
        """The numbers that an expression has now; NaN is none."""
        found = [float(each["value"][1]) for each in self.ask("query", query=expression)["result"]]
        return [value for value in found if not math.isnan(value)]


@pytest.fixture
def watched(sqlite_database_url: str, tmp_path: Path) -> Iterator[tuple[Prometheus, Callable[[str], int]]]:
    """A Prometheus that has scraped both programs of the page once, and a function that sends a webhook about an entity."""
    ports = {port: str(free_port()) for port in ("9100", "9101", "9090")}
    (tmp_path / "rules").mkdir()
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8").replace("interval: 15s", "interval: 1s")
        (tmp_path / "rules" / file.name).write_text(ported(text, ports), encoding="utf-8")
    command: list[str | Path] = [
        program("prometheus"), f"--config.file={tmp_path}/rules/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{ports['9090']}", "--log.level=warn",
    ]  # fmt: skip
    with serving(tmp_path / "arrivals.jsonl") as server, site(tmp_path, "") as place:
        text = f'[database]\nurl = "{sqlite_database_url}"\n' + ported(PAGE, ports)
        place.configure(text.replace("http://127.0.0.1:8302/hook", server.url))
        _, webhooks = place.receiver(workers=1, besides=1)
        place.relay()

        def send(entity: str) -> int:
            return status_of(ask(webhooks, webhook(payload=body(entity)).replace(b"/trivore", b"/shop")))

        with listening(command, int(ports["9090"]), log=tmp_path / "prometheus.log", environment={}):
            prometheus = Prometheus(int(ports["9090"]))
            until(prometheus.is_ready, "Prometheus answers", within=60)
            until(lambda: prometheus.values("sum(up)") == [2], "both are scraped", within=60)
            yield prometheus, send


def ported(text: str, ports: dict[str, str]) -> str:
    return re.sub("|".join(ports), lambda match: ports[match[0]], text)


def test_every_panel_variable_and_rule_has_data_and_nothing_fires(
    watched: tuple[Prometheus, Callable[[str], int]],
) -> None:
    prometheus, send = watched

    def absent() -> list[str]:
        """Prometheus sees no increase in a counter that begins with what it counts."""
        return [name for name in COUNTED if not prometheus.values(name)]

    until(lambda: not absent(), f"there are all of {COUNTED}")
    sent = iter(range(10_000))

    def fed(expression: str) -> list[float]:
        assert send(f"u{next(sent)}") == 200
        return prometheus.values(expression)

    for title, expression in expressions(MADE):
        until(lambda: fed(plain(expression)), f"{title} has data: {plain(expression)}", within=60)
    for series, label in variables(MADE):
        found = prometheus.ask(f"label/{label}/values", **{"match[]": series})
        assert found, f"the variable {label} has no value"
    groups = prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 40
    until(lambda: all_judged(prometheus), "every rule is judged", within=60)
    for ratio in ("route:deliveries_late:ratio_rate5m", "inbox:intake_failed:ratio_rate5m"):
        # The rule may have been judged last before there was a rate.
        until(lambda: fed(ratio) == [0], f"{ratio} is 0", within=60)
    firing = {alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"]}
    assert firing & HEALTHY == set(), "pending ones too"


def all_judged(prometheus: Prometheus) -> bool:
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
    return all(rule["health"] == "ok" for rule in rules)
