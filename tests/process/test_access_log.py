"""Parts of a request that the receiver's logs show with the access log on: nothing that could be a token."""

from __future__ import annotations

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.observe.logs import AccessLogMask
from tests.helpers.planted import harm_of
from tests.helpers.processes import GUNICORN, site
from tests.helpers.receiver import ask
from tests.helpers.webhooks import config_text

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
