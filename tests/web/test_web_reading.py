"""Reads of the page: read-only, bounded in time, live, and with problems for wrong parameters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from inbox.config.model import Config
from inbox.config.values import DatabaseUrl
from inbox.db import listing
from inbox.db.intake import Rejected
from inbox.errors import BadFilter, DatabaseAway
from relay.operations.asks import Moment
from relay.web import reading
from relay.web import reading as reading_module
from relay.web.problems import PROBLEM_TYPE
from relay.web.query import Limit, Number, Text, convert, url
from relay.web.reading import NotYourTurn, Readers, Reading
from tests.helpers import databases
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, ON_SQLITE
from tests.helpers.page import OPERATOR, VIEWER, Page, serving
from tests.helpers.relaying import FakeClock, Monotonic, Steps
from tests.helpers.storing import START
from tests.helpers.tables import record_statements
from tests.helpers.waiting import stand_still, until


@pytest.fixture
def readers(page_config: Config, clock: FakeClock) -> Iterator[Readers]:
    with contextlib.closing(Readers(page_config, clock)) as made:
        yield made


@ON_BOTH
@pytest.mark.parametrize("actor", [OPERATOR, VIEWER])
@pytest.mark.parametrize("statement", ["DELETE FROM inbox", "CREATE TABLE mine (id int)"])
def test_a_read_can_change_nothing(readers: Readers, actor: object, statement: str) -> None:
    def write(reading: Reading) -> None:
        with reading.database.engine.begin() as connection:
            connection.execute(text(statement))

    with pytest.raises((DBAPIError, DatabaseAway), match=r"read-?only"):
        asyncio.run(readers.read(actor, write))  # type: ignore[arg-type]


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
LIMIT = 0.2


@pytest.fixture
def slow_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the statement of `/rejected` endless."""

    def endless(engine: Engine, *_: object) -> None:
        with engine.connect() as connection:
            connection.execute(text(ENDLESS))

    monkeypatch.setattr(reading_module, "LONGEST_SECONDS", LIMIT)
    monkeypatch.setattr(listing, "read_rows", endless)


@ON_BOTH
@pytest.mark.usefixtures("slow_screen")
def test_a_slow_statement_is_cancelled_and_the_page_keeps_its_filters(page: Page) -> None:
    answer = page.get("/rejected?source=trivore&error=%3Cb%3E&since=2d")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    assert "narrow the filter" in answer.text
    for kept in ('value="trivore"', 'value="&lt;b&gt;"', 'value="2d"'):
        assert kept in answer.text


@ON_BOTH
def test_a_lost_database_is_a_503_until_it_is_back(page: Page, database_url: str) -> None:
    assert page.get("/rejected").status_code == 200
    with databases.gone(database_url):
        away = page.get("/rejected?source=trivore")
        assert (away.status_code, away.headers["Retry-After"]) == (503, "5")
        assert 'value="trivore"' in away.text
        assert page.get("/rejected.json").json()["cause"] == "database_away"
    assert page.get("/rejected").status_code == 200


@ON_POSTGRES
def test_a_table_locked_by_another_session_is_a_503_with_that_reason(
    page: Page, engine: Engine, database_url: str
) -> None:
    with engine.begin() as connection:
        stand_still(connection)
        connection.execute(text("LOCK TABLE rejected_request IN ACCESS EXCLUSIVE MODE"))  # as VACUUM FULL does
        locked = page.get("/rejected")
    assert (locked.status_code, "lock timeout" in locked.text, "narrow the filter" in locked.text) == (503, True, False)
    databases.disconnect(database_url)
    assert page.get("/rejected").status_code == 200, "broken connections are replaced"


@ON_SQLITE
def test_a_file_locked_by_another_program_is_a_503(page: Page, database_url: str) -> None:
    with contextlib.closing(sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        assert page.get("/rejected").status_code == 503
    assert page.get("/rejected").status_code == 200


def test_reads_of_a_viewer_use_their_own_connection(page_config: Config, clock: FakeClock) -> None:
    web = msgspec.structs.replace(page_config.web, viewer_url=DatabaseUrl("sqlite:////nowhere/inbox.db"))
    with serving(msgspec.structs.replace(page_config, web=web), clock) as page:
        assert page.get("/rejected", actor=OPERATOR).status_code == 200
        assert page.get("/rejected", actor=VIEWER).status_code == 503


# --- Live refresh


def ask(page: Page, path: str, etag: str | None = None) -> requests.Response:
    known = {} if etag is None else {"If-None-Match": etag}
    return page.get(path, headers={"X-Refresh": "1", **known})


def refresh(page: Page, path: str, etag: str | None = None) -> requests.Response:
    """Ask until it is the page's turn and return the response."""
    answers: list[requests.Response] = []

    def is_answered() -> bool:
        answers.append(ask(page, path, etag))
        return answers[-1].status_code != 204

    until(is_answered, "it is the page's turn")
    return answers[-1]


def reject(steps: Steps, reason: str) -> None:
    steps.intake.reject(Rejected(START, "trivore", 400, "not_json", reason, None, None, b"x" * 32, None, None))


@pytest.fixture
def _frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let refreshes follow each other without a pause."""
    monkeypatch.setattr(reading, "REFRESH_SECONDS", 0.0)


@pytest.mark.usefixtures("_frequent")
def test_only_a_changed_page_is_sent(page: Page, steps: Steps, clock: FakeClock) -> None:
    shown = page.get("/rejected?source=trivore")
    (version,) = re.findall(r'data-live="([^"]+)"', shown.text)
    assert shown.headers["ETag"] == f'"{version}"'
    clock.advance(60)
    same = refresh(page, "/rejected?source=trivore", shown.headers["ETag"])
    assert (same.status_code, same.text) == (304, "")
    reject(steps, "no <b>JSON</b>\r\n at all")
    changed = refresh(page, "/rejected?source=trivore", shown.headers["ETag"])
    assert (changed.status_code, "no &lt;b&gt;JSON&lt;/b&gt;" in changed.text) == (200, True)
    assert changed.headers["ETag"] != shown.headers["ETag"]
    assert refresh(page, "/rejected?source=trivore", changed.headers["ETag"]).status_code == 304
    assert refresh(page, "/rejected?source=trivore").status_code == 200, "for its relative times"


@ON_BOTH
@pytest.mark.usefixtures("_frequent")
def test_a_refresh_without_a_database_is_a_503_and_the_next_one_has_the_page(page: Page, database_url: str) -> None:
    etag = page.get("/rejected").headers["ETag"]
    with databases.gone(database_url):
        away = refresh(page, "/rejected", etag)
        assert (away.status_code, 'data-live=""' in away.text) == (503, True), "it asks again"
    assert refresh(page, "/rejected").status_code == 200


def test_a_page_with_live_0_or_without_rows_is_not_live(page: Page) -> None:
    for path, status in (("/rejected?live=0", 200), ("/rejected?limit=0", 400)):
        answer = page.get(path)
        assert (answer.status_code, "data-live" in answer.text) == (status, False)
    assert page.get("/rejected", actor=None, headers={"X-Refresh": "1"}).status_code == 401
    assert page.json("/rejected.json?live=0") == page.json("/rejected.json")


def test_a_hundred_simultaneous_refreshes_cost_few_reads_and_delay_no_page(page: Page) -> None:
    def refresh_one(number: int) -> int:
        with contextlib.closing(Page(page.url)) as browser:
            return ask(browser, f"/rejected?error=s{number}").status_code

    with ThreadPoolExecutor(8) as threads, record_statements() as seen:
        answers = list(threads.map(refresh_one, range(100)))
        assert page.get("/rejected").status_code == 200
    assert set(answers) == {200, 204}
    assert answers.count(200) <= 10
    assert len(seen) <= 20 * answers.count(200)


def test_a_slow_page_is_refreshed_for_at_most_half_of_the_time(page_config: Config, clock: FakeClock) -> None:
    now, go_on = Monotonic(1000.0), threading.Event()

    async def scenario(readers: Readers) -> None:
        slow = asyncio.create_task(readers.refresh(OPERATOR, lambda _: go_on.wait(30)))
        await asyncio.sleep(0)
        with pytest.raises(NotYourTurn):
            await readers.refresh(VIEWER, lambda _: None)
        now.seconds += 5
        go_on.set()
        await slow
        now.seconds += 4.9
        with pytest.raises(NotYourTurn):
            await readers.refresh(VIEWER, lambda _: None)
        now.seconds += 0.1
        assert await readers.refresh(VIEWER, lambda _: "read") == "read"

    with contextlib.closing(Readers(page_config, clock, now)) as readers:
        asyncio.run(scenario(readers))


# --- Parameters of a URL, and problems


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
def test_a_time_may_be_a_span_or_a_date(given: str, moment: datetime) -> None:
    assert parse({"since": given}).since == parse({"since": given}, strict=True).since == moment


def test_a_list_may_have_commas_or_be_repeated_and_an_empty_parameter_is_absent() -> None:
    for several in ("1,2", ["1", "2"]):
        assert parse({"seqs": several}).seqs == (1, 2)
    assert parse({"since": "", "limit": ""}) == Wanted(source="s", entity="e")


@given(GIVEN, TEXTS)
def test_a_url_round_trips_its_parameters_with_changes_and_is_harmless(given: dict[str, str], error: str) -> None:
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
def test_any_parameters_become_a_query_or_a_problem_that_names_a_field(parameters: dict[str, str]) -> None:
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
        ({"since": "sometime"}, "since", "sometime"),
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


def test_a_value_like_a_path_of_an_error_is_handled_quickly() -> None:
    began = time.process_time()
    with pytest.raises(BadFilter, match="Invalid enum value") as problem:
        convert(Choice, {"kind": " - at `$" * 1_200}, NOW)
    assert problem.value.field == "kind"
    with pytest.raises(BadFilter):
        convert(Choice, {" - at `$" * 100_000: "x"}, NOW)
    assert time.process_time() - began < 0.5


API = "/api/v1/rejected"
SECRET = "emases"


def send(page: Page, method: str, path: str, accept: str = "application/json") -> requests.Response:
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
    answer = send(page, method, path)
    assert answer.headers["Content-Type"] == PROBLEM_TYPE
    assert (answer.status_code, answer.json()["status"], answer.json().get("cause")) == (status, status, cause)
    assert answer.json()["title"]
    assert (cause == "bad_filter") == ("field" in answer.json())
    if not path.startswith("/api/"):
        shown = send(page, method, path.removesuffix(".json"), "text/html")
        assert (shown.status_code, shown.headers["Content-Type"].partition(";")[0]) == (status, "text/html")


@pytest.mark.parametrize("path", ["/rejected", "/rejected.json", API, "/rejected.json?limit=0"])
def test_a_path_lists_its_methods_and_head_equals_get_without_a_body(page: Page, path: str) -> None:
    refused, options, head, get = (send(page, method, path) for method in ("PUT", "OPTIONS", "HEAD", "GET"))
    assert set(refused.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert (options.status_code, set(options.headers["Allow"].split(", "))) == (200, {"GET", "HEAD"})
    assert (head.content, head.status_code) == (b"", get.status_code)
    assert [head.headers[name] == get.headers[name] for name in ("Content-Type", "Content-Length")] == [True, True]


def test_an_unexpected_error_is_a_problem_and_logged_without_its_text(
    page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:  # noqa: ANN401
        raise ZeroDivisionError(SECRET[::-1])

    monkeypatch.setattr(listing, "read_rows", broken)
    with caplog.at_level(logging.ERROR):
        answer, shown = send(page, "GET", API), send(page, "GET", "/rejected", "text/html")
    assert answer.headers["Content-Type"] == PROBLEM_TYPE
    assert (answer.status_code, answer.json()["status"]) == (500, 500)
    assert shown.status_code == 500
    assert "Internal Server Error" in shown.text
    for said in (answer.text, shown.text, caplog.text):
        assert SECRET[::-1] not in said
    assert "ZeroDivisionError" in caplog.text
