"""Metrics of real processes, scraped while they work, against what the database says. A scrape harms nobody."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.helpers import checkers
from tests.helpers.metrics import Samples, exporter_of, metrics_at, scrape, served, total
from tests.helpers.processes import site
from tests.helpers.receiver import ask, status_of, webhook
from tests.helpers.relaying import fill
from tests.helpers.tables import count, duplicates, facts
from tests.helpers.traffic import serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import body, config_text, moment


def counted(samples: Samples) -> dict[str, float]:
    """Return the number of facts of each kind."""
    return {kind: number for (kind, _), number in samples.get("relay_facts_total", {}).items() if number}


def has_ended(pid: int) -> bool:
    """One that nobody waits for any more stays in the list of processes where no init takes it from there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def post(port: int, *sent: bytes, path: str = "trivore") -> Counter[int]:
    """The statuses that these bodies are answered with, each on a connection of its own: any worker takes it."""
    answers = (ask(port, webhook(payload=each).replace(b"/trivore", f"/{path}".encode())) for each in sent)
    return Counter(map(status_of, answers))


def agrees(engine: Engine, samples: Samples) -> bool:
    """Return whether metrics equal stored rows; each rejection has a row, or counts as one without."""
    refused = total(samples, "inbox_rejected_total")
    return (
        "inbox_received_total" in samples  # else nothing has been written yet
        and samples["inbox_received_total"]["trivore",] == count(engine, "inbox")
        and samples["inbox_duplicates_total"]["trivore",] == duplicates(engine)
        and refused == count(engine, "rejected_request") + total(samples, "inbox_rejections_not_kept_total")
        and total(samples, "inbox_batch_events_sum") == count(engine, "inbox") + duplicates(engine)
    )


def agreed(engine: Engine, port: int, requests: int) -> Samples:
    """Return the metrics once they agree with the database and count at least `requests` requests: both take a moment."""
    found: list[Samples] = []

    def look() -> bool:
        found.append(scrape(port))
        return agrees(engine, found[-1]) and total(found[-1], "inbox_request_seconds_count") >= requests

    until(look, "both say the same")
    return found[-1]


def test_a_scrape_sees_all_workers_and_those_that_have_ended(
    postgres_database_url: str, postgres_engine: Engine, tmp_path: Path
) -> None:
    port, more = metrics_at("receiver")
    with site(tmp_path, config_text(postgres_database_url) + more) as place:
        receiver, webhooks = place.receiver(workers=2, besides=1)
        until(lambda: served(port), "metrics are served")
        exporter = exporter_of(receiver)
        assert post(webhooks, *(body(f"u{n}") for n in range(40))) == {200: 40}
        assert post(webhooks, *(body(f"u{n}") for n in range(10))) == {200: 10}
        assert post(webhooks, *[b"{}"] * 3, b"<xml/>") == {422: 3, 400: 1}
        assert post(webhooks, body(), body(), path="nobody") == {401: 2}

        first = agreed(postgres_engine, port, 56)
        assert first["inbox_rejected_total"]["invalid_event", "trivore"] == 3
        assert first["inbox_rejected_total"]["unreadable", "trivore"] == 1
        assert first["inbox_rejected_total"]["not_authenticated", "(unknown)"] == 2
        assert first["inbox_request_seconds_count"]["200",] == 50
        assert total(first, "inbox_request_seconds_count") == 56
        assert "nobody" not in str(first)

        workers = set(receiver.children()) - {exporter}
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(receiver.children()) == 3 and not workers & set(receiver.children()), "others serve")
        until(lambda: post(webhooks, body("after a crash")) == {200: 1}, "they take webhooks in")
        receiver.send(signal.SIGHUP)
        before = set(receiver.children()) - {exporter}
        until(lambda: len(receiver.children()) == 3 and not before & set(receiver.children()), "and others")
        assert post(webhooks, body("after a reload")) == {200: 1}

        last = agreed(postgres_engine, port, 58)
        assert last["inbox_received_total"]["trivore",] == 42
        assert exporter_of(receiver) == exporter

        assert receiver.stop() == 0
        assert has_ended(exporter)
        written = receiver.output.replace("was sent SIGKILL! Perhaps out of memory?", "")
        assert checkers.complaints({"receiver": written}) == []


def test_whatever_is_done_to_the_port_of_the_metrics_webhooks_are_taken_in(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    port, more = metrics_at("receiver")
    with site(tmp_path, config_text(sqlite_database_url) + more) as place:
        receiver, webhooks = place.receiver(workers=1, besides=1)
        until(lambda: served(port), "metrics are served")
        exporter = exporter_of(receiver)
        assert post(webhooks, *(body(f"u{n}") for n in range(20))) == {200: 20}
        assert b"405" in ask(port, webhook()).splitlines()[0]
        assert status_of(ask(webhooks, b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) == 404

        until(lambda: total(scrape(port), "inbox_received_total") == 20, "all is counted")
        os.kill(exporter, signal.SIGKILL)
        assert post(webhooks, body("without it")) == {200: 1}
        receiver.send(signal.SIGHUP)
        until(lambda: served(port), "a reload brings it back")
        until(lambda: total(scrape(port), "inbox_received_total") == 1, "what was counted meanwhile is not lost")

        exporter = exporter_of(receiver)
        workers = set(receiver.children()) - {exporter}
        receiver.kill()
        assert not has_ended(exporter)
        for pid in workers:  # a worker outlives its master
            with contextlib.suppress(ProcessLookupError):  # but for the one that was replaced
                os.kill(pid, signal.SIGKILL)
        until(lambda: has_ended(exporter), "it goes with the last process")


def test_one_that_takes_the_place_of_another_serves_at_its_address_and_leaves_nothing_when_it_is_killed(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    port, more = metrics_at("relay")
    with site(tmp_path, config_text(sqlite_database_url) + more) as place:
        old = place.relay()
        until(lambda: served(port), "metrics are served")
        new = place.relay("--processes", "2")
        new.writes(f"can't listen on 127.0.0.1:{port}, trying again")
        assert old.stop() == 0
        until(lambda: served(port), "the new one has it")

        exporter = exporter_of(new)
        for pid in {new.pid, *new.children()} - {exporter}:
            os.kill(pid, signal.SIGKILL)
        until(lambda: has_ended(exporter), "it goes with the last process")


@pytest.mark.parametrize(("database_url", "processes"), [("sqlite", 1), ("postgres", 2)], indirect=["database_url"])
def test_what_relays_count_is_what_the_log_says(
    database_url: str, processes: int, engine: Engine, tmp_path: Path
) -> None:
    def script(seq: int, attempt: int) -> int:
        return 503 if seq % 5 == 0 and attempt == 1 else 400 if seq % 7 == 0 else 200

    fill(database_url, [(f"u{n % 20}", moment(n)) for n in range(60)])
    port, more = metrics_at("relay")
    with serving(tmp_path / "arrivals.jsonl", script) as downstream:
        text = config_text(database_url, downstream.url, schedule=("100ms", "100ms"))
        with site(tmp_path, text + more) as place:
            relay = place.relay("--processes", str(processes))
            until(
                lambda: not relay.runs or count(engine, "open_delivery WHERE state <> 'dead'") == 0,
                "all is done",
            )
            assert relay.runs, relay.output
            logged = facts(engine)
            until(lambda: served(port), "metrics are served")
            until(lambda: counted(scrape(port)) == Counter(fact["kind"] for fact in logged), "all of it is told")
            until(lambda: total(scrape(port), "relay_backlog_read_timestamp_seconds") > 0, "the backlog was read")
            found = scrape(port)
            attempts = {outcome: n for (outcome, _), n in found["relay_attempts_total"].items()}
            assert attempts["delivered"] == found["relay_delivery_seconds_count"]["everything",]
            assert sum(attempts.values()) == len(downstream.arrivals.lines())
            assert attempts["server_error"] == sum(f["detail"].get("error_class") == "server_error" for f in logged)
            assert found["relay_breaker"]["destination", "audit"] in {0, 2}
            assert set(found["relay_open_deliveries"]) >= {("everything", "ready"), ("everything", "dead")}
            exporter = exporter_of(relay)
            assert relay.stop() == 0
            assert has_ended(exporter)
            assert checkers.complaints(place.logs()) == []
