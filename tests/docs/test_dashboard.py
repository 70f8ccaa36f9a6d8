"""The Grafana dashboard in deploy/grafana fits Grafana's own types, and every query on it the registry of metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from docs import generate
from docs.blocks import promql
from docs.blocks.panels import ROWS
from inbox.telemetry import metrics
from inbox.telemetry.metrics import RECEIVER, RELAY
from tests.helpers.dashboard import DASHBOARD, expressions, panels, plain
from tests.helpers.promql import complaints, series_in

MADE: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", generate.WHOLE, ids=lambda file: file.name)
def test_a_generated_file_is_what_would_be_generated_now(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == generate.rendered(file), "stale: run .venv/bin/python docs/generate.py"


def test_grafanas_types_read_the_dashboard_and_write_the_same() -> None:
    register_default_plugins()
    again = JSONEncoder(sort_keys=True, indent=2).encode(Dashboard.from_json(MADE))
    assert json.loads(again) == MADE


@pytest.mark.parametrize(("title", "expression"), expressions(MADE), ids=lambda each: each[:40])
def test_a_query_names_only_metrics_and_labels_that_exist(title: str, expression: str) -> None:
    assert complaints(plain(expression)) == [], title


def test_every_metric_has_a_panel_and_each_panel_shows_what_its_description_explains() -> None:
    families = {metric.name: metric for metric in (*RECEIVER, *RELAY)}

    def family(series: str) -> str:
        return series if series in families else series.rpartition("_")[0]

    read = {family(name) for _, expression in expressions(MADE) for name in series_in(plain(expression))}
    assert read == families.keys()
    for panel in (panel for row in ROWS.values() for panel in row):
        named = {family(name) for query in panel.queries.values() for name in series_in(plain(query))}
        assert named == {metric.name for metric in panel.shows}, panel.title


def test_panels_lie_beside_each_other_in_24_columns_with_titles_and_ids_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in MADE["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    for name in ("title", "id"):
        values = [panel[name] for panel in MADE["panels"]]
        assert len(set(values)) == len(values)


def test_every_variable_that_is_used_is_defined_and_used() -> None:
    defined = {variable["name"] for variable in MADE["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(MADE)))
    assert (
        {name for name in used if not name.startswith("__")} == defined == {"datasource", "instance", "source", "route"}
    )


def test_each_panel_has_a_unit_a_legend_and_grafanas_data_source() -> None:
    for panel in panels(MADE):
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel["targets"]:
            words = re.sub(r"{{(\w+)}}", "", target["legendFormat"])
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert words.strip() or labels, panel["title"]
            assert all(re.search(rf"\b{label}\b", target["expr"]) or label == "instance" for label in labels), panel[
                "title"
            ]


def test_an_expression_over_a_label_or_series_that_does_not_exist_can_not_be_made() -> None:
    with pytest.raises(ValueError, match="has no label cause"):
        promql.per_second(metrics.RECEIVED, "cause")
    with pytest.raises(ValueError, match="has no label kind"):
        promql.series(metrics.OPEN, kind="dead")
    with pytest.raises(ValueError, match=r"has no series inbox_commit_seconds$"):
        promql.series(metrics.COMMIT_SECONDS)


def test_a_wrong_name_in_a_query_is_seen() -> None:
    assert complaints("sum by (route) (rate(relay_fact_total[5m]))") == [
        "there is no relay_fact_total",
        "nothing here has the label route",
    ]
    assert complaints('relay_facts_total{kind="dies"}') == ["kind of relay_facts_total is never dies"]
    assert complaints('inbox_received_total{route="a"}') == ["inbox_received_total has no label route"]
    with pytest.raises(ValueError, match="unclosed"):
        complaints("sum(rate(inbox_received_total[5m])")
