"""Parts of a request that the receiver's logs show with the access log on: nothing that could be a token."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.observe.logs import AccessLogMask
from tests.helpers.planted import harm_of
from tests.helpers.processes import GUNICORN, site
from tests.helpers.webhooks import config_text

TOKEN = "QzTokenZq"
PATHS = (
    f"/{TOKEN}",
    f"/Webhooks/trivore/{TOKEN}",
    f"//webhooks/trivore/{TOKEN}",
    f"/webhooks//trivore/{TOKEN}",
    f"/webhooks/trivore/{TOKEN}/",
    f"/webhooks/trivore/{TOKEN}/x",
    f"/webhooks/trivore//{TOKEN}",
    f"/webhooks/{TOKEN}",
    f"/webhooks/{TOKEN}/trivore",
    f"/webhooks/trivore/%51zTokenZq/{TOKEN}",
    f"/webhook/trivore/{TOKEN}",
    f"/health/live/{TOKEN}",
    f"/health/live?token={TOKEN}",
    f"/webhooks/trivore?token={TOKEN}",
    f"/webhooks/trivore/x?token={TOKEN}",
    f"/webhooks/trivore;{TOKEN}",
    f"http://127.0.0.1/webhooks/x/y/{TOKEN}",
)
"""Paths with the token where a mistyped URL puts it, or in another part than the token's place."""
METHODS = ("GET", "POST", "PUT", "OPTIONS", "CONNECT", "BREW")
MALFORMED = (
    f"POST /webhooks/trivore/{TOKEN} HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN} \x01\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN}#x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN} HTTP/1.1\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN}{'x' * 20_000} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    f"POST /webhooks/trivore HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Webhook-Token: {TOKEN}{'x' * 40_000}\r\n\r\n",
    f"POST /webhooks/trivore HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Webhook-Token : {TOKEN}\r\n\r\n",
    f"POST /webhooks/trivore?{TOKEN}\xff HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n",
)
FORGED_LINE = "1.2.3.4\x9b31m\t[2026] [INFO] all is well"
FORGED_LINK = r"\[/] \[link=https://evil.example]x"


def ask(port: int, request: str) -> bytes:
    """The beginning of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request.encode("latin-1"))
        with contextlib.suppress(OSError):  # the receiver has ended the connection already
            connection.shutdown(socket.SHUT_WR)
        return connection.recv(12)


class Written(NamedTuple):
    """Statuses of all requests, what the receiver wrote of them, and the listing of those that it rejected."""

    statuses: set[bytes]
    log: str
    listing: str


@pytest.fixture(scope="module")
def written(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Written:
    with site(tmp_path_factory.mktemp("logs"), config_text(module_database_url)) as place:
        receiver, port = place.receiver(1, (*GUNICORN, "--access-logfile", "-", "--log-level", "debug"))
        head = "GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        ask(port, f"{head}X-Forwarded-For: {FORGED_LINE}\r\n\r\n")
        head = "POST /webhooks/trivore HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 0\r\n"
        assert ask(port, f"{head}X-Forwarded-For: {FORGED_LINK}\r\n\r\n")[9:] == b"401"
        heads = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            for path in PATHS
            for method in METHODS
        )
        statuses = {ask(port, request)[9:] for request in (*heads, *MALFORMED)}
        assert receiver.stop() == 0
        listing = place.invoke("inbox", "rejected", "--limit", "1000", COLUMNS="400")
        assert listing.status == 0
        return Written(statuses, receiver.output, listing.stdout)


def test_no_log_of_the_receiver_shows_a_token_wherever_it_stands_in_a_request(written: Written) -> None:
    assert written.statuses >= {b"200", b"400", b"401", b"404", b"405", b"414", b"431"}
    assert TOKEN.casefold() not in written.log.casefold()
    for seen in ('"POST /… HTTP/1.1" 404', '"POST /webhooks/… HTTP/1.1" 401', '"GET /webhooks/trivore HTTP/1.1" 405'):
        assert seen in written.log


def test_no_header_forges_a_line_of_the_access_log_or_colours_it(written: Written) -> None:
    assert harm_of(written.log) == []
    assert r"1.2.3.4\x9b31m" in written.log


def test_text_in_place_of_an_address_reaches_no_listing(written: Written) -> None:
    assert "it shows no secret" in written.listing
    assert "evil.example" not in written.listing


def shown(path: str) -> str:
    args = ("127.0.0.1:1", "GET", path, "1.1", 404)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 1, '%s - "%s %s HTTP/%s" %d', args, None)
    assert AccessLogMask(lambda: {"trivore"})(record)
    return record.getMessage()


@given(
    st.lists(st.sampled_from(["", "webhooks", "Webhooks", "trivore", "health", "live", TOKEN, "..", "x"]), max_size=6)
)
def test_a_path_is_shown_only_when_it_exists_and_then_without_its_token(parts: list[str]) -> None:
    line = shown("/" + "/".join(parts))
    (path,) = re.findall(r'"GET (\S+) HTTP', line)
    assert path in {"/…", "/webhooks/…", "/webhooks/trivore", "/webhooks/trivore/…", "/health/live"}
