"""The demo touches nothing that is not its own, and says what to do instead."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from sqlalchemy import text

from inbox.config.model import SyncDestination
from inbox.db import engine as engines
from inbox.db import migrate
from inbox.loader.load import read_config
from relay.demo.processes import DemoError
from relay.demo.workspace import (
    Folder,
    absolute_url,
    child_environment,
    configuration,
    prepare_database,
    prepare_folder,
    write_private,
)
from relay.destinations import build
from tests.helpers.filling import fill


def test_the_configuration_is_valid_and_its_routes_can_be_built(tmp_path: Path) -> None:
    path = tmp_path / "inbox.toml"
    at = {"identity_url": "http://127.0.0.1:1", "commercial_url": "http://127.0.0.1:2"}
    write_private(path, configuration(database_url="sqlite:////a/b.db", users="file:users", token='a"b', **at))
    config = read_config(path, {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(build(config)) == {"users-to-contacts", "groups-to-teams"}
    assert all(config.ordering_of(route) == "latest" for route in config.routes.values())
    assert isinstance(config.destinations["commercial"], SyncDestination)


def test_an_empty_database_is_migrated_and_one_without_events_will_do(tmp_path: Path, database_url: str) -> None:
    for url in (f"sqlite:///{tmp_path / 'new.db'}", database_url):
        made = prepare_database(url)
        migrate.require_current(made)
        made.dispose()


def test_a_database_with_events_is_refused(database_url: str) -> None:
    fill(database_url, [("u1", "2026-01-01T00:00:00Z")])
    with pytest.raises(DemoError, match=r"has events already.*name an empty database with --database"):
        prepare_database(database_url)


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    other = engines.connect(url, application="tests")
    with other.begin() as connection:
        connection.execute(text("CREATE TABLE theirs (id int)"))
    with pytest.raises(DemoError, match="belongs to something else"):
        prepare_database(url)
    with other.begin() as connection:
        assert connection.execute(text("SELECT name FROM sqlite_master")).scalars().all() == ["theirs"]
    other.dispose()


def test_a_folder_of_an_earlier_demo_will_do_and_another_is_refused(tmp_path: Path) -> None:
    earlier = configuration(database_url="", users="", token="", identity_url="", commercial_url="")
    (tmp_path / "inbox.toml").write_text(earlier)
    assert prepare_folder(tmp_path) == tmp_path
    (tmp_path / "inbox.toml").write_text("[database]\n")
    with pytest.raises(DemoError, match="stays as it is: name an empty folder with --folder"):
        prepare_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match="name another with --folder"):
        prepare_folder(tmp_path / "file")


def test_a_relative_sqlite_url_means_this_folder_also_for_the_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_url("sqlite:///x.db", Path("/elsewhere")) == f"sqlite:///{tmp_path / 'x.db'}"
    assert absolute_url(None, tmp_path) == f"sqlite:///{tmp_path / 'inbox.db'}"


def test_settings_that_would_win_over_the_file_do_not_reach_the_children() -> None:
    present = {"INBOX_DATABASE_URL": "sqlite:///theirs.db", "GUNICORN_CMD_ARGS": "--bind 0.0.0.0:1", "LANG": "C"}
    environment = child_environment(Path("/f/inbox.toml"), present)
    assert not {"INBOX_DATABASE_URL", "GUNICORN_CMD_ARGS"} & set(environment)
    assert (environment["INBOX_CONFIG"], environment["LANG"]) == ("/f/inbox.toml", "C")


def test_a_folder_that_the_demo_made_is_removed_with_its_token_and_a_given_one_stays(tmp_path: Path) -> None:
    own, given = Folder(None), Folder(tmp_path)
    for folder in (own, given):
        write_private(folder.path / "inbox.toml", "a token")
        folder.close()
    assert not own.path.exists()
    assert (tmp_path / "inbox.toml").exists()
    assert "is removed" in own.ending
    assert "stays" in given.ending


def test_a_folder_that_the_demo_made_stays_for_whoever_looks_into_a_failure() -> None:
    folder = Folder(None)
    folder.keep = True
    folder.close()
    assert folder.path.exists()
    assert "stays" in folder.ending
    folder.path.rmdir()
