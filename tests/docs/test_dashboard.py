"""Every query of the Grafana dashboard in deploy/grafana names metrics and labels of the registry."""

from __future__ import annotations

import json

import pytest

from tests.helpers.metrics import DASHBOARD, expressions, unknown_in

SHOWN = expressions(json.loads(DASHBOARD.read_text(encoding="utf-8")))


@pytest.mark.parametrize(("title", "expression"), SHOWN, ids=lambda each: each[:40])
def test_a_query_names_only_metrics_and_labels_that_exist(title: str, expression: str) -> None:
    assert unknown_in(expression) == [], title


def test_a_wrong_name_in_a_query_is_seen() -> None:
    assert unknown_in("sum by (route) (rate(relay_fact_total[5m]))") == ["relay_fact_total"]
    assert unknown_in('rate(inbox_received_total{route="a", source=~"relay_x"}[5m])') == ["inbox_received_total{route}"]
