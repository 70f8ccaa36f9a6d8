"""Metrics and traces of real processes, compared with the database."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.observe.logs import KEYS
from tests.helpers import checkers
from tests.helpers.metrics import (
    Collector,
    Samples,
    Span,
    collecting,
    exporter_of,
    metrics_at,
    scrape,
    total,
    try_scrape,
)
from tests.helpers.processes import GUNICORN, free_port, site
from tests.helpers.receiver import ask, post_json, status_of, webhook
from tests.helpers.relaying import fill
from tests.helpers.scripted import answer, serving
from tests.helpers.tables import count, duplicates, facts, rows
from tests.helpers.traffic import serving as serving_downstream
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, TOKEN, body, config_text, moment

STRANGER = 65534
"""The usual uid and gid of an account without rights; root can take them without an account."""
TOUCHES = (
    "open os.chmod os.chown os.link os.listdir os.mkdir os.remove os.rename os.rmdir os.scandir os.symlink os.truncate"
)
"""Audit events (PEP 578) about a file or a folder."""
WATCHES = f"""
import os, sys
def watch():
    told = {TOUCHES!r}.split()
    sys.addaudithook(lambda event, values: print(event, *values, flush=True) if event in told else None)
"""
COUNTS = """
from inbox.observe.recorder import exporter_at, make_recorder
from inbox.observe.metrics import RECEIVED, RECEIVER
watch()
exporter = exporter_at(("127.0.0.1", int(sys.argv[1])))
exporter.ensure()
meters = make_recorder(RECEIVER)
meters.count(RECEIVED, "trivore")
meters.close()
input()
exporter.stop()
"""
SERVES = """
from inbox.observe.exporter import main
watch()
main(["127.0.0.1", sys.argv[1], str(os.geteuid()), str(os.getegid()), "text"])
"""


def has_ended(pid: int) -> bool:
    """Return whether the process is gone or a zombie, which stays where no init reaps it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def post(port: int, *sent: bytes, path: str = "trivore") -> Counter[int]:
    """Post each body on its own connection, so that any worker takes it; return the statuses."""
    answers = (ask(port, webhook(payload=each).replace(b"/trivore", f"/{path}".encode())) for each in sent)
    return Counter(map(status_of, answers))


def wait_for_agreement(engine: Engine, port: int, requests: int) -> Samples:
    """Return the metrics once they count `requests` and agree with the database.

    Each rejection has a row or is counted as not stored.
    """
    found: list[Samples] = []

    def look() -> bool:
        found.append(samples := scrape(port))
        events, repeats = count(engine, "inbox"), duplicates(engine)
        return (
            total(samples, "inbox_request_seconds_count") >= requests
            and samples["inbox_received_total"]["trivore",] == events
            and samples["inbox_duplicates_total"]["trivore",] == repeats
            and total(samples, "inbox_rejected_total")
            == count(engine, "rejected_request") + total(samples, "inbox_rejections_not_kept_total")
            and total(samples, "inbox_batch_events_sum") == events + repeats
        )

    until(look, "both say the same")
    return found[-1]


def test_a_scrape_counts_all_workers_even_ended_ones_and_its_failure_stops_no_webhook(
    postgres_database_url: str, postgres_engine: Engine, tmp_path: Path
) -> None:
    port, more = metrics_at("receiver")
    with site(tmp_path, config_text(postgres_database_url) + more) as place:
        receiver, webhooks = place.receiver(workers=2, besides=1)
        until(lambda: try_scrape(port), "metrics are served")
        exporter = exporter_of(receiver)
        assert post(webhooks, *(body(f"u{n}") for n in range(40))) == {200: 40}
        assert post(webhooks, *(body(f"u{n}") for n in range(10))) == {200: 10}
        assert post(webhooks, *[b"{}"] * 3, b"<xml/>") == {422: 3, 400: 1}
        assert post(webhooks, body(), body(), path="nobody") == {401: 2}
        assert b"405" in ask(port, webhook()).splitlines()[0]
        get = b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        assert status_of(ask(webhooks, get)) == 404

        first = wait_for_agreement(postgres_engine, port, 56)
        assert first["inbox_rejected_total"]["invalid_event", "trivore"] == 3
        assert first["inbox_rejected_total"]["unreadable", "trivore"] == 1
        assert first["inbox_rejected_total"]["not_authenticated", "(unknown)"] == 2
        assert first["inbox_request_seconds_count"]["200",] == 50
        assert "nobody" not in str(first)

        workers = set(receiver.children()) - {exporter}
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(receiver.children()) == 3 and not workers & set(receiver.children()), "others serve")
        until(lambda: post(webhooks, body("after a crash")) == {200: 1}, "they take webhooks in")
        assert wait_for_agreement(postgres_engine, port, 57)["inbox_received_total"]["trivore",] == 41

        os.kill(exporter, signal.SIGKILL)
        assert post(webhooks, body("without it")) == {200: 1}
        receiver.send(signal.SIGHUP)
        until(lambda: try_scrape(port), "a reload brings it back")
        until(lambda: total(scrape(port), "inbox_received_total") == 1, "no count was lost meanwhile")
        exporter = exporter_of(receiver)
        assert receiver.stop() == 0
        assert has_ended(exporter)
        written = receiver.output.replace("was sent SIGKILL! Perhaps out of memory?", "")
        assert checkers.find_complaints({"receiver": written}) == []


@contextmanager
def trickling(port: int, number: int) -> Iterator[None]:
    """Open `number` connections: half are silent, half send a request that never ends, byte by byte."""
    with ExitStack() as leaving:
        connections = [leaving.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(number)]
        ended = threading.Event()

        def drip() -> None:
            sent = b"GET /metrics HTTP/1.1\r\nHost: a"
            while not ended.wait(0.05):
                for connection in list(connections[::2]):
                    try:
                        connection.sendall(sent)
                    except OSError:
                        continue
                sent = b"a"

        thread = threading.Thread(target=drip)
        thread.start()
        leaving.callback(thread.join)
        leaving.callback(ended.set)
        yield


def test_a_relay_is_scraped_despite_slow_connections_and_its_successor_at_the_same_address(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    port, more = metrics_at("relay")
    with site(tmp_path, config_text(sqlite_database_url) + more) as place:
        old = place.relay()
        until(lambda: try_scrape(port), "metrics are served")
        with trickling(port, 200):
            assert "relay_facts_total" in scrape(port)
        new = place.relay("--processes", "2")
        new.writes(f"can't listen on 127.0.0.1:{port}, trying again")
        assert old.stop() == 0
        until(lambda: try_scrape(port), "the new one has it")
        assert checkers.find_complaints({"relay": old.output}) == []

        exporter = exporter_of(new)
        new.kill()
        assert not has_ended(exporter)
        until(lambda: has_ended(exporter), "it goes with the last process")


def test_relays_count_as_the_log_does(postgres_database_url: str, postgres_engine: Engine, tmp_path: Path) -> None:
    def script(seq: int, attempt: int) -> int:
        return 503 if seq % 5 == 0 and attempt == 1 else 400 if seq % 7 == 0 else 200

    fill(postgres_database_url, [(f"u{n % 20}", moment(n)) for n in range(60)])
    port, more = metrics_at("relay")
    with serving_downstream(tmp_path / "arrivals.jsonl", script) as downstream:
        text = config_text(postgres_database_url, downstream.url, schedule=("100ms", "100ms"))
        with site(tmp_path, text + more) as place:
            relay = place.relay("--processes", "2")
            done = "open_delivery WHERE state <> 'dead'"
            until(lambda: not relay.runs or count(postgres_engine, done) == 0, "all is done")
            logged = facts(postgres_engine)
            kinds = Counter(fact["kind"] for fact in logged)

            def told() -> Samples | None:
                found = try_scrape(port) or {}
                facts_of = {kind: n for (kind, _), n in found.get("relay_facts_total", {}).items() if n}
                read = total(found, "relay_backlog_read_timestamp_seconds") > 0
                return found if facts_of == kinds and read else None

            found = until(told, "all of it is told") or {}
            attempts = {outcome: n for (outcome, _), n in found["relay_attempts_total"].items()}
            assert attempts["delivered"] == found["relay_delivery_seconds_count"]["everything",]
            assert sum(attempts.values()) == len(downstream.arrivals.lines())
            assert attempts["server_error"] == sum(f["detail"].get("error_class") == "server_error" for f in logged)
            assert found["relay_breaker"]["destination", "audit"] in {0, 2}
            assert set(found["relay_open_deliveries"]) >= {("everything", "ready"), ("everything", "dead")}
            assert relay.stop() == 0
            assert checkers.find_complaints(place.logs()) == []


@pytest.mark.parametrize("program", [COUNTS, SERVES], ids=["counts", "serves"])
def test_counting_and_serving_touch_no_file_or_folder(program: str) -> None:
    """No other user can prepare, fill or replace a file."""
    port = free_port()
    command = [sys.executable, "-c", WATCHES + program, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        until(lambda: try_scrape(port) is not None, "metrics are served")
        assert running.communicate("\n", timeout=20)[0] == ""
    assert running.returncode == 0


def identity(pid: int) -> dict[str, list[int]]:
    """Return the real, effective, saved and file system ids, and the supplementary groups."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: [int(each) for each in value.split()] for name, _, value in lines if name in {"Uid", "Gid", "Groups"}}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user takes part")
def test_the_exporter_has_no_more_rights_than_the_workers(sqlite_database_url: str, tmp_path: Path) -> None:
    """Root starts `gunicorn --user … --group …`; the exporter still reads the workers' counts."""
    port, more = metrics_at("receiver")
    folder = Path(tempfile.mkdtemp())  # pytest's own are root's alone
    try:
        shutil.copy(sqlite_database_url.removeprefix("sqlite:///"), folder / "inbox.db")
        for path in (folder, *folder.iterdir()):
            os.chown(path, STRANGER, STRANGER)
        with site(tmp_path, config_text(f"sqlite:///{folder}/inbox.db") + more) as place:
            started = (*GUNICORN, "--user", str(STRANGER), "--group", str(STRANGER))
            in_groups = (
                "import os, sys; os.setgroups([4, 27]); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
            )
            receiver, webhooks = place.receiver(1, ("-c", in_groups, *started), besides=1)
            assert identity(receiver.pid)["Groups"] == [4, 27]
            until(lambda: try_scrape(port), "metrics are served")
            assert identity(exporter_of(receiver)) == {"Uid": [STRANGER] * 4, "Gid": [STRANGER] * 4, "Groups": []}
            assert status_of(ask(webhooks, webhook())) == 200
            until(lambda: total(scrape(port), "inbox_received_total") == 1, "it is counted")
    finally:
        shutil.rmtree(folder)


# --- Traces of real processes in a collector of the test's own: one tree from the sender to the call, no wait for it


SENDER = "00-" + "5e" * 16 + "-" + "ab" * 8 + "-01"
INTAKE, ATTEMPT, CALL = "POST /webhooks/{source}", "process everything", "POST /"


def only_child(collector: Collector, parent: Span, name: str) -> Span:
    (only,) = (span for span in collector.spans if span.parent == parent.span_id)
    assert (only.name, only.trace_id) == (name, parent.trace_id)
    return only


def test_a_webhook_is_one_trace_and_a_collector_that_hangs_delays_nothing(
    sqlite_database_url: str, sqlite_engine: Engine, tmp_path: Path
) -> None:
    with collecting() as collector, serving(answer(200)) as downstream:
        config = config_text(sqlite_database_url, f"{downstream.url}/?secret=1")
        config += f'[logs]\nformat = "json"\n[traces]\nendpoint = "{collector.url}/v1/traces"\n'
        with site(tmp_path, config) as place:
            place.environment |= {"OTEL_BSP_SCHEDULE_DELAY": "50"}
            receiver, port = place.receiver(workers=1)
            relay = place.relay("--verbose")

            def post(payload: bytes, **headers: str) -> int:
                return post_json(port, f"{PATH}?a=1", payload, {**HEADERS, **headers})

            assert [post(body("u1"), traceparent=SENDER), post(body("u2")), post(b"{}")] == [200, 200, 422]
            for name, number in ((CALL, 2), (ATTEMPT, 2), (INTAKE, 3)):
                collector.wait_for(name, number)
            first, second, rejected = collector.find_named(INTAKE)
            assert (first.trace_id, first.parent) == ("5e" * 16, "ab" * 8)
            assert second.parent == rejected.parent == ""
            assert (rejected.attributes["inbox.cause"], bool(rejected.failed)) == ("invalid_event", False)
            stored = rows(sqlite_engine, "SELECT traceparent FROM inbox ORDER BY seq")
            for intake, row in zip((first, second), stored, strict=True):
                assert row["traceparent"][3:52] == f"{intake.trace_id}-{intake.span_id}"
                call = only_child(collector, only_child(collector, intake, ATTEMPT), CALL)
                assert (call.kind, call.service) == ("client", "inbox-relay")
                assert call.attributes["http.response.status_code"] == 200
                traceparent = f"00-{call.trace_id}-{call.span_id}-01"
                assert traceparent in [seen.headers["traceparent"] for seen in downstream.seen]
            assert not re.search(f"u1|u2|secret|{TOKEN}|a=1", repr(collector.spans))

            collector.hangs.set()
            assert [post(body(f"more{number}")) for number in range(40)] == [200] * 40
            until(lambda: count(sqlite_engine, "delivery_log WHERE kind = 'delivered'") == 42, "all is delivered")
            assert len(collector.asked) > 1
            assert [relay.stop(within=8), receiver.stop(within=8)] == [0, 0]
            lines = [json.loads(line) for program in (relay, receiver) for line in program.output.splitlines()]
            assert {line["level"] for line in lines} == {"INFO"}
            assert all(set(line) <= set(KEYS) for line in lines)
            logged = {line["seq"]: (line["trace_id"], line["span_id"]) for line in lines if "did" in line}
            assert {(span.trace_id, span.span_id) for span in collector.find_named(ATTEMPT)} <= set(logged.values())
            assert len(logged) == 42
