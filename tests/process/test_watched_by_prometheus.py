"""A real Prometheus with our configuration and rules scrapes a receiver and a relay: every panel and rule has data."""

from __future__ import annotations

import json
import math
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.docs.pages import ROOT, the_block
from tests.helpers.dashboard import DASHBOARD, expressions, plain, variables
from tests.helpers.debian import program
from tests.helpers.downstream import serving
from tests.helpers.outage import down
from tests.helpers.processes import Program, Site, free_port, listening, site
from tests.helpers.receiver import exchange, raw_post, status_of
from tests.helpers.waiting import until
from tests.helpers.webhooks import body

FOLDER = ROOT / "deploy" / "prometheus"
MADE: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
PAGE = the_block("docs/how-to/watch-with-prometheus.md", "toml")
AT_ONCE = "at once"
COUNTED = sorted(
    set(
        re.findall(
            r"(?:rate|increase)\((\w+)", "".join((FOLDER / name).read_text() for name in ("alerts.yml", "slo.yml"))
        )
    )
)
"""Counters in which rules look for an increase."""
SOON = '\nretry = { schedule = ["1s", "1s"] }\n'
"""Of the page's last route: what fails is dead soon."""
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

    def firing(self) -> set[str]:
        """The names of alerts that fire."""
        return {each["labels"]["alertname"] for each in self.ask("alerts")["alerts"] if each["state"] == "firing"}

    def values(self, expression: str) -> list[float]:
        """The numbers that an expression has now; NaN is none."""
        found = [float(each["value"][1]) for each in self.ask("query", query=expression)["result"]]
        return [value for value in found if not math.isnan(value)]


class Watched(NamedTuple):
    """A Prometheus that has scraped both programs of the page once."""

    prometheus: Prometheus
    place: Site
    receiver: Program
    webhooks: int
    """The receiver's port."""
    relay: Program

    def send(self, entity: str, payload: bytes | None = None) -> int:
        """Send a webhook of the page's source. Returns the status of the answer."""
        request = raw_post(body(entity) if payload is None else payload)
        return status_of(exchange(self.webhooks, request.replace(b"/trivore", b"/shop")))


class Crm:
    """A destination that answers the same to everybody."""

    status = 200

    def __call__(self, _seq: int, _attempt: int) -> int:
        return self.status


@pytest.fixture
def crm() -> Crm:
    return Crm()


@pytest.fixture
def watched(request: pytest.FixtureRequest, sqlite_database_url: str, tmp_path: Path, crm: Crm) -> Iterator[Watched]:
    """With the parameter AT_ONCE, no rule waits for a condition to last."""
    ports = {port: str(free_port()) for port in ("9100", "9101", "9090")}
    (tmp_path / "rules").mkdir()
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8").replace("interval: 15s", "interval: 1s")
        if getattr(request, "param", None) == AT_ONCE:
            text = re.sub(r"^( *for:) \w+$", r"\1 0s", text, flags=re.MULTILINE).replace("> 600", "> 20")
        (tmp_path / "rules" / file.name).write_text(ported(text, ports), encoding="utf-8")
    command: list[str | Path] = [
        program("prometheus"), f"--config.file={tmp_path}/rules/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{ports['9090']}", "--log.level=warn",
    ]  # fmt: skip
    with serving(tmp_path / "arrivals.jsonl", crm) as server, site(tmp_path, "") as place:
        text = f'[database]\nurl = "{sqlite_database_url}"\n' + ported(PAGE, ports)
        place.configure(text.replace("http://127.0.0.1:8302/hook", server.url) + SOON)
        receiver, webhooks = place.receiver(workers=1, besides=1)
        relay = place.relay()
        with listening(command, int(ports["9090"]), log=tmp_path / "prometheus.log", environment={}):
            prometheus = Prometheus(int(ports["9090"]))
            until(prometheus.is_ready, "Prometheus answers", within=60)
            until(lambda: prometheus.values("sum(up)") == [2], "both are scraped", within=60)
            yield Watched(prometheus, place, receiver, webhooks, relay)


def ported(text: str, ports: dict[str, str]) -> str:
    return re.sub("|".join(ports), lambda match: ports[match[0]], text)


def test_every_panel_variable_and_rule_has_data_and_nothing_fires(watched: Watched) -> None:
    prometheus = watched.prometheus

    def absent() -> list[str]:
        """Prometheus sees no increase in a counter that begins with what it counts."""
        return [name for name in COUNTED if not prometheus.values(name)]

    until(lambda: not absent(), f"there are all of {COUNTED}")
    sent = iter(range(10_000))

    def fed(expression: str) -> list[float]:
        assert watched.send(f"u{next(sent)}") == 200
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


@pytest.mark.long
@pytest.mark.parametrize("watched", [AT_ONCE], indirect=True)
def test_what_goes_wrong_fires_its_alert(watched: Watched, crm: Crm, sqlite_database_url: str) -> None:
    """Real trouble moves real metrics. Rules that need hours or a source of their own have scenes for promtool alone."""
    prometheus, place = watched.prometheus, watched.place
    sent = iter(range(10_000))

    def fires(*names: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        def still_silent() -> set[str]:
            meanwhile()
            return set(names) - prometheus.firing()

        until(lambda: not still_silent(), f"{names} fire", within=60, poll=0.2)

    until(lambda: not prometheus.firing(), "nothing fires once both are scraped", within=60)
    crm.status = 400
    fires("DeliveryDead", "DeliveryBudgetBurns", meanwhile=lambda: watched.send(f"u{next(sent)}"))
    crm.status = 503
    fires("BreakerOpenLong", meanwhile=lambda: watched.send(f"u{next(sent)}"))
    crm.status = 410
    assert place.invoke("relay", "resume", "--destination", "crm", "--reason", "a test", "--yes").status == 0
    fires("EndpointRetired", meanwhile=lambda: watched.send(f"u{next(sent)}"))
    assert place.invoke("relay", "pause", "--source", "shop", "--reason", "a test", "--yes").status == 0
    fires("PausedForDays")
    fires("RejectionsRising", meanwhile=lambda: [watched.send("", b"no JSON") for _ in range(10)])
    with down(sqlite_database_url):
        fires("IntakeUnavailable", "DatabaseTrouble", "IntakeBudgetBurns", meanwhile=lambda: watched.send("u1"))
    watched.relay.kill()
    fires("RelayGone", "NoRelay")
    assert watched.receiver.stop() == 0
    fires("ReceiverGone")


def all_judged(prometheus: Prometheus) -> bool:
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
    return all(rule["health"] == "ok" for rule in rules)
