"""Rejected requests at the cap of `rejected_request`: rows stay at it, others' webhooks are stored, and nothing grows."""

from __future__ import annotations

import http.client
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, text

from inbox.clock import SystemClock
from inbox.db.schema import rejected_request
from inbox.receiver.writer import MAX_REJECTIONS, PER_SECOND
from tests.helpers.processes import PATIENT, site
from tests.helpers.reading import count, rows
from tests.helpers.sender import Sender, endless
from tests.helpers.waiting import until
from tests.helpers.webhooks import PATH, body, config_text
from tests.helpers.wire import memory_of

pytestmark = pytest.mark.long

CAP, CONNECTIONS = 1_000, 8
WRONG = {"X-Webhook-Token": "wrong", "Content-Type": "application/json"}
STRANGERS, SENDERS = "rejected_request WHERE body IS NULL", "rejected_request WHERE body IS NOT NULL"


def plant(engine: Engine) -> None:
    """As many rows of strangers as are kept, and older ones of a sender."""
    row = {"received_at": SystemClock().now(), "source": "trivore", "reason": "planted", "body_sha256": b"0"}
    stranger = {**row, "status": 401, "cause": "not_authenticated"}
    sender = {**row, "status": 422, "cause": "invalid_event", "body": b"{}"}
    with engine.begin() as connection:
        connection.execute(insert(rejected_request), [sender] * 5)
        connection.execute(insert(rejected_request), [stranger] * CAP)


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


def test_ten_thousand_rejected_requests_at_the_cap_add_no_row_and_hold_up_no_webhook(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    plant(engine)
    with site(tmp_path, config_text(database_url) + f"[retention]\nrejected_most = {CAP}\n") as place:
        receiver, port = place.receiver(1, PATIENT)
        place.relay()
        until(lambda: count(engine, "pruner WHERE ran_at IS NOT NULL"), "a round has ended")
        assert count(engine, STRANGERS) == CAP
        (worker,) = receiver.children()
        flood(port, 2_000)
        memory = memory_of(worker)
        sender = Sender(tmp_path / "sends.jsonl", port, endless(), per_second=50)
        try:
            for _ in range(2):
                was = sender.acknowledged()
                added = flood(port, 4_000)
                assert count(engine, STRANGERS) <= CAP + 2 * MAX_REJECTIONS + added
                until(lambda: sender.acknowledged() > was + 20, "webhooks are stored")
                last = rows(engine, "SELECT max(id) AS id FROM rejected_request")[0]["id"]
                with engine.begin() as connection:
                    connection.execute(text("UPDATE pruner SET ran_at = NULL"))
                until(lambda: count(engine, STRANGERS) <= CAP, "the oldest are deleted")
                assert count(engine, f"{STRANGERS} AND id = :id", id=last) == 1
        finally:
            sender.enough()
            until(lambda: sender.is_done, "the last is acknowledged")
            sender.stop()
        assert sender.refused() == 0
        assert memory_of(worker) < memory + 8 * 1024 * 1024
    assert count(engine, SENDERS) == 5
    assert count(engine, "inbox") == len({line["seq"] for line in sender.sends.lines() if line["outcome"] == "ok"})
