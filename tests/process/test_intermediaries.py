"""The receiver behind the proxies of docs/how-to/deploy.md, and both sides behind PgBouncer.

No event is lost, changed or let through. No proxy logs a secret, or answers 2xx for an event that is not stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from inbox.db import engine as engines
from inbox.db import guarantees, migrate
from inbox.db.engine import PINNED
from inbox.errors import UnfitDatabase
from relay.store.database import Database
from tests.helpers import checkers
from tests.helpers.agreement import facts_agree
from tests.helpers.databases import HOSTILE, connect_postgres, read_pinned, set_otherwise
from tests.helpers.processes import free_port, site
from tests.helpers.proxies import PROXIES, Deployment, Ports, connect_tls, deployment, proxy, receive, run_pooler
from tests.helpers.receiver import CLOSE, HOST, JSON, SECRET, Answer, answers, as_chunks, ask, chunk, request, webhook
from tests.helpers.scripted import CERTIFICATE, hang, raw, reset, then_close
from tests.helpers.scripted import serving as serve_script
from tests.helpers.tables import count, facts, open_states, read_inbox, rows
from tests.helpers.traffic import Sender, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import TOKEN, body, config_text, moment

pytestmark = pytest.mark.long

FORGED = b"X-Forwarded-For: 9.9.9.9"
PLANTED = b"pl4nted-s3cret"
"""The secret, in every place where a sender may put one."""
SOURCES = f"""
[sources.guarded]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = ["{TOKEN}"] }}
allow_from = ["127.0.0.2/32", "9.9.9.9"]
[sources.chat]
preset = "trivore"
auth = {{ kind = "url_token", secrets = [{json.dumps(PLANTED.decode())}] }}
"""
TARGET = b"/webhooks/chat/" + PLANTED
SHOWN = (
    b"X-Webhook-Token: " + PLANTED,
    b"X-Gitlab-Token: " + PLANTED,
    b"Authorization: Bearer " + PLANTED,
    b"Webhook-Signature: v1," + PLANTED,
    b"Cookie: session=" + PLANTED,
    b"Referer: https://localhost/webhooks/chat/" + PLANTED,
)
_STATUS = re.compile(rb"^HTTP/1\.[01] ([0-9]{3}) ", re.MULTILINE)
_SEQ = re.compile(rb'"seq":([0-9]+)')
OTHER_HOSTS = (
    b"other.example.com",
    b"localhost.localdomain",
    b"127.0.0.1",
    b"localhost.",
    b"localhost:1",
    b"LOCALHOST",
)


@pytest.fixture(scope="module", params=PROXIES)
def deployed(
    request: pytest.FixtureRequest, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("proxy")
    with deployment(request.param, folder, config_text(module_database_url) + SOURCES) as made:
        yield made


def read_body(engine: Engine, answer: Answer) -> bytes:
    """Return the stored body of an acknowledged event."""
    (row,) = rows(engine, "SELECT body FROM inbox_payload WHERE seq = :seq", seq=answer.seq)
    return bytes(row["body"])


def test_a_webhook_gets_through_byte_for_byte(deployed: Deployment, module_engine: Engine) -> None:
    plain = b" " + body("byte-for-byte", moment(deployed.ports.tls), name="\u00e4\u20ac").replace(
        b"}", b'\t, "x": "\xc3\xa4" }\n'
    )
    large = body("large", moment(deployed.ports.tls), more="x" * 200_000)
    for sent, expected in (
        (webhook(payload=plain), plain),
        (webhook(payload=large), large),
        (
            as_chunks(chunk(body("chunks", moment(deployed.ports.tls))), b"0\r\n\r\n"),
            body("chunks", moment(deployed.ports.tls)),
        ),
    ):
        (answer,) = deployed.send(sent)
        assert (answer.status, b'"accepted"' in answer.body) == (200, True)
        assert read_body(module_engine, answer) == expected


def test_a_head_that_drips_is_ended_by_the_proxy(deployed: Deployment) -> None:
    with deployed.connect() as sender:
        sender.settimeout(0.05)
        drops = iter(webhook() * 3)

        def is_ended() -> bool:
            try:
                sender.sendall(bytes([next(drops)]))
                answer = sender.recv(65536)
            except TimeoutError:
                return False
            except (ConnectionError, ssl.SSLError):
                return True
            return not answer or b" 408 " in answer

        until(is_ended, "the proxy ends it", poll=0)


def test_a_path_that_is_not_the_receivers_does_not_reach_it(deployed: Deployment) -> None:
    for path in (b"/health/ready", b"/", b"/metrics"):
        (answer,) = deployed.send(request(HOST, CLOSE, line=b"GET " + path + b" HTTP/1.1"))
        assert answer.status == 404


def test_only_the_proxys_address_of_the_sender_is_believed(deployed: Deployment, module_engine: Engine) -> None:
    refused = webhook(FORGED, without=(SECRET,))
    known = count(module_engine, "rejected_request")
    (answer,) = deployed.send(refused, address="127.0.0.2")
    assert answer.status == 401
    with socket.create_connection(
        ("127.0.0.1", deployed.ports.receiver), source_address=("127.0.0.3", 0), timeout=10
    ) as sender:
        sender.sendall(refused)
        sender.recv(65536)

    until(lambda: count(module_engine, "rejected_request") == known + 2, "both are kept")
    kept = rows(module_engine, "SELECT remote_address FROM rejected_request ORDER BY id DESC LIMIT 2")
    assert [row["remote_address"] for row in kept] == ["127.0.0.3", "127.0.0.2"]


def test_forged_headers_do_not_pass_a_list_of_addresses(deployed: Deployment) -> None:
    """The sender has the secret and knows the listed addresses."""
    line = b"POST /webhooks/guarded HTTP/1.1"
    for fields in ((), (FORGED,), (FORGED, FORGED), (b"Forwarded: for=9.9.9.9",), (b"X-Real-IP: 9.9.9.9",)):
        (elsewhere,) = deployed.send(webhook(*fields, line=line), address="127.0.0.3")
        (listed,) = deployed.send(webhook(*fields, line=line), address="127.0.0.2")
        assert (elsewhere.status, listed.status) == (401, 200), fields


def test_a_restart_of_the_receiver_shows_as_502_or_503_and_loses_no_200(
    deployed: Deployment, module_engine: Engine
) -> None:
    found: list[Answer] = []

    def statuses() -> list[int]:
        """Send another new event and return the status."""
        found.extend(deployed.send(webhook(payload=body(f"restart-{len(found)}", moment(deployed.ports.tls)))))
        return [found[-1].status]

    assert statuses() == [200]
    (program,) = (each for each in deployed.place._programs if each.runs)
    program.send(signal.SIGTERM)
    until(lambda: statuses() != [200], "it is gone")
    program.ends()
    assert statuses() in ([502], [503])
    deployed.start()
    until(lambda: statuses() == [200], "it is back")
    assert {answer.status for answer in found} <= {200, 502, 503}
    for answer in found:
        assert answer.status != 200 or read_body(module_engine, answer)
    assert [a.status for a in answers(ask(deployed.ports.receiver, webhook()))] == [200]


def test_a_receiver_whose_host_takes_no_connection_costs_no_webhook(sqlite_database_url: str, tmp_path: Path) -> None:
    """A frozen host drops connections, like a socket whose accept queue is full."""
    impatient = {"proxy_connect_timeout 5s": "proxy_connect_timeout 1s"}
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as frozen,
        contextlib.ExitStack() as queue,
        site(tmp_path, config_text(sqlite_database_url)) as place,
    ):
        address = frozen.getsockname()
        with contextlib.suppress(TimeoutError):
            while True:
                queue.enter_context(socket.create_connection(address, timeout=0.5))
        ports = Ports(free_port(), free_port(), free_port(), second=address[1])
        place.receiver(workers=1, port=ports.receiver)
        with proxy("nginx", tmp_path, ports, impatient):
            for number in range(4):
                with connect_tls(ports.tls) as sender:
                    sender.sendall(webhook(payload=body("frozen", moment(number))))
                    (answer,) = answers(receive(sender))
                    assert (answer.status, b'"accepted"' in answer.body) == (200, True)


# --- secrets, and other hosts


def sent(
    *more: bytes, method: bytes = b"POST", target: bytes = TARGET, host: bytes = b"localhost", payload: bytes = b"{}"
) -> bytes:
    """Make a request with the secret in every possible place."""
    fields = (b"Host: " + host, JSON, CLOSE, *SHOWN, *more, b"Content-Length: %d" % len(payload))
    return request(*fields, line=method + b" " + target + b" HTTP/1.1", payload=payload)


def new_event(number: int) -> bytes:
    """Make the body of a new event."""
    return body("planted", moment(number))


def make_hostile() -> Iterator[tuple[str, bytes]]:
    """Yield requests of every kind that a proxy may log."""
    large = b'"' + b"x" * 300_000 + b'"'
    line = b"POST " + TARGET + b" HTTP/1.1"
    heads = (HOST, JSON, CLOSE, *SHOWN)
    yield "a good one", sent(payload=new_event(0))
    yield "a query", sent(target=TARGET + b"?access_token=" + PLANTED, payload=new_event(1))
    yield "no JSON", sent(payload=b"{")
    yield "another source", sent(target=b"/webhooks/" + PLANTED)
    yield "a traversal", sent(target=TARGET + b"/../../.." + TARGET)
    yield "a whole URL", sent(target=b"http://localhost" + TARGET, payload=new_event(2))
    yield "a large body", sent(payload=large)
    yield (
        "a large chunk",
        request(*heads, b"Transfer-Encoding: chunked", line=line, payload=chunk(large) + b"0\r\n\r\n"),
    )
    yield "no chunk", request(*heads, b"Transfer-Encoding: chunked", line=line, payload=b"-5\r\n" + PLANTED)
    yield "two lengths", sent(b"Content-Length: 7")
    yield "a long URL", sent(target=TARGET + b"?" + b"x" * 40_000)
    yield "a long header", sent(b"X-Long: " + b"x" * 40_000)
    yield "many headers", sent(*(b"X-%d: %b" % (number, PLANTED) for number in range(2_000)))
    yield "a name with a NUL", sent(b"X-\x00: " + PLANTED)
    yield "an expectation", sent(b"Expect: " + PLANTED)
    yield "an upgrade", sent(b"Upgrade: " + PLANTED, b"Connection: upgrade")
    yield "an odd version", b"POST " + TARGET + b" HTTP/9.9\r\n\r\n"
    yield "HTTP/1.0", b"POST " + TARGET + b" HTTP/1.0\r\n\r\n"
    yield "no host", request(JSON, CLOSE, *SHOWN, line=line)
    yield "two hosts", request(HOST, b"Host: other", JSON, CLOSE, *SHOWN, line=line)
    for method in (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"post", b"FOO", b"\x00\xff"):
        yield f"method {method!r}", sent(method=method)
    for number, host in enumerate((*OTHER_HOSTS, b"", b"a b", b"[::1", b"%00", PLANTED, b"x" * 5_000)):
        yield f"host {host[:30]!r}", sent(host=host, payload=new_event(10 + number))


class Reply(NamedTuple):
    """The response on one connection; status 0 means none."""

    status: int
    seq: int


def reply(sender: socket.socket, data: bytes) -> Reply:
    """Send `data` and return the response once the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        sender.sendall(data)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while more := sender.recv(65536):
            found += more
    statuses = [int(each) for each in _STATUS.findall(found) if each != b"100"]
    seq = _SEQ.search(found)
    assert len(statuses) <= 1, found
    return Reply(statuses[0] if statuses else 0, int(seq[1]) if seq else 0)


def send_all(ports: Ports) -> dict[str, Reply]:
    """Send hostile requests with TLS, without TLS, by other names, and with incomplete heads and bodies."""
    found: dict[str, Reply] = {}
    for name, data in make_hostile():
        with connect_tls(ports.tls) as sender:
            found[name] = reply(sender, data)
    with connect_tls(ports.tls) as slow_head, connect_tls(ports.tls) as slow_body, connect_tls(ports.tls) as reset_one:
        reset_one.sendall(sent(payload=b"x" * 1000)[:-900])
        reset_one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        slow_head.sendall(sent()[:-10])
        slow_body.sendall(sent(payload=b"x" * 1000)[:-900])
        found["a slow head"], found["a slow body"] = reply(slow_head, b""), reply(slow_body, b"")
    for port in (ports.tls, ports.plain):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sender:
            found[f"plain HTTP on {'its own' if port == ports.plain else 'the other'} port"] = reply(
                sender, sent(payload=new_event(90))
            )
    for server_name in ("other.example.com", None):
        with contextlib.suppress(ssl.SSLError, ConnectionError), connect_tls(ports.tls, name=server_name) as sender:
            found[f"the TLS name {server_name}"] = reply(
                sender, sent(host=(server_name or "").encode(), payload=new_event(91))
            )
    return found


def find_leaks(folder: Path) -> dict[str, list[str]]:
    """Map each file with the secret, except the receiver's configuration, to its first such lines."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "inbox.toml":
            lines = [line for line in path.read_text("utf-8", "replace").splitlines() if PLANTED.decode() in line]
            if lines:
                found[path.name] = [line[:400] for line in lines[:5]]
    return found


def test_no_log_shows_a_secret_and_every_2xx_has_a_row(deployed: Deployment, module_engine: Engine) -> None:
    found = send_all(deployed.ports)
    assert found["a good one"].status == 200
    for name, given in found.items():
        if 200 <= given.status < 300:
            assert count(module_engine, "inbox WHERE seq = :seq", seq=given.seq) == 1, name
    assert find_leaks(deployed.place.folder) == {}


def test_another_host_gets_421_or_no_handshake(deployed: Deployment) -> None:
    for host in (b"other.example.com", b"127.0.0.1", b"localhost.localdomain"):
        with connect_tls(deployed.ports.tls) as sender:
            assert reply(sender, sent(host=host, payload=new_event(70))).status == 421, host
    with socket.create_connection(("127.0.0.1", deployed.ports.plain), timeout=10) as sender:
        assert reply(sender, sent(payload=new_event(71))).status == 421
    for server_name in ("other.example.com", None):
        with pytest.raises(ssl.SSLError), connect_tls(deployed.ports.tls, name=server_name):
            pass


def test_another_host_gets_no_2xx_over_http_2_either(deployed: Deployment, module_engine: Engine) -> None:
    """Caddy speaks HTTP/2 by default; nginx with the page's configuration does not."""
    known, versions = count(module_engine, "inbox"), set[str]()
    shown = {name.decode(): value.decode() for name, value in (field.split(b": ", 1) for field in (JSON, *SHOWN))}
    with httpx.Client(http2=True, verify=ssl.create_default_context(cafile=CERTIFICATE), trust_env=False) as client:
        for host, status in (("other.example.com", 421), ("localhost", 200)):
            url = f"https://localhost:{deployed.ports.tls}{TARGET.decode()}"
            answer = client.post(url, headers={**shown, "Host": host}, content=new_event(deployed.ports.tls))
            versions.add(answer.http_version)
            assert answer.status_code == status, host
    assert len(versions) == 1
    assert count(module_engine, "inbox") == known + 1
    assert find_leaks(deployed.place.folder) == {}


@pytest.mark.parametrize("name", PROXIES)
def test_no_log_shows_a_secret_whatever_the_receiver_answers_or_while_it_is_down(name: str, tmp_path: Path) -> None:
    long_head = then_close(raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"))
    with serve_script(reset, long_head) as receiver:
        ports = Ports(free_port(), free_port(), receiver.port)
        with proxy(name, tmp_path, ports):
            for _ in range(2):
                with connect_tls(ports.tls) as sender:
                    reply(sender, sent())
            receiver.close()
            found = send_all(ports)
    assert found["a good one"].status in {502, 503}
    assert {name: given for name, given in found.items() if 200 <= given.status < 400} == {}
    assert find_leaks(tmp_path) == {}


def test_no_log_of_nginx_shows_a_secret_of_a_request_that_it_refuses_by_itself(tmp_path: Path) -> None:
    strict = {"proxy_read_timeout 75s": "proxy_read_timeout 1s", "limit_conn senders 100": "limit_conn senders 1"}
    with serve_script(hang) as receiver:
        ports = Ports(free_port(), free_port(), receiver.port)
        with proxy("nginx", tmp_path, ports, strict), connect_tls(ports.tls) as late, connect_tls(ports.tls) as many:
            late.sendall(sent())
            assert receiver.arrived.acquire(timeout=10)
            assert [reply(many, sent()).status, reply(late, b"").status] == [503, 504]
    assert find_leaks(tmp_path) == {}
    log = (tmp_path / "access.log").read_text(encoding="utf-8")
    assert all(f" {status} upstream=" in log for status in (503, 504))


# --- Both sides through PgBouncer in transaction mode, with a server whose settings all differ


EVENTS = 400
RELAYS = 3
IN_TRANSACTIONS = "?pooler=transaction"


@pytest.fixture
def hostile(postgres_database_url: str) -> str:
    """A database with another value for every pinned setting."""
    set_otherwise(postgres_database_url)
    return postgres_database_url


@pytest.fixture
def through(hostile: str) -> Iterator[str]:
    """The URL through a pooler with one server connection, whose state each client inherits from the one before."""
    with run_pooler(hostile, {"default_pool_size": "1"}) as url:
        yield url


@pytest.fixture
def relays(through: str) -> Iterator[Engine]:
    made = engines.connect(through + IN_TRANSACTIONS, application="tests")
    yield made
    made.dispose()


def call_in_receiver(url: str, look: Callable[..., object]) -> object:
    """Call `look` in one transaction of a receiver's connection and return its result."""

    def look_in_transaction(connection: Connection) -> object:
        with engines.one_transaction(connection):
            return look(connection)

    async def _look() -> object:
        made = engines.connect_async(url, application="tests")
        async with made.connect() as connection:
            found = await connection.run_sync(look_in_transaction)
        await made.dispose()
        return found

    return asyncio.run(_look())


def test_webhooks_become_deliveries_through_it_with_several_relays(
    hostile: str, postgres_engine: Engine, tmp_path: Path
) -> None:
    engine = postgres_engine
    with (
        run_pooler(hostile) as url,
        serving(tmp_path / "arrivals.jsonl", seconds=0.01) as downstream,
        site(tmp_path, config_text(url + IN_TRANSACTIONS, downstream.url)) as place,
    ):
        _, port = place.receiver(workers=2)
        relays = place.relay("--processes", str(RELAYS))
        with Sender(tmp_path / "sends.jsonl", port, events(EVENTS), connections=8) as sender:
            until(lambda: sender.is_done, "all is acknowledged")
        until(lambda: len(downstream.arrivals) >= EVENTS and not open_states(engine), "all is delivered")
        verified = place.invoke("relay", "verify")
        assert verified.status == 0, verified.stderr
        assert relays.runs
        arrivals, sends, logs = downstream.arrivals.lines(), sender.sends.lines(), place.logs()

    assert sorted(line["seq"] for line in arrivals) == [line["seq"] for line in read_inbox(engine)]
    assert checkers.find_unstored(sends, read_inbox(engine)) == []
    assert checkers.find_out_of_order(arrivals, facts(engine)) == []
    assert checkers.find_complaints(logs, ("Traceback", "CRITICAL", "ERROR")) == []
    assert len({fact["relay_node"] for fact in facts(engine)}) > 1
    facts_agree(engine)


def test_a_transaction_has_the_pinned_settings_and_leaves_none_behind(through: str, relays: Engine) -> None:
    for _ in range(2):
        with relays.begin() as connection:
            assert read_pinned(connection) == PINNED
        assert call_in_receiver(through + IN_TRANSACTIONS, read_pinned) == PINNED
    with contextlib.closing(connect_postgres(through)) as stranger:
        for name, value in HOSTILE.items():
            assert stranger.execute(f"SHOW {name}".encode()).fetchone() == (value,)
    guarantees.require(relays)


def test_the_doctor_examines_everything_in_a_read_only_snapshot(through: str, relays: Engine, tmp_path: Path) -> None:
    with site(tmp_path, config_text(through + IN_TRANSACTIONS)) as place:
        document = json.loads(place.invoke("inbox", "doctor", "--json").stdout)
    assert {each["needs"] for each in document["examinations"]} == {None}
    looking = engines.connect_read_only(through + IN_TRANSACTIONS, application="inbox-doctor")
    with pytest.raises(DBAPIError, match="read-only"), looking.begin() as connection:
        connection.execute(text("DELETE FROM gate"))
    looking.dispose()
    with Database(relays).snapshot() as transaction:
        level = text("SELECT current_setting('transaction_isolation') || current_setting('transaction_read_only') AS s")
        assert [row.s for row in transaction.execute(level)] == ["repeatable readon"]
        streamed = transaction.stream(text("SELECT n FROM generate_series(1, 2500) n"), 100)
        assert [row.n for row in streamed] == list(range(1, 2501))


def test_a_migration_builds_an_index_concurrently_through_the_pooler(hostile: str) -> None:
    """The migrator needs three connections: its lock, the migration, and the check for blocking sessions."""
    with run_pooler(hostile, {"default_pool_size": "3"}) as url:
        made = engines.connect(url + IN_TRANSACTIONS, application="tests")
        assert migrate.upgrade(made).after == migrate.head()
        with made.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CREATE INDEX CONCURRENTLY ix_of_a_test ON inbox (event_id)"))
        with made.begin() as connection:
            assert guarantees.list_differences(connection) == []
        made.dispose()


def test_without_pooler_in_the_url_every_program_names_the_fix(through: str, tmp_path: Path) -> None:
    with site(tmp_path, config_text(through)) as place:
        listing = place.invoke("inbox", "list")
        relay, receiver = place.relay(), place.start_refused_receiver()
        assert [listing.status, relay.ends(), receiver.ends()] == [2, 2, 2]
        for output in (listing.stderr, relay.output, receiver.output):
            assert "add pooler=transaction to the url" in " ".join(output.split())


def test_a_pooler_that_drops_settings_is_refused_with_the_origin_of_each_value(hostile: str) -> None:
    with run_pooler(hostile, {"ignore_startup_parameters": ", ".join(["options", *PINNED])}) as url:
        made = engines.connect(url, application="tests")
        with pytest.raises(UnfitDatabase) as refused:
            guarantees.require(made)
        made.dispose()
        lines = str(refused.value).splitlines()
        assert call_in_receiver(url, guarantees.list_differences) == lines
    told = [line.partition(", not ")[0] for line in lines]
    assert "the database has transaction_isolation = repeatable read (set by: database)" in told
    assert "the database has synchronous_commit = off (set by: database)" in told
    assert all("add pooler=transaction to [database] url" in line for line in lines)
