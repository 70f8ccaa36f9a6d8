"""The doctor: a look examines, and its report is shown to everybody for a minute."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from relay.doctor.run import ExaminationResult, Installation
from relay.web.screens import overview
from tests.helpers.page import VIEWER, Page
from tests.helpers.relaying import Steps


def test_a_look_examines_and_changes_nothing(page: Page, steps: Steps) -> None:
    found = page.json("/doctor.json")
    assert "no_relay" in [finding["kind"] for finding in found["findings"]]
    assert found["findings"][0]["level"] == "critical"
    assert found["seconds"] > 0
    assert "relay run" in page.get("/doctor", VIEWER).text, "a viewer sees the report"
    assert steps.states() == []


def test_a_report_is_kept_for_everybody_and_one_that_failed_is_not(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Installation] = []

    def counted(installation: Installation, _examinations: Sequence[object]) -> list[ExaminationResult]:
        runs.append(installation)
        if len(runs) == 1:
            raise ValueError("broken")
        return []

    monkeypatch.setattr(overview, "run", counted)
    assert page.get("/doctor").status_code == 500
    first = page.json("/doctor.json")
    assert page.json("/api/v1/doctor", VIEWER) == first
    assert len(runs) == 2
    monkeypatch.setattr(overview, "KEPT_SECONDS", 0.0)
    page.json("/doctor.json")
    assert len(runs) == 3
