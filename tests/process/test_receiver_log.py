"""The receiver's log as an operator reads it: each line with its time in UTC, an outage in two lines for each worker."""

from __future__ import annotations

import http.client
import re

from sqlalchemy import Engine

from tests.helpers.outage import down
from tests.helpers.processes import GUNICORN, Site, free_port, listens
from tests.helpers.reading import count
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, body

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[\d+\] \[(?P<level>\w+)\] (?P<message>.+)")


def post(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", PATH, body(), HEADERS)
    status = connection.getresponse().status
    connection.close()
    return status


def test_each_line_has_its_time_and_an_outage_is_told_when_it_begins_and_when_it_ends(
    postgres_place: Site, postgres_database_url: str, postgres_engine: Engine
) -> None:
    port = free_port()
    with down(postgres_database_url):
        receiver = postgres_place.start("receiver", *GUNICORN, "--bind", f"127.0.0.1:{port}", "--workers", "1")
        until(lambda: listens(port), "it serves")
        assert [post(port) for _ in range(5)] == [503] * 5
    until(lambda: post(port) == 200, "it stores again")
    assert count(postgres_engine, "inbox") == 1
    assert receiver.stop() == 0

    lines = [LINE.fullmatch(line) for line in receiver.output.splitlines()]
    assert None not in lines, receiver.output
    told = [found["message"] for found in lines if found is not None and found["level"] == "WARNING"]
    start, gone, back = (message for message in told if "the database" in message)
    assert start.startswith("the database does not answer, senders get 503 until it does: connection failed: ")
    assert start.endswith("is not currently accepting connections")
    assert gone.startswith("the database takes nothing, senders get 503 and send again: connection failed: ")
    assert re.fullmatch(r"the database takes events again after \d+\.\d s; requests with 503: \d+", back)
