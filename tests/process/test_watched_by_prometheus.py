"""A real Prometheus with our configuration and rules scrapes a receiver and a relay: every panel and rule has data."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, the_block
from tests.helpers.machine import program
from tests.helpers.metrics import DASHBOARD, expressions, plain, variables
from tests.helpers.processes import free_port, listening, site
from tests.helpers.receiver import post_json
from tests.helpers.traffic import serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, body

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
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401  # JSON
        """Give the data; None: it does not answer yet."""
        try:
            with urllib.request.urlopen(f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as told:
                return json.load(told)["data"]
        except (ConnectionError, urllib.error.URLError):
            return None

    def values(self, expression: str) -> list[float]:
        """The numbers that an expression has now; NaN is none."""
        data = self.ask("query", query=expression) or {"result": ()}
        found = [float(each["value"][1]) for each in data["result"]]
        return [value for value in found if not math.isnan(value)]

    def has_judged_all(self) -> bool:
        """Return whether each rule was looked at, without an error."""
        rules = [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
        assert len(rules) > 40
        assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
        return all(rule["health"] == "ok" for rule in rules)


@pytest.fixture
def watched(sqlite_database_url: str, tmp_path: Path) -> Iterator[tuple[Prometheus, Callable[[str], int]]]:
    """A Prometheus that has scraped both programs of the page once, and a function that sends a webhook about an entity."""
    ports = {port: str(free_port()) for port in ("9100", "9101", "9090")}

    def ported(text: str) -> str:
        return re.sub("|".join(ports), lambda match: ports[match[0]], text)

    (tmp_path / "rules").mkdir()
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8").replace("interval: 15s", "interval: 1s")
        (tmp_path / "rules" / file.name).write_text(ported(text), encoding="utf-8")
    command: list[str | Path] = [
        program("prometheus"), f"--config.file={tmp_path}/rules/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{ports['9090']}", "--log.level=warn",
    ]  # fmt: skip
    with serving(tmp_path / "arrivals.jsonl") as server, site(tmp_path, "") as place:
        text = f'[database]\nurl = "{sqlite_database_url}"\n' + ported(PAGE)
        place.configure(text.replace("http://127.0.0.1:8302/hook", server.url))
        _, webhooks = place.receiver(workers=1, besides=1)
        place.relay()
        with listening(command, int(ports["9090"]), log=tmp_path / "prometheus.log", environment={}):
            prometheus = Prometheus(int(ports["9090"]))
            until(lambda: prometheus.values("sum(up)") == [2], "both are scraped", within=60)
            yield prometheus, lambda entity: post_json(webhooks, "/webhooks/shop", body(entity), HEADERS)


def test_every_panel_variable_and_rule_has_data_and_nothing_fires(
    watched: tuple[Prometheus, Callable[[str], int]],
) -> None:
    prometheus, send = watched
    # Prometheus sees no increase in a counter that begins with what it counts.
    until(lambda: all(prometheus.values(name) for name in COUNTED), f"there are all of {COUNTED}")
    sent = count()

    def fed(expression: str) -> list[float]:
        assert send(f"u{next(sent)}") == 200
        return prometheus.values(expression)

    for title, expression in expressions(MADE):
        until(lambda: fed(plain(expression)), f"{title} has data: {plain(expression)}", within=60)
    for series, label in variables(MADE):
        assert prometheus.ask(f"label/{label}/values", **{"match[]": series}), f"the variable {label} has no value"
    until(prometheus.has_judged_all, "every rule is judged", within=60)
    for ratio in ("route:deliveries_late:ratio_rate5m", "inbox:intake_failed:ratio_rate5m"):
        # The rule may have been judged last before there was a rate.
        until(lambda: fed(ratio) == [0], f"{ratio} is 0", within=60)
    firing = {alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"]}
    assert firing & HEALTHY == set(), "pending ones too"
