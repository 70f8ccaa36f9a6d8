"""Access of other users to the files of both sides: none, unless somebody grants it, and then both sides warn."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from inbox.db import engine as engines
from inbox.exposure import exposure_warnings
from inbox.loader.load import read_config
from tests.helpers.machine import ROOM
from tests.helpers.processes import Site, site
from tests.helpers.webhooks import config_text

SOURCE = '[sources.s]\npreset = "trivore"\nauth = {{ kind = "bearer", secrets = [{}] }}\n'
HOOK = '[destinations.d]\nkind = "forward"\nurl = "{}"\n'


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody on the machine gets into; those that pytest makes are its own."""
    with tempfile.TemporaryDirectory(dir=ROOM) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.glob("*.db*")}


PRIVATE = {"inbox.db": "0o600", "inbox.db-wal": "0o600", "inbox.db-shm": "0o600"}


def test_a_database_file_is_made_for_its_owner_alone_with_what_sqlite_makes_beside_it(tmp_path: Path) -> None:
    engine = engines.connect(f"sqlite:///{tmp_path}/inbox.db", application="tests")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
        assert modes(tmp_path) == PRIVATE
    engine.dispose()


def test_so_it_is_by_the_receivers_way_to_it(tmp_path: Path) -> None:
    with engines.connect_thread(f"sqlite:///{tmp_path}/inbox.db").begin() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
        assert modes(tmp_path) == PRIVATE


def test_a_mode_that_somebody_has_chosen_stays_and_holds_for_what_is_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "inbox.db").touch(0o660)
    (tmp_path / "inbox.db").chmod(0o660)
    engine = engines.connect(f"sqlite:///{tmp_path}/inbox.db", application="tests")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
        assert set(modes(tmp_path).values()) == {"0o660"}
    engine.dispose()


def warnings(folder: Path, config: str, *, mode: int = 0o644) -> list[str]:
    path = folder / "inbox.toml"
    path.write_text(config, encoding="utf-8")
    path.chmod(mode)
    return list(exposure_warnings(path, read_config(path, {})))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (SOURCE.format('"s3cret"'), "sources.s.auth.secrets[0]"),
        (SOURCE.format('"env:X", { value = "s3cret" }'), "sources.s.auth.secrets[1]"),
        ('[database]\nurl = "postgresql://me:s3cret@h/x"\n', "database.url"),
        (HOOK.format("https://h/x") + 'proxy = "http://me:s3cret@proxy:1"\n', "destinations.d.proxy"),
        (HOOK.format("https://h/x?key=s3cret"), "destinations.d.url"),
        (HOOK.format("https://me:s3cret@h/x"), "destinations.d.url"),
        (HOOK.format("https://h/s3cretS3cretS3cretS3cret"), "destinations.d.url"),
        (HOOK.format("https://[s3cret"), "destinations.d.url"),
        ('[alerts]\nurl = "https://h/s3cret"\n', "alerts.url"),
    ],
)
def test_a_configuration_with_secrets_that_others_may_read_is_told_of(shared: Path, config: str, key: str) -> None:
    (said,) = warnings(shared, config)
    assert f"{shared}/inbox.toml holds secrets ({key})" in said
    assert f"`chmod o= {shared}/inbox.toml`" in said
    assert "s3cret" not in said.casefold()
    assert warnings(shared, config, mode=0o640) == []


@pytest.mark.parametrize(
    "config",
    [
        SOURCE.format('"env:X", "file:/x"'),
        HOOK.format("https://h/x"),
        '[database]\nurl = "postgresql://me@h/x"\n',
        '[apis.a]\nbase_url = "https://h"\nauth = { kind = "basic", user = "me", password = "env:X" }\n',
    ],
)
def test_one_without_secrets_may_be_read_by_everybody(shared: Path, config: str) -> None:
    assert warnings(shared, config) == []


def test_nor_is_a_file_told_of_that_nobody_gets_to(shared: Path) -> None:
    shared.chmod(0o700)
    assert warnings(shared, SOURCE.format('"s3cret"')) == []


@pytest.mark.parametrize("name", ["a\\u0000b", "loop"])
def test_nor_is_a_name_that_no_file_can_have(shared: Path, name: str) -> None:
    (shared / "loop").symlink_to("loop")
    assert warnings(shared, f'[database]\nurl = "sqlite:///{shared}/{name}"\n') == []


def test_a_password_of_the_environments_url_does_not_stand_in_the_file(shared: Path) -> None:
    (shared / "inbox.toml").write_text("", encoding="utf-8")
    environment = {"INBOX_DATABASE_URL": "postgresql://me:s3cret@h/x"}
    config = read_config(shared / "inbox.toml", environment)
    assert list(exposure_warnings(shared / "inbox.toml", config)) == []


@pytest.fixture
def place(shared: Path) -> Iterator[Site]:
    """A site with a database and a configuration that others may read."""
    with site(shared, config_text(f"sqlite:///{shared}/inbox.db")) as made:
        (shared / "inbox.db").touch(0o644)
        yield made


def test_both_sides_say_so_when_they_start(place: Site) -> None:
    assert place.invoke("inbox", "migrate").status == 0
    relay = place.relay("--drain")
    receiver, _ = place.receiver(1)
    receiver.send(signal.SIGTERM)
    assert (relay.ends(), receiver.ends()) == (0, 0)
    for told in (receiver.output, relay.output):
        assert told.count("inbox.toml holds secrets (sources.trivore.auth.secrets[0] and 1 more)") == 1
        assert told.count("inbox.db holds what webhooks say, and every user of this machine may read it") == 1
