"""Parameters of a URL become a query and are written back as the same; errors are problem documents, and pages with their words."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from inbox.db import listing
from inbox.errors import BadFilter
from relay.operations.asks import Moment
from relay.web.problems import PROBLEM_TYPE
from relay.web.query import Limit, Number, Text, convert, url
from tests.helpers.page import VIEWER, Page

NOW = datetime(2026, 1, 10, tzinfo=UTC)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    source: Text
    entity: Text
    error: Text | None = None
    status: Number | None = None
    since: Moment | None = None
    is_open: bool = False
    limit: Limit = 50
    seqs: tuple[int, ...] | None = None


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=50)
GIVEN = st.fixed_dictionaries(
    {"source": TEXTS, "entity": TEXTS},
    optional={
        "error": TEXTS,
        "status": st.integers(0, 2**63 - 1).map(str),
        "since": st.sampled_from(["2d", "2026-01-01"]),
    },
)


def parse(given: Mapping[str, object], *, strict: bool = False) -> Wanted:
    return convert(Wanted, {"source": "s", "entity": "e", **given}, NOW, strict=strict)


@pytest.mark.parametrize(
    ("given", "moment"),
    [
        ("2d", datetime(2026, 1, 8, tzinfo=UTC)),
        ("2026-01-01", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T02:00:00+02:00", datetime(2026, 1, 1, tzinfo=UTC)),
        (str(NOW), NOW),
    ],
)
def test_a_time_may_be_given_as_people_say_it(given: str, moment: datetime) -> None:
    assert parse({"since": given}).since == parse({"since": given}, strict=True).since == moment


def test_a_list_has_commas_or_is_given_several_times_and_an_empty_parameter_is_absent() -> None:
    for several in ("1,2", ["1", "2"]):
        assert parse({"seqs": several}).seqs == (1, 2)
    assert parse({"since": "", "limit": ""}) == Wanted(source="s", entity="e")


@given(GIVEN, TEXTS)
def test_the_url_of_parameters_gives_the_same_harmless_and_a_changed_one_replaces_its_like(
    given: dict[str, str], error: str
) -> None:
    for changed, read in (
        ({}, given),
        ({"error": error}, {**given, "error": error}),
        ({"status": 0}, {**given, "status": "0"}),
    ):
        written = url("/list", given, **changed)
        assert dict(parse_qsl(urlsplit(written).query, strict_parsing=True)) == read
        assert written.isascii()
        assert not set(written) & set("<>\"' \r\n\t\\")
    assert "error" not in dict(parse_qsl(urlsplit(url("/list", given, error=None)).query))


@given(st.dictionaries(st.sampled_from(["limit", "since", "status", "is_open", "colour"]) | TEXTS, TEXTS, min_size=1))
def test_whatever_is_given_becomes_a_query_or_a_problem_that_names_a_field(parameters: dict[str, str]) -> None:
    found: BadFilter | None = None
    try:
        parse(parameters)
    except BadFilter as problem:
        found = problem
    assert found is None or (found.field in parameters and found.detail)


@pytest.mark.parametrize(
    ("parameters", "field", "says"),
    [
        ({"limits": "3"}, "limits", "did you mean"),
        ({"limit": "201"}, "limit", "<= 200"),
        ({"limit": "0"}, "limit", ">= 1"),
        ({"limit": "many"}, "limit", "'many'"),
        ({"status": "-1"}, "status", ">= 0"),
        ({"status": "9223372036854775808"}, "status", "9223372036854775807"),
        ({"since": "yesterday"}, "since", "yesterday"),
        ({"error": "x" * 1001}, "error", "1000"),
        ({"entity": "x" * 10_001}, "entity", "10,000"),
        ({"entity": ["a", "b"]}, "entity", "is given twice"),
        ({"status": "null"}, "status", "omit it"),
        ({"error": "a\0b"}, "error", "a database can't store such a character"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_reason(parameters: dict[str, str], field: str, says: str) -> None:
    with pytest.raises(BadFilter, match=says) as problem:
        parse(parameters)
    assert problem.value.field == field


class Choice(msgspec.Struct, frozen=True):
    kind: Literal["a", "b"]


def test_a_value_that_looks_like_a_place_in_an_error_costs_no_time() -> None:
    began = time.process_time()
    with pytest.raises(BadFilter, match="Invalid enum value") as problem:
        convert(Choice, {"kind": " - at `$" * 1_200}, NOW)
    assert problem.value.field == "kind"
    with pytest.raises(BadFilter):
        convert(Choice, {" - at `$" * 100_000: "x"}, NOW)
    assert time.process_time() - began < 0.5


API = "/api/v1/rejected"
SECRET = "emases"


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
def test_a_program_gets_a_problem_document_and_a_person_a_page(
    page: Page, method: str, path: str, status: int, cause: str | None
) -> None:
    answer = asked(page, method, path)
    assert answer.headers["Content-Type"] == PROBLEM_TYPE
    assert (answer.status_code, answer.json()["status"], answer.json().get("cause")) == (status, status, cause)
    assert answer.json()["title"]
    assert (cause == "bad_filter") == ("field" in answer.json())
    if not path.startswith("/api/"):
        shown = asked(page, method, path.removesuffix(".json"), "text/html")
        assert (shown.status_code, shown.headers["Content-Type"].partition(";")[0]) == (status, "text/html")


@pytest.mark.parametrize("path", ["/rejected", "/rejected.json", API, "/rejected.json?limit=0"])
def test_an_address_knows_its_methods_and_head_answers_as_get_without_its_body(page: Page, path: str) -> None:
    refused, options, head, get = (asked(page, method, path) for method in ("PUT", "OPTIONS", "HEAD", "GET"))
    assert set(refused.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert (options.status_code, set(options.headers["Allow"].split(", "))) == (200, {"GET", "HEAD"})
    assert (head.content, head.status_code) == (b"", get.status_code)
    assert [head.headers[name] == get.headers[name] for name in ("Content-Type", "Content-Length")] == [True, True]


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
