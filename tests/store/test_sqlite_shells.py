"""A DBA's `sqlite3` shell beside the programs: it may read at any time, and whatever it holds is given back."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.db import engine as engines
from inbox.db.engine import checkpoint
from relay.store.database import Database
from tests.docs.pages import PAGES, blocks
from tests.helpers.kinds import ON_SQLITE
from tests.helpers.receiver import receiving
from tests.helpers.relaying import DONE, Steps
from tests.helpers.sqlite_shell import asked, opened
from tests.helpers.storing import an_event
from tests.helpers.webhooks import a_config, body, moment
from tests.store.verifying import differences

pytestmark = ON_SQLITE


def path_of(engine: Engine) -> Path:
    return Path(engine.url.database or "")


def test_a_shell_that_opens_the_file_for_reading_sees_every_commit_and_writes_nothing(
    lived_in: Steps, engine: Engine
) -> None:
    where = f"file:{path_of(engine)}?mode=ro"
    assert asked(where, "SELECT count(*) FROM inbox") == "13"
    assert "readonly" in asked(where, "DELETE FROM open_delivery")
    lived_in.arrive(an_event(99))
    assert asked(where, "SELECT count(*) FROM inbox") == "14"


def test_an_open_read_delays_neither_side_and_the_log_shrinks_when_it_ends(lived_in: Steps, engine: Engine) -> None:
    path = path_of(engine)
    log = path.with_name(f"{path.name}-wal")
    with opened(f"file:{path}?mode=ro") as shell:
        shell.types("BEGIN; SELECT count(*) FROM inbox;")
        for n in range(100, 160):
            lived_in.arrive(an_event(n, f"v{n}"))
            lived_in.attempt(DONE)
        assert not checkpoint(engine), "pages that the shell still reads stay in the log"
        assert shell.types("SELECT count(*) FROM inbox;") == ["13"]
        assert shell.types("COMMIT; SELECT count(*) FROM inbox;") == ["73"]
        grown = log.stat().st_size
        assert checkpoint(engine)
        for n in range(200, 210):
            lived_in.arrive(an_event(n, f"v{n}"))
        assert log.stat().st_size == grown, "the log begins anew"
    assert differences(Database(engine)) == []


async def test_an_open_write_is_answered_503_and_what_is_sent_again_is_stored(
    database_url: str,
) -> None:
    path = database_url.removeprefix("sqlite:///")
    async with receiving(a_config(database_url)) as receiver:
        with opened(path) as shell:
            shell.types("BEGIN IMMEDIATE; INSERT INTO gate (kind, name) VALUES ('route', 'forgotten');")
            answer = await receiver.post(body("u1", moment(1)))
            assert (answer.status_code, "Retry-After" in {name.title() for name in answer.headers}) == (503, True)
            shell.types("ROLLBACK;")
        answer = await receiver.post(body("u1", moment(1)))
        assert (answer.status_code, answer.json["status"]) == (200, "accepted")


@pytest.mark.parametrize("name", ["backup.db", "copy.db"])
def test_each_backup_of_the_page_is_whole_while_others_write(lived_in: Steps, engine: Engine, name: str) -> None:
    page = "\n".join(block.text for block in blocks(PAGES["docs/how-to/back-up-and-restore.md"]) if block.info == "sh")
    (line,) = (line for line in page.splitlines() if line.startswith("sqlite3") and name in line)
    _, where, command = shlex.split(line)
    path = path_of(engine)
    copy = path.with_name(name)
    with opened(where.replace("inbox.db", str(path))) as shell:
        lived_in.arrive(an_event(98))
        shell.types(command.replace(name, str(copy)) + ("" if command.startswith(".") else ";"))
        lived_in.arrive(an_event(99))
    restored = Steps(engines.connect(f"sqlite:///{copy}", application="tests"))
    assert asked(str(copy), "PRAGMA integrity_check") == "ok"
    assert asked(str(copy), "SELECT count(*) FROM inbox") == "14"
    assert differences(restored.database) == []
    restored.attempt(DONE)
    restored.database.engine.dispose()
