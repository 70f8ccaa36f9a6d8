"""Alerts: those that fire come first, the history is paged, and a bad row harms no other."""

from __future__ import annotations

import pytest

from relay.delivery.alerts import Alert
from relay.store.alerts import note
from tests.helpers.page import Page
from tests.helpers.relaying import Steps


@pytest.fixture
def alerted(steps: Steps) -> Steps:
    """Six changes: `crm` was behind twice and recovered, two sources are silent."""
    changes = [("backlog_old", "crm", True), ("backlog_old", "crm", False)] * 2 + [
        ("source_silent", "one", True),
        ("source_silent", "two", True),
    ]
    for kind, subject, firing in changes:
        with steps.database.write() as transaction:
            detail = {"seq": 7, "age_seconds": 900, "silent_seconds": 60}
            alert = Alert(kind, subject, firing=firing, detail=detail)  # type: ignore[arg-type]  # one of its kinds
            note(transaction, [alert], transaction.take_order_lock())
        steps.clock.advance(60)
    return steps


def test_those_that_fire_come_first_and_all_are_worded(page: Page, alerted: Steps) -> None:
    assert alerted.states() == []
    found = page.json("/alerts.json")
    assert [alert["subject"] for alert in found["firing"]] == ["one", "two"]
    assert [(row["subject"], row["firing"]) for row in found["rows"]][:3] == [
        ("two", True),
        ("one", True),
        ("crm", False),
    ]
    assert found["rows"][2]["text"] == "route crm is no longer behind"
    assert "Firing now" in page.get("/alerts").text


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("kind=backlog_old", 4),
        ("subject=one", 1),
        ("since=2026-01-01T00:04:00Z", 2),
        ("until=2026-01-01T00:01:00Z", 1),
    ],
)
def test_the_filter_is_for_the_history_and_hides_nothing_that_fires(
    page: Page, alerted: Steps, query: str, rows: int
) -> None:
    assert alerted.states() == []
    found = page.json(f"/alerts.json?{query}")
    assert (len(found["rows"]), len(found["firing"])) == (rows, 2)


def test_a_row_of_another_version_is_shown_beside_the_others(page: Page, alerted: Steps) -> None:
    alerted.do(
        "INSERT INTO alert (at, kind, subject, firing, detail, is_unsendable)"
        " VALUES ('2026-01-02 00:00:00.000000Z', 'odd <b>', 'x', true, '{}', false)"
    )
    assert page.json("/alerts.json")["rows"][0]["text"] == "odd <b> x"
    answer = page.get("/alerts")
    assert answer.status_code == 200
    assert "odd &lt;b&gt; x" in answer.text
