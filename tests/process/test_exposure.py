"""Access of other users to the files of both sides: none, unless it is granted, and then both sides warn."""

from __future__ import annotations

import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from inbox.db import engine as engines
from inbox.exposure import exposure_warnings
from inbox.loader.load import read_config
from inbox.observe.logs import AccessLogMask
from tests.helpers.machine import ROOM
from tests.helpers.planted import harm_of
from tests.helpers.processes import GUNICORN, site
from tests.helpers.receiver import ask
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


# --- Parts of a request that the receiver's logs show with the access log on: nothing that could be a token


TOKEN = "QzTokenZq"
PLACES = (
    "/{}",
    "/Webhooks/trivore/{}",
    "//webhooks/trivore/{}",
    "/webhooks//trivore/{}",
    "/webhooks/trivore/{}/",
    "/webhooks/trivore/{}/x",
    "/webhooks/trivore//{}",
    "/webhooks/{}",
    "/webhooks/{}/trivore",
    "/webhooks/trivore/%51zTokenZq/{}",
    "/webhook/trivore/{}",
    "/health/live/{}",
    "/health/live?token={}",
    "/webhooks/trivore?token={}",
    "/webhooks/trivore/x?token={}",
    "/webhooks/trivore;{}",
    "http://127.0.0.1/webhooks/x/y/{}",
)
"""Paths with the token where a mistyped URL puts it, or in another part than the token's place."""
METHODS = ("GET", "POST", "PUT", "OPTIONS", "CONNECT", "BREW")
HOST = "HTTP/1.1\r\nHost: 127.0.0.1\r\n"
END = f" {HOST}Connection: close\r\nContent-Length: 0\r\n"
MALFORMED = (
    f"POST /webhooks/trivore/{TOKEN} HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN} \x01\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN}#x {HOST}\r\n",
    f"POST /webhooks/trivore/{TOKEN} HTTP/1.1\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN}{'x' * 20_000} {HOST}\r\n",
    f"POST /webhooks/trivore {HOST}X-Webhook-Token: {TOKEN}{'x' * 40_000}\r\n\r\n",
    f"POST /webhooks/trivore {HOST}X-Webhook-Token : {TOKEN}\r\n\r\n",
    f"POST /webhooks/trivore?{TOKEN}\xff {HOST}Content-Length: 0\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN} {HOST}Content-Length: 9\r\n\r\n",
)
FORGED = "X-Forwarded-For: 1.2.3.4\x9b31m\t[2026] [INFO] all is well\r\n"


@pytest.fixture(scope="module")
def log(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that a receiver wrote of these requests, among which are some of each kind that it refuses."""
    heads = (f"{method} {place.format(TOKEN)}{END}\r\n" for place in PLACES for method in METHODS)
    with site(tmp_path_factory.mktemp("logs"), config_text(module_database_url)) as place:
        receiver, port = place.receiver(1, (*GUNICORN, "--access-logfile", "-", "--log-level", "debug"))
        sent = (f"GET /health/live{END}{FORGED}\r\n", *heads, *MALFORMED)
        statuses = {ask(port, each.encode("latin-1"), half_close=True)[9:12] for each in sent}
        assert statuses >= {b"200", b"400", b"401", b"404", b"405", b"414", b"431"}
        assert receiver.stop() == 0
        return receiver.output


def test_no_log_of_the_receiver_shows_a_token_wherever_it_stands_in_a_request(log: str) -> None:
    assert TOKEN.casefold() not in log.casefold()
    for seen in ('"POST /… HTTP/1.1" 404', '"POST /webhooks/… HTTP/1.1" 401', '"GET /webhooks/trivore HTTP/1.1" 405'):
        assert seen in log


def test_no_header_forges_a_line_of_the_access_log_or_colours_it(log: str) -> None:
    assert harm_of(log) == []
    assert r"1.2.3.4\x9b31m" in log


@given(
    st.lists(st.sampled_from(["", "webhooks", "Webhooks", "trivore", "health", "live", TOKEN, "..", "x"]), max_size=6)
)
def test_a_path_is_shown_only_when_it_exists_and_then_without_its_token(parts: list[str]) -> None:
    args = ("127.0.0.1:1", "GET", "/" + "/".join(parts), "1.1", 404)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 1, '%s - "%s %s HTTP/%s" %d', args, None)
    AccessLogMask(lambda: {"trivore"})(record)
    (path,) = re.findall(r'"GET (\S+) HTTP', record.getMessage())
    assert path in {"/…", "/webhooks/…", "/webhooks/trivore", "/webhooks/trivore/…", "/health/live"}
