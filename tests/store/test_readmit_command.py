"""Readmission by a command: step by step, by any relay, and one bad request stops no other."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection

from inbox.db import intake
from inbox.db.dialect import as_json
from inbox.db.intake import Rejected
from inbox.events.event import Event
from inbox.events.timestamps import as_time
from relay.operations.asks import Rejections
from relay.store.operator import commands, execution
from relay.store.operator.commands import Command
from relay.store.operator.tasks import TASKS, Batch, Working
from tests.helpers.relaying import Steps
from tests.helpers.storing import START
from tests.helpers.webhooks import body

_HEADERS = {"content-type": "application/json"}


def a_rejected(content: bytes | None = None, source: str = "trivore") -> Rejected:
    return Rejected(START, source, 422, "invalid_event", "no version", None, None, b"\0" * 32, _HEADERS, content)


def a_body(number: int) -> bytes:
    return body(f"u{number}", f"2026-01-01T00:00:{number:02d}Z")


def ask(steps: Steps, selection: dict[str, object], *, dry_run: bool = False) -> int:
    return commands.ask(steps.database, "readmit", selection, who="kim", why="the preset is fixed", dry_run=dry_run)


def end(steps: Steps, number: int) -> Command:
    while (progress := commands.progress(steps.database, number)) and not progress.has_ended:
        execution.work_on(steps.work, number)
    assert progress is not None
    return progress


def seqs(steps: Steps) -> list[int | None]:
    return [row["readmitted_seq"] for row in steps.rows("SELECT readmitted_seq FROM rejected_request ORDER BY id")]


def test_more_requests_than_a_step_takes_are_all_readmitted(steps: Steps) -> None:
    steps.intake.reject(*(a_rejected(a_body(n)) for n in range(45)))
    assert end(steps, ask(steps, {"cause": "invalid_event"})).answer == "45 requests readmitted"
    assert None not in seqs(steps)
    steps.sequence()
    assert len(steps.states()) > 0
    (row,) = steps.rows("SELECT readmitted_at, readmitted_by, readmit_reason FROM rejected_request WHERE id = 7")
    assert (as_time(row["readmitted_at"]), row["readmitted_by"], row["readmit_reason"]) == (
        START,
        "kim",
        "the preset is fixed",
    )


def test_one_that_was_sent_again_meanwhile_is_a_duplicate(steps: Steps) -> None:
    steps.intake.reject(a_rejected(a_body(1)), a_rejected(a_body(1)), a_rejected(a_body(2)))
    end(steps, ask(steps, {"id": 1}))
    assert end(steps, ask(steps, {"everything": True})).affected == 2
    first, again, other = seqs(steps)
    assert first == again == 1
    assert other not in {None, 1}
    assert [row["seq"] for row in steps.rows("SELECT seq FROM duplicate_request")] == [1]


def test_two_relays_at_one_step_readmit_each_request_once(steps: Steps) -> None:
    steps.intake.reject(a_rejected(a_body(1)))
    number = ask(steps, {"id": 1})
    command = commands.progress(steps.database, number)
    assert command is not None
    working = Working(steps.work, command, Rejections(id=1))
    batches = [TASKS["readmit"](working) for _relay in range(2)]
    changed = []
    for batch in batches:
        assert isinstance(batch, Batch)
        with steps.database.write() as transaction:
            changed.append(batch.act(command, transaction, transaction.now(), batch.items).affected)
    assert changed == [1, 0]
    assert steps.rows("SELECT count(*) AS n FROM inbox")[0]["n"] == 1
    assert steps.rows("SELECT count(*) AS n FROM duplicate_request")[0]["n"] == 0


def test_what_is_rejected_after_the_command_was_asked_is_left_alone(steps: Steps) -> None:
    steps.intake.reject(a_rejected(a_body(1)))
    number = ask(steps, {"everything": True})
    steps.intake.reject(a_rejected(a_body(2)))
    progress = end(steps, number)
    assert (progress.affected, progress.answer) == (
        1,
        "1 request readmitted",
    )  # the later one is no failure of this command
    assert seqs(steps) == [1, None]


def test_one_that_the_database_rejects_stops_no_other(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.intake.reject(*(a_rejected(a_body(n)) for n in range(1, 4)))
    append = intake.append

    def failing(connection: Connection, events: Sequence[Event]) -> list[int | None]:
        if any(event.entity_id == "u2" for event in events):
            raise ValueError("u2 can't be stored")
        return append(connection, events)

    monkeypatch.setattr(intake, "append", failing)
    assert end(steps, ask(steps, {"source": "trivore"})).answer == ("2 requests readmitted; 1 could not be: see error")
    assert [seq is None for seq in seqs(steps)] == [False, True, False]


def test_a_dry_run_says_what_would_be_readmitted_and_changes_nothing(steps: Steps) -> None:
    steps.intake.reject(a_rejected(a_body(1)), a_rejected(b"{}"), a_rejected(a_body(1), source="gone"), a_rejected())
    number = ask(steps, {"everything": True}, dry_run=True)
    assert str(end(steps, number).answer).startswith(
        "dry run: 1 request would be readmitted; 1 left out: still rejected"
    )
    (row,) = steps.rows("SELECT matched, sample FROM relay_command")
    assert (row["matched"], as_json(row["sample"])["requests"][0]["id"]) == (1, 1)
    assert "there is no such source in the configuration any more" in json.dumps(row["sample"])
    assert seqs(steps) == [None] * 4


@pytest.mark.parametrize(
    ("selection", "says"),
    [({"source": "trvore"}, "there is no source 'trvore'"), ({"cause": "x"}, "there is no cause 'x'")],
)
def test_a_name_that_nobody_knows_is_refused(steps: Steps, selection: dict[str, object], says: str) -> None:
    progress = end(steps, ask(steps, selection))
    assert progress.state == "refused"
    assert says in str(progress.answer)
