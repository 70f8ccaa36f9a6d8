"""Access of other users to the files of both sides: none, unless it is granted, and then both sides warn."""

from __future__ import annotations

import os
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
from tests.helpers.processes import site
from tests.helpers.webhooks import config_text

SOURCE = '[sources.s]\npreset = "trivore"\nauth = {{ kind = "bearer", secrets = [{}] }}\n'
HOOK = '[destinations.d]\nkind = "forward"\nurl = "{}"\n'
API = '[apis.a]\nbase_url = "https://h"\nauth = { kind = "basic", user = "me", password = "env:X" }\n'
DATABASE = '[database]\nurl = "{}"\n'


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


@pytest.mark.parametrize("chosen", [None, 0o660])
@pytest.mark.parametrize("connect", [lambda url: engines.connect(url, application="t"), engines.connect_thread])
def test_a_database_file_is_made_for_its_owner_alone_with_what_sqlite_makes_beside_it(
    connect: object, chosen: int | None, tmp_path: Path
) -> None:
    """A mode that a person has chosen stays, and holds for the files beside it."""
    if chosen is not None:
        (tmp_path / "inbox.db").touch()
        (tmp_path / "inbox.db").chmod(chosen)
    assert callable(connect)
    engine = connect(f"sqlite:///{tmp_path}/inbox.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("*.db*")}
    engine.dispose()
    assert found == dict.fromkeys(("inbox.db", "inbox.db-wal", "inbox.db-shm"), chosen or 0o600)


def warnings(folder: Path, config: str, mode: int = 0o644, **environment: str) -> list[str]:
    path = folder / "inbox.toml"
    path.write_text(config, encoding="utf-8")
    path.chmod(mode)
    return list(exposure_warnings(path, read_config(path, environment)))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (SOURCE.format('"s3cret"'), "sources.s.auth.secrets[0]"),
        (SOURCE.format('"env:X", { value = "s3cret" }'), "sources.s.auth.secrets[1]"),
        (DATABASE.format("postgresql://me:s3cret@h/x"), "database.url"),
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
    shared.chmod(0o700)
    assert warnings(shared, config) == []


def test_a_file_without_secrets_or_a_name_that_no_file_can_have_is_not_told_of(shared: Path) -> None:
    (shared / "loop").symlink_to("loop")
    for config in (
        SOURCE.format('"env:X", "file:/x"'),
        HOOK.format("https://h/x"),
        API,
        *(
            DATABASE.format(url)
            for url in ("postgresql://me@h/x", f"sqlite:///{shared}/a\\u0000b", f"sqlite:///{shared}/loop")
        ),
    ):
        assert warnings(shared, config) == []
    assert warnings(shared, "", INBOX_DATABASE_URL="postgresql://me:s3cret@h/x") == [], "it does not stand in the file"


def test_both_sides_say_so_when_they_start(shared: Path) -> None:
    with site(shared, config_text(f"sqlite:///{shared}/inbox.db")) as place:
        (shared / "inbox.db").touch(0o644)
        assert place.invoke("inbox", "migrate").status == 0
        relay = place.relay("--drain")
        receiver, _ = place.receiver(1)
        assert (relay.ends(), receiver.stop()) == (0, 0)
        for told in (receiver.output, relay.output):
            assert told.count("inbox.toml holds secrets (sources.trivore.auth.secrets[0] and 1 more)") == 1
            assert told.count("inbox.db holds what webhooks say, and every user of this machine may read it") == 1
