"""Errors are problem documents for programs, and pages with the same words for people."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import pytest
import requests

from inbox.config.model import Config
from inbox.db import listing
from relay.web.problems import PROBLEM_TYPE
from tests.helpers.page import VIEWER, Page, on_database
from tests.helpers.relaying import CONFIG

API = "/api/v1/rejected"
SECRET = "emases"


@pytest.fixture
def page_config(sqlite_database_url: str) -> Config:
    return on_database(CONFIG, sqlite_database_url)


def asked(page: Page, method: str, path: str, accept: str = "application/json") -> requests.Response:
    return page._send(method, path, VIEWER, {"Accept": accept}, {})


@pytest.mark.parametrize(
    ("method", "path", "status", "cause"),
    [
        ("GET", "/api/v1/nothing", 404, "nothing_there"),
        ("GET", "/api/v1/", 404, "nothing_there"),
        ("GET", "/nothing.json", 404, "nothing_there"),
        ("POST", API, 405, None),
        ("DELETE", "/rejected.json", 405, None),
        ("TRACE", API, 405, None),
        ("GET", f"{API}?limit=0", 400, "bad_filter"),
        ("GET", f"{API}?sorce=x", 400, "bad_filter"),
        ("GET", f"{API}?source=a&source=b", 400, "bad_filter"),
        ("GET", f"{API}?before=9223372036854775808", 400, "bad_filter"),
    ],
)
def test_a_program_gets_a_problem_document(page: Page, method: str, path: str, status: int, cause: str | None) -> None:
    answer = asked(page, method, path)
    assert answer.headers["Content-Type"] == PROBLEM_TYPE
    assert (answer.status_code, answer.json()["status"], answer.json().get("cause")) == (status, status, cause)
    assert answer.json()["title"]


def test_a_problem_names_the_field_that_is_wrong(page: Page) -> None:
    assert asked(page, "GET", f"{API}?status=many").json()["field"] == "status"


def test_a_person_gets_a_page_with_the_same_words(page: Page) -> None:
    answer = asked(page, "GET", "/nothing", "text/html")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "no page has this address" in answer.text


@pytest.mark.parametrize("path", ["/rejected", "/rejected.json", API])
def test_an_address_knows_its_methods(page: Page, path: str) -> None:
    refused = asked(page, "PUT", path)
    assert set(refused.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    options = asked(page, "OPTIONS", path)
    assert options.status_code == HTTPStatus.OK
    assert set(options.headers["Allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["/rejected", "/rejected.json", API, "/rejected.json?limit=0"])
def test_head_answers_as_get_without_its_body(page: Page, path: str) -> None:
    head, get = asked(page, "HEAD", path), asked(page, "GET", path)
    assert head.content == b""
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == get.headers[name]
    assert head.status_code == get.status_code


def test_a_bug_is_a_problem_and_the_log_has_its_place_without_its_text(
    page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:  # noqa: ANN401
        raise ZeroDivisionError(SECRET[::-1])

    monkeypatch.setattr(listing, "read_rows", broken)
    with caplog.at_level(logging.ERROR):
        answer, shown = asked(page, "GET", API), asked(page, "GET", "/rejected", "text/html")
    assert answer.headers["Content-Type"] == PROBLEM_TYPE
    assert (answer.status_code, answer.json()["status"]) == (500, 500)
    assert shown.status_code == 500
    assert "Internal Server Error" in shown.text
    for said in (answer.text, shown.text, caplog.text):
        assert SECRET[::-1] not in said
    assert "ZeroDivisionError" in caplog.text
