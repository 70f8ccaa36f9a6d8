"""The receiver behind the proxies of docs/how-to/deploy.md, as configured there: nothing is lost, changed, or let through."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.helpers.processes import free_port, site
from tests.helpers.proxies import PROXIES, Deployment, Ports, connected, deployment, proxy, received
from tests.helpers.receiver import CLOSE, HOST, SECRET, Answer, answers, ask, chunk, chunked, request, webhook
from tests.helpers.tables import count, rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import TOKEN, body, config_text, moment

pytestmark = pytest.mark.long

FORGED = b"X-Forwarded-For: 9.9.9.9"
GUARDED = f"""
[sources.guarded]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = ["{TOKEN}"] }}
allow_from = ["127.0.0.2/32", "9.9.9.9"]
"""


@pytest.fixture(scope="module", params=PROXIES)
def deployed(
    request: pytest.FixtureRequest, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    with deployment(
        request.param, tmp_path_factory.mktemp("proxy"), config_text(module_database_url) + GUARDED
    ) as made:
        yield made


def stored(engine: Engine, answer: Answer) -> bytes:
    """The body of an event that was acknowledged."""
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
            chunked(chunk(body("chunks", moment(deployed.ports.tls))), b"0\r\n\r\n"),
            body("chunks", moment(deployed.ports.tls)),
        ),
    ):
        (answer,) = deployed.send(sent)
        assert (answer.status, b'"accepted"' in answer.body) == (200, True)
        assert stored(module_engine, answer) == expected


def test_a_head_that_drips_is_ended_by_the_proxy(deployed: Deployment) -> None:
    with deployed.connected() as sender:
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


def test_a_body_that_does_not_become_whole_does_not_reach_the_receiver(
    deployed: Deployment, module_engine: Engine
) -> None:
    known = count(module_engine, "rejected_request")
    with deployed.connected() as sender:
        sender.sendall(webhook()[:-1])
        assert [answer.status for answer in deployed.send(webhook(without=(SECRET,)))] == [401]
    assert [answer.status for answer in deployed.send(webhook(without=(SECRET,)))] == [401]
    until(lambda: count(module_engine, "rejected_request") >= known + 2, "the refusals are kept")
    assert count(module_engine, "rejected_request WHERE cause <> 'not_authenticated'") == 0


def test_what_is_no_path_of_the_receivers_does_not_reach_it(deployed: Deployment) -> None:
    for path in (b"/health/ready", b"/", b"/metrics"):
        (answer,) = deployed.send(request(HOST, CLOSE, line=b"GET " + path + b" HTTP/1.1"))
        assert answer.status == 404


def test_the_senders_address_arrives_and_is_believed_of_the_proxy_alone(
    deployed: Deployment, module_engine: Engine
) -> None:
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


def test_a_list_of_addresses_holds_whatever_a_sender_claims(deployed: Deployment) -> None:
    """A sender elsewhere, who has the secret and knows what is listed."""
    line = b"POST /webhooks/guarded HTTP/1.1"
    for fields in ((), (FORGED,), (FORGED, FORGED), (b"Forwarded: for=9.9.9.9",), (b"X-Real-IP: 9.9.9.9",)):
        (elsewhere,) = deployed.send(webhook(*fields, line=line), address="127.0.0.3")
        (listed,) = deployed.send(webhook(*fields, line=line), address="127.0.0.2")
        assert (elsewhere.status, listed.status) == (401, 200), fields


def test_while_the_receiver_restarts_it_is_502_or_503_and_no_200_is_lost(
    deployed: Deployment, module_engine: Engine
) -> None:
    found: list[Answer] = []

    def statuses() -> list[int]:
        """Of one more webhook, which is a new event."""
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
        assert answer.status != 200 or stored(module_engine, answer)
    assert [a.status for a in answers(ask(deployed.ports.receiver, webhook()))] == [200]


def test_a_receiver_whose_host_takes_no_connection_costs_no_webhook(sqlite_database_url: str, tmp_path: Path) -> None:
    """A frozen host drops what comes: its queue of connections is full here."""
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
                with connected(ports.tls) as sender:
                    sender.sendall(webhook(payload=body("frozen", moment(number))))
                    (answer,) = answers(received(sender))
                    assert (answer.status, b'"accepted"' in answer.body) == (200, True)
