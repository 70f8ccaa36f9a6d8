"""A receiver on the internet is judged by what it refuses and survives: 114 kinds of request, byte by byte, at the real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from sqlalchemy import Engine

from tests.helpers.processes import Program, site
from tests.helpers.receiver import Answer, answers, ask, webhook
from tests.helpers.tables import rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import TOKEN, config_text
from tests.process import malformed, malformed_events
from tests.process.malformed import Case

TABLE = (*malformed.TABLE, *malformed_events.TABLE)
PROBLEM = "application/problem+json"


class Door(NamedTuple):
    """A receiver with one worker, which has to live through all of it."""

    program: Program
    port: int
    worker: int


@pytest.fixture(scope="module")
def door(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    config = config_text(module_database_url) + malformed_events.CONFIG
    with site(tmp_path_factory.mktemp("door"), config) as place:
        program, port = place.receiver(workers=1)
        (worker,) = program.children()
        yield Door(program, port, worker)
        assert "Traceback" not in program.output


def said(found: list[Answer]) -> int | tuple[int, ...]:
    statuses = tuple(answer.status for answer in found)
    return statuses if len(statuses) != 1 else statuses[0]


@pytest.mark.parametrize("case", TABLE, ids=[f"{case.number}: {case.name}" for case in TABLE])
def test_each_is_answered_as_the_table_says_and_the_worker_lives(door: Door, case: Case) -> None:
    found = answers(ask(door.port, case.sent, half_close=case.half_close))

    assert said(found) == (case.status[0] if isinstance(case.status, tuple) and len(case.status) == 1 else case.status)
    for answer in found:
        refused = answer.status >= 400
        assert not refused or answer.headers["content-type"] == PROBLEM
        assert answer.status != 405 or "POST" in answer.headers["allow"]
        assert answer.status not in {429, 503} or int(answer.headers["retry-after"]) > 0
    assert said(answers(ask(door.port, webhook()))) == 200
    assert door.program.children() == [door.worker]


def test_a_refused_body_beyond_the_cap_is_answered_before_any_of_it_is_asked_for(door: Door) -> None:
    case = next(case for case in malformed.TABLE if case.number == 65)
    assert b"100 Continue" not in ask(door.port, case.sent)
    assert b"100 Continue" in ask(door.port, webhook(b"Expect: 100-continue"))
    older = webhook(b"Expect: 100-continue", line=b"POST /webhooks/trivore HTTP/1.0")
    assert b"100 Continue" not in ask(door.port, older)


def test_a_token_that_is_posted_to_in_place_of_a_source_is_kept_nowhere(door: Door, module_engine: Engine) -> None:
    sent = webhook(line=b"POST /webhooks/" + TOKEN.encode() + b" HTTP/1.1")

    def sources_after_another() -> set[str]:
        """Send one more; return the stored sources. Of many rejections a second, the receiver doesn't store each."""
        assert said(answers(ask(door.port, sent))) == 401
        return {row["source"] for row in rows(module_engine, "SELECT source FROM rejected_request")}

    until(lambda: f"unknown ({len(TOKEN)} characters)" in sources_after_another(), "the refusal is kept", poll=0.2)
    assert TOKEN not in str(rows(module_engine, "SELECT * FROM rejected_request"))
    assert TOKEN not in door.program.output
