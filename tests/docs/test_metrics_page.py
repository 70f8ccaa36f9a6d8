"""The rules for alerts that docs/reference/metrics.md gives name metrics, labels and values that there are."""

from __future__ import annotations

import re

from inbox.errors import CAUSES
from inbox.telemetry.metrics import RECEIVER, RELAY, UNKNOWN
from relay.delivery.facts import KINDS
from tests.docs.pages import PAGES, blocks

(RULES,) = (block.text for block in blocks(PAGES["docs/reference/metrics.md"]) if "alert:" in block.text)
METRICS = {
    name: metric
    for metric in (*RECEIVER, *RELAY)
    for name in (metric.name, *(f"{metric.name}_{part}" for part in ("bucket", "sum", "count") if metric.buckets))
}
VALUES = {"cause": CAUSES, "kind": set(KINDS), "source": {UNKNOWN}}


def test_every_rule_is_an_expression_over_metrics_that_there_are() -> None:
    rules = re.findall(r"- alert: (\w+) .*?\n|- alert: (\w+)\n", RULES)
    expressions = re.findall(r"expr: (.+)", RULES)
    assert len(rules) == len(expressions) >= 4
    for expression in expressions:
        named = re.findall(r"\b(?:inbox|relay)_[a-z_]+", expression)
        assert named
        assert set(named) <= set(METRICS), expression
        assert expression.count("(") == expression.count(")")


def test_every_label_that_a_rule_names_is_one_of_its_metrics() -> None:
    for expression in re.findall(r"expr: (.+)", RULES):
        labels = {
            label for name in re.findall(r"\b(?:inbox|relay)_[a-z_]+", expression) for label in METRICS[name].labels
        }
        for by in re.findall(r"by \(([\w, ]+)\)", expression):
            assert set(by.split(", ")) <= labels, expression
        for label, value in re.findall(r"""(\w+)[!=]~?="?"([^"]*)\"""", expression):
            assert label in labels, expression
            assert value in VALUES[label], expression
