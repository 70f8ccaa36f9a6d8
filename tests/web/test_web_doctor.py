"""The doctor: one run at a time, on request of an operator, whose report everybody sees for a minute."""

from __future__ import annotations

import threading

from inbox.config.model import Config
from inbox.doctor.run import ExaminationResult
from inbox.examination import DoctorFinding, Installation
from relay.web.doctor_runner import DoctorRunner
from tests.helpers.page import VIEWER, Page
from tests.helpers.relaying import FakeClock, Monotonic, Steps
from tests.helpers.waiting import until

FINDING = DoctorFinding("no_relay", "relay", "critical", "no relay", "why", "relay run")
RESULT = ExaminationResult("relays", "Relays", "examined", None, 0.1, (FINDING,))


class Examiner:
    """Counts runs; each lasts until it is let go."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.go = threading.Event()
        self.error: Exception | None = None

    def __call__(self, _installation: Installation, online: bool) -> list[ExaminationResult]:
        self.asked.append(online)
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
    assert runner.ask(online=False)
    assert not runner.ask(online=False), "one is under way"
    assert runner.running_since is not None
    examiner.go.set()
    until(lambda: ended(runner), "the run ends")
    assert runner.report is not None
    assert runner.report.results == (RESULT,)
    monotonic.seconds = 59
    assert not runner.ask(online=False)
    monotonic.seconds = 61
    assert runner.ask(online=False)
    until(lambda: ended(runner), "the run ends")
    assert examiner.asked == [False, False]


def test_a_report_without_the_other_systems_does_not_stand_for_one_with_them() -> None:
    examiner, monotonic = Examiner(), Monotonic()
    examiner.go.set()
    runner = a_runner(examiner, monotonic)
    for online, is_run in ((False, True), (True, True), (True, False), (False, False)):
        assert runner.ask(online=online) is is_run
        until(lambda: ended(runner), "the run ends")
    assert examiner.asked == [False, True]


def test_a_run_that_fails_says_so_and_can_be_repeated_at_once() -> None:
    examiner, monotonic = Examiner(), Monotonic()
    examiner.go.set()
    examiner.error = ValueError("broken")
    runner = a_runner(examiner, monotonic)
    runner.ask(online=False)
    until(lambda: ended(runner), "the run ends")
    assert runner.report is not None
    assert runner.report.error == "ValueError: broken"
    examiner.error = None
    assert runner.ask(online=False)
    until(lambda: ended(runner), "the run ends")
    assert runner.report.error is None


def test_a_look_examines_nothing_and_an_operator_starts_a_run(page: Page, steps: Steps) -> None:
    assert page.json("/doctor.json")["began_at"] is None
    assert "Nothing has been examined" in page.get("/doctor").text
    answer = page.post("/doctor/run")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/doctor")
    until(lambda: page.json("/doctor.json")["began_at"] is not None, "there is a report")
    found = page.json("/doctor.json")
    assert "no_relay" in [finding["name"] for finding in found["findings"]]
    assert found["findings"][0]["severity"] == "critical"
    assert not found["online"]
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
