"""The screen of rejected requests: no bodies, and readmission by a command after a fix."""

from __future__ import annotations

import pytest

from inbox.config.model import Config
from inbox.db.intake import Rejected
from relay.web.screens.lists import COLUMNS
from tests.helpers.page import VIEWER, Page, on_database
from tests.helpers.relaying import CONFIG, Steps
from tests.helpers.storing import START
from tests.helpers.webhooks import body
from tests.web.test_web_acts import form_of, number_of, work

SECRET = "hunter2"


@pytest.fixture
def page_config(database_url: str) -> Config:
    return on_database(CONFIG, database_url)


def rejected(content: bytes | None, source: str = "trivore", reason: str = "no version") -> Rejected:
    headers = None if content is None else {"content-type": "application/json", "x-request-id": SECRET}
    return Rejected(START, source, 422, "invalid_event", reason, "version", "192.0.2.1", b"\0" * 32, headers, content)


def test_bodies_and_headers_are_in_no_list(page: Page, steps: Steps) -> None:
    steps.intake.reject(rejected(b'{"password": "hunter2"}'))
    for actor in (VIEWER, None):
        given = {} if actor is None else {"actor": actor}
        (row,) = page.json("/rejected.json", **given)["rows"]
        assert SECRET not in str(row)
        assert set(row) == {*COLUMNS, "is_kept"}
        assert SECRET not in page.get("/rejected", **given).text


def test_a_request_that_can_be_read_now_is_readmitted_and_delivered(page: Page, steps: Steps) -> None:
    steps.intake.reject(rejected(body()), rejected(b"{}"), rejected(body(), source="gone"), rejected(body()))
    html = page.get("/acts/readmit?source=trivore").text
    assert "<strong>2</strong> requests" in html
    assert "1: still rejected: " in html
    done = page.post("/acts/readmit", {**form_of(html), "reason": "the preset is fixed"})
    assert done.status_code == 303, done.text
    progress = work(steps.database, number_of(done.headers["location"]))
    assert (progress.state, progress.affected) == ("done", 2)
    assert progress.answer == "2 requests readmitted; 1 could not be: see error"
    rows = page.json("/rejected.json")["rows"]
    assert [(row["readmitted_seq"], row["readmitted_by"]) for row in rows] == [
        (1, "olga"),
        (None, None),
        (None, None),
        (1, "olga"),
    ]
    steps.until_nothing_is_due()
    assert steps.states() == []
    assert "is event" in page.get("/rejected").text


def test_all_that_match_means_what_the_filter_means(page: Page, steps: Steps) -> None:
    steps.intake.reject(rejected(body(), reason="100% wrong"), rejected(body(), reason="100 wrong"))
    link = 'href="/acts/readmit?error=100%25%20wrong"'
    assert link in page.get("/rejected?error=100%25+wrong").text
    assert "<strong>1</strong> request<" in page.get("/acts/readmit?error=100%25+wrong").text
    assert "I mean everything" in page.get("/acts/readmit").text
