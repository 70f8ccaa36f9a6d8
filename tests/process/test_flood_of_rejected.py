"""A flood of rejected requests: it adds some rows a second, others' webhooks are stored, and no memory grows."""

from __future__ import annotations

import http.client
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.receiver.writer import MAX_REJECTIONS, PER_SECOND
from tests.helpers.processes import PATIENT, site
from tests.helpers.reading import count
from tests.helpers.sender import Sender, endless
from tests.helpers.waiting import until
from tests.helpers.webhooks import PATH, body, config_text
from tests.helpers.wire import memory_of

pytestmark = pytest.mark.long

CONNECTIONS = 8
WRONG = {"X-Webhook-Token": "wrong", "Content-Type": "application/json"}
STRANGERS = "rejected_request WHERE body IS NULL"


def reject(port: int, requests: int) -> int:
    """Send so many requests with a wrong token on one connection; how many were rejected."""
    rejected = 0
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        for number in range(requests):
            connection.request("POST", PATH, body(f"stranger{number}"), WRONG)
            answer = connection.getresponse()
            answer.read()
            rejected += answer.status == 401
    return rejected


def flood(port: int, requests: int) -> int:
    """Send rejected requests over several connections at once; the most rows that they may have added, besides those that wait."""
    began = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        assert sum(pool.map(reject, [port] * CONNECTIONS, [requests // CONNECTIONS] * CONNECTIONS)) == requests
    return math.ceil(PER_SECOND * (time.monotonic() - began + 1))


def test_ten_thousand_rejected_requests_add_few_rows_and_hold_up_no_webhook(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    with site(tmp_path, config_text(database_url)) as place:
        receiver, port = place.receiver(1, PATIENT)
        (worker,) = receiver.children()
        most = MAX_REJECTIONS + flood(port, 2_000)
        memory = memory_of(worker)
        sender = Sender(tmp_path / "sends.jsonl", port, endless(), per_second=50)
        try:
            for _ in range(2):
                was = sender.acknowledged()
                most += flood(port, 4_000)
                assert 0 < count(engine, STRANGERS) <= most
                until(lambda: sender.acknowledged() > was + 20, "webhooks are stored")
        finally:
            sender.enough()
            until(lambda: sender.is_done, "the last is acknowledged")
            sender.stop()
        assert sender.refused() == 0
        assert memory_of(worker) < memory + 8 * 1024 * 1024
    assert count(engine, "inbox") == len({line["seq"] for line in sender.sends.lines() if line["outcome"] == "ok"})
