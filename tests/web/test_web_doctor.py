"""The doctor: one run at a time, on request of an operator, whose report everybody sees for a minute."""

from __future__ import annotations

import threading

from inbox.config.model import Config
from relay.doctor.run import ExaminationResult, Installation
from relay.findings import Finding
from relay.web.doctor_runner import DoctorRunner
from tests.helpers.page import VIEWER, Page
from tests.helpers.relaying import FakeClock, Monotonic, Steps
from tests.helpers.waiting import until

FINDING = Finding("no_relay", "critical", "no relay", "relay", "why", None, "relay run")
RESULT = ExaminationResult("relay", None, (FINDING,))


class Examiner:
    """Counts runs; each lasts until it is let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.go = threading.Event()
        self.error: Exception | None = None

    def __call__(self, _installation: Installation) -> list[ExaminationResult]:
        self.runs += 1
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return [RESULT]


def a_runner(examiner: Examiner, monotonic: Monotonic) -> DoctorRunner:
    return DoctorRunner(Config(), FakeClock(), examiner, monotonic)


def ended(runner: DoctorRunner) -> bool:
    return runner.running_since is None


def test_one_run_at_a_time_and_its_report_is_kept_for_a_minute() -> None:
    examiner, monotonic = Examiner(), Monotonic()
    runner = a_runner(examiner, monotonic)
    assert runner.ask()
    assert not runner.ask(), "one is under way"
    assert runner.running_since is not None
    examiner.go.set()
    until(lambda: ended(runner), "the run ends")
    assert runner.report is not None
    assert runner.report.results == (RESULT,)
    monotonic.seconds = 59
    assert not runner.ask()
    monotonic.seconds = 61
    assert runner.ask()
    until(lambda: ended(runner), "the run ends")
    assert examiner.runs == 2


def test_a_run_that_fails_says_so_and_can_be_repeated_at_once() -> None:
    examiner, monotonic = Examiner(), Monotonic()
    examiner.go.set()
    examiner.error = ValueError("broken")
    runner = a_runner(examiner, monotonic)
    runner.ask()
    until(lambda: ended(runner), "the run ends")
    assert runner.report is not None
    assert runner.report.error == "ValueError: broken"
    examiner.error = None
    assert runner.ask()
    until(lambda: ended(runner), "the run ends")
    assert runner.report.error is None


def test_a_look_examines_nothing_and_an_operator_starts_a_run(page: Page, steps: Steps) -> None:
    assert page.json("/doctor.json")["began_at"] is None
    assert "Nothing has been examined" in page.get("/doctor").text
    answer = page.post("/doctor/run")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/doctor")
    until(lambda: page.json("/doctor.json")["began_at"] is not None, "there is a report")
    found = page.json("/doctor.json")
    assert "no_relay" in [finding["kind"] for finding in found["findings"]]
    assert found["findings"][0]["level"] == "critical"
    assert found["error"] is None
    assert "relay run" in page.get("/doctor", VIEWER).text, "a viewer sees the report"
    assert steps.states() == []


def test_a_viewer_starts_no_run(page: Page) -> None:
    answer = page.post("/doctor/run", actor=VIEWER)
    assert answer.status_code == 403
    assert page.json("/doctor.json")["running_since"] is None
    assert 'action="/doctor/run"' not in page.get("/doctor", VIEWER).text


def test_a_program_hears_where_the_report_will_be(page: Page) -> None:
    answer = page.post("/api/v1/doctor/run")
    assert (answer.status_code, answer.headers["Location"]) == (202, "/api/v1/doctor")
    until(lambda: page.json("/doctor.json")["began_at"] is not None, "there is a report")
