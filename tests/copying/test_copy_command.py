"""`inbox copy` shows its plan, copies when it is told to, and says what to do next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.copying.conftest import Databases, url_of
from tests.copying.installation import everything
from tests.helpers.downstream import serving
from tests.helpers.processes import Ended, Site, site
from tests.helpers.reading import count, rows
from tests.helpers.receiver import receiving
from tests.helpers.sender import events
from tests.helpers.waiting import until
from tests.helpers.webhooks import a_config, body, config_text


@pytest.fixture
def source(databases: Databases, templates: dict[str, str]) -> Engine:
    return databases.open(databases.new("sqlite", templates["sqlite"]))


@pytest.fixture
def place(source: Engine, tmp_path: Path) -> Iterator[Site]:
    source.dispose()  # else the test itself has the file open
    with site(tmp_path, config_text(url_of(source))) as made:
        yield made


def copying(place: Site, url: str, *options: str) -> Ended:
    return place.invoke("inbox", "copy", "--to", "env:THERE", *options, THERE=url)


def test_without_yes_it_shows_the_plan_and_changes_nothing(place: Site, databases: Databases) -> None:
    url = databases.new("postgres")
    shown = copying(place, url)
    assert shown.status == 0
    assert "--yes copies them" in shown.stdout
    planned = json.loads(copying(place, url, "--json").stdout)
    assert {each["table"]: each["rows"] for each in planned["tables"]}["gate"] > 0
    assert planned["running"] == []
    systems = "SELECT oid FROM pg_namespace WHERE nspname IN ('pg_catalog', 'information_schema', 'pg_toast')"
    assert count(databases.open(url), f"pg_class WHERE relnamespace NOT IN ({systems})") == 0


def test_it_copies_and_says_what_comes_next(place: Site, source: Engine, databases: Databases) -> None:
    url = databases.new("postgres")
    done = copying(place, url, "--yes")
    assert done.status == 0, done.stderr
    assert "both ends are equal" in done.stdout
    assert "put its url into [database] url" in done.stderr
    assert everything(databases.open(url)) == everything(source)


def test_its_result_as_json_has_a_hash_of_each_table(place: Site, databases: Databases) -> None:
    done = json.loads(copying(place, databases.new("sqlite"), "--yes", "--json").stdout)
    assert {len(each["hash"]) for each in done["tables"]} == {64}
    again = json.loads(copying(place, databases.new("postgres"), "--yes", "--json").stdout)
    assert [each["hash"] for each in again["tables"]] == [each["hash"] for each in done["tables"]]


def test_a_plan_makes_no_file_that_would_be_the_target(place: Site, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for options in ((), ("--json",)):
        assert copying(place, f"sqlite:///{folder}/there.db", *options).status == 0
    assert list(folder.iterdir()) == []
    missing = copying(place, f"sqlite:///{folder}/no/there.db")
    assert (missing.status, missing.stderr.startswith("error: ")) == (2, True), missing


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "mysql://x"), "neither postgresql"),
        (("--to", ""), "--to"),
    ],
)
def test_wrong_use_is_explained(place: Site, options: tuple[str, ...], said: str) -> None:
    wrong = copying(place, "sqlite:///there.db", *options)
    assert (wrong.status, said in wrong.stderr) == (2, True), wrong


def test_a_database_is_not_copied_into_itself(place: Site, source: Engine) -> None:
    assert "the configuration itself" in copying(place, url_of(source), "--yes").stderr


def test_a_target_that_does_not_answer_is_no_traceback(place: Site) -> None:
    silent = copying(place, "postgresql+psycopg://inbox@127.0.0.1:9/inbox")
    assert silent.status == 2
    assert silent.stderr.startswith("error: the database:")


def test_a_program_that_has_the_file_open_stops_it(place: Site, source: Engine, databases: Databases) -> None:
    with source.connect():
        used = copying(place, databases.new("sqlite"), "--yes")
    assert used.status == 2
    assert "in use: stop the program that has the file open" in used.stderr


def test_a_relay_that_runs_stops_it(place: Site, source: Engine, databases: Databases) -> None:
    with source.begin() as connection:
        now = "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000Z'"
        connection.execute(text(f"UPDATE relay_node SET heartbeat_at = {now.replace(':', chr(92) + ':')}"))
    source.dispose()
    assert "in use: stop the relay h pid 7" in copying(place, databases.new("sqlite"), "--yes").stderr


async def test_after_the_move_a_relay_delivers_the_rest_in_order_and_the_receiver_knows_its_keys(
    tmp_path: Path, sqlite_database_url: str, databases: Databases
) -> None:
    sent = events(12, entities=2)
    with (
        serving(tmp_path / "arrivals.jsonl") as downstream,
        site(tmp_path, config_text(sqlite_database_url, downstream.url)) as place,
    ):
        async with receiving(a_config(sqlite_database_url)) as receiver:
            for event in sent:
                assert (await receiver.post(body(*event))).status_code == 200
        url = databases.new("postgres")
        assert copying(place, url, "--yes").status == 0
        there = databases.open(url)
        async with receiving(a_config(url)) as receiver:
            answers = [(await receiver.post(body(*event))).json for event in [*sent, ("u0", "2026-01-02T00:00:00Z")]]
        assert [answer["status"] for answer in answers] == ["duplicate"] * 12 + ["accepted"]
        place.configure(config_text(url, downstream.url))
        relay = place.relay()
        until(lambda: count(there, "delivery_log WHERE kind = 'delivered'") == 13, "all are delivered")
        relay.stop()
        assert place.run("relay", "verify").status == 0
    delivered = (
        "SELECT l.seq FROM delivery_log l JOIN inbox i ON i.seq = l.seq WHERE i.entity_id = :entity ORDER BY l.id"
    )
    for entity in ("u0", "u1"):
        order = [row["seq"] for row in rows(there, delivered, entity=entity)]
        assert order == sorted(order)
