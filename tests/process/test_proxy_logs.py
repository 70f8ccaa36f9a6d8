"""The proxies of docs/how-to/deploy.md write no secret of a sender anywhere, and nobody gets a 2xx for what is not stored."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import Engine

from tests.helpers.processes import free_port
from tests.helpers.proxies import PROXIES, Deployment, Ports, connected, deployment, proxy
from tests.helpers.receiver import CLOSE, HOST, JSON, chunk, request
from tests.helpers.scripted import Act, ScriptedServer, hang, raw, reset, serving, then_close
from tests.helpers.tables import count
from tests.helpers.waiting import until
from tests.helpers.webhooks import body, config_text, moment

pytestmark = pytest.mark.long

PLANTED = b"pl4nted-s3cret"
"""In every place where a sender may show a secret."""
SOURCES = f"""
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


def sent(
    *more: bytes, method: bytes = b"POST", target: bytes = TARGET, host: bytes = b"localhost", payload: bytes = b"{}"
) -> bytes:
    """A request that shows the secret wherever one can be."""
    fields = (b"Host: " + host, JSON, CLOSE, *SHOWN, *more, b"Content-Length: %d" % len(payload))
    return request(*fields, line=method + b" " + target + b" HTTP/1.1", payload=payload)


def new_event(number: int) -> bytes:
    """The body of a new event."""
    return body("planted", moment(number))


def hostile() -> Iterator[tuple[str, bytes]]:
    """Requests of every kind that a proxy may write a line about."""
    large = b'"' + b"x" * 300_000 + b'"'
    line = b"POST " + TARGET + b" HTTP/1.1"
    heads = (HOST, JSON, CLOSE, *SHOWN)
    yield "a good one", sent(payload=new_event(0))
    yield "a query", sent(target=TARGET + b"?access_token=" + PLANTED, payload=new_event(1))
    yield "no JSON", sent(payload=b"{")
    yield "another source", sent(target=b"/webhooks/" + PLANTED)
    yield "another path", sent(target=b"/" + PLANTED + b"/../" + PLANTED)
    yield "a traversal", sent(target=TARGET + b"/../../.." + TARGET)
    yield "an encoded path", sent(target=b"/webhooks/chat%2f" + PLANTED + b"%00")
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
    yield "no header", sent(b"no header at all " + PLANTED)
    yield "a name with a NUL", sent(b"X-\x00: " + PLANTED)
    yield "an underscore", sent(b"X_Webhook_Token: " + PLANTED)
    yield "an expectation", sent(b"Expect: " + PLANTED)
    yield "an upgrade", sent(b"Upgrade: " + PLANTED, b"Connection: upgrade")
    yield "no version", b"POST " + TARGET + b"\r\n\r\n"
    yield "an odd version", b"POST " + TARGET + b" HTTP/9.9\r\n\r\n"
    yield "HTTP/1.0", b"POST " + TARGET + b" HTTP/1.0\r\n\r\n"
    yield "HTTP/2 without TLS", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield "no host", request(JSON, CLOSE, *SHOWN, line=line)
    yield "two hosts", request(HOST, b"Host: other", JSON, CLOSE, *SHOWN, line=line)
    for method in (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"post", b"FOO", b"\x00\xff"):
        yield f"method {method!r}", sent(method=method)
    for number, host in enumerate((*OTHER_HOSTS, b"", b"a b", b"[::1", b"%00", PLANTED, b"x" * 5_000)):
        yield f"host {host[:30]!r}", sent(host=host, payload=new_event(10 + number))


class Reply(NamedTuple):
    """The answer that came back over one connection; status 0: there was none."""

    status: int
    seq: int


def reply(sender: socket.socket, data: bytes) -> Reply:
    """Send this; what has come back when the other side closes."""
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
    """Send everything there is: with TLS, without it, by other names, and heads and bodies that never become whole."""
    found: dict[str, Reply] = {}
    for name, data in hostile():
        with connected(ports.tls) as sender:
            found[name] = reply(sender, data)
    with connected(ports.tls) as slow_head, connected(ports.tls) as slow_body, connected(ports.tls) as reset_one:
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
        with contextlib.suppress(ssl.SSLError, ConnectionError), connected(ports.tls, name=server_name) as sender:
            found[f"the TLS name {server_name}"] = reply(
                sender, sent(host=(server_name or "").encode(), payload=new_event(91))
            )
    return found


def files_that_show_it(folder: Path) -> Mapping[str, Sequence[str]]:
    """Every file that has the secret, but for the receiver's configuration, with the lines."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "inbox.toml":
            lines = [line for line in path.read_text("utf-8", "replace").splitlines() if PLANTED.decode() in line]
            if lines:
                found[path.name] = [line[:400] for line in lines[:5]]
    return found


@pytest.fixture(scope="module", params=PROXIES)
def deployed(
    request: pytest.FixtureRequest, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    with deployment(
        request.param, tmp_path_factory.mktemp("proxy"), config_text(module_database_url) + SOURCES
    ) as made:
        yield made


def test_no_log_shows_a_secret_and_every_2xx_has_a_row(deployed: Deployment, module_engine: Engine) -> None:
    found = send_all(deployed.ports)
    assert found["a good one"].status == 200
    for name, given in found.items():
        if 200 <= given.status < 300:
            assert count(module_engine, "inbox WHERE seq = :seq", seq=given.seq) == 1, name
    assert files_that_show_it(deployed.place.folder) == {}


def test_another_host_gets_421_or_no_handshake(deployed: Deployment) -> None:
    for host in (b"other.example.com", b"127.0.0.1", b"localhost.localdomain"):
        with connected(deployed.ports.tls) as sender:
            assert reply(sender, sent(host=host, payload=new_event(70))).status == 421, host
    with socket.create_connection(("127.0.0.1", deployed.ports.plain), timeout=10) as sender:
        assert reply(sender, sent(payload=new_event(71))).status == 421
    for server_name in ("other.example.com", None):
        with pytest.raises(ssl.SSLError), connected(deployed.ports.tls, name=server_name):
            pass


def test_another_host_gets_no_2xx_over_http_2_either(deployed: Deployment, module_engine: Engine) -> None:
    """Caddy speaks it unasked; nginx by the page's configuration does not."""
    known, spoken = count(module_engine, "inbox"), False
    for host in (b"other.example.com", b"localhost.", b"localhost"):
        with connected(deployed.ports.tls, protocols=["h2", "http/1.1"]) as sender:
            spoken = sender.selected_alpn_protocol() == "h2"
            assert not spoken or over_http_2(sender, host) == (200 if host == b"localhost" else 0), host
    assert count(module_engine, "inbox") == known + spoken
    assert files_that_show_it(deployed.place.folder) == {}


def over_http_2(sender: ssl.SSLSocket, host: bytes) -> int:
    """200, or 0 for anything else: of the answer's HPACK no more is read than the first byte, 0x88 for `:status: 200`."""
    payload = new_event(80)
    pseudo = ((b":method", b"POST"), (b":scheme", b"https"), (b":path", TARGET), (b":authority", host))
    shown = tuple((name.lower(), value) for name, value in (field.split(b": ", 1) for field in (JSON, *SHOWN)))
    block = b"".join(b"\x00%c%b%c%b" % (len(name), name, len(value), value) for name, value in (*pseudo, *shown))
    sender.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, b"") + frame(1, block, 4, 1) + frame(0, payload, 1, 1)
    )
    found = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while more := sender.recv(65536):
            found += more
            left = found
            while len(left) >= 9 and len(left) >= 9 + int.from_bytes(left[:3], "big"):
                end = 9 + int.from_bytes(left[:3], "big")
                if left[3] in {1, 3, 7}:  # HEADERS, RST_STREAM, GOAWAY
                    return 200 if left[3] == 1 and left[9] == 0x88 else 0
                left = left[end:]
    return 0


def frame(kind: int, payload: bytes, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@pytest.mark.parametrize("name", PROXIES)
def test_no_log_shows_a_secret_while_the_receiver_is_down(name: str, tmp_path: Path) -> None:
    ports = Ports(free_port(), free_port(), free_port())
    with proxy(name, tmp_path, ports):
        found = send_all(ports)
    assert found["a good one"].status in {502, 503}
    assert {name: given for name, given in found.items() if 200 <= given.status < 400} == {}
    assert files_that_show_it(tmp_path) == {}


@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize(
    "act",
    [
        reset,
        then_close(raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")),
    ],
    ids=["resets", "a long head"],
)
def test_no_log_shows_a_secret_whatever_the_receiver_answers(name: str, act: Act, tmp_path: Path) -> None:
    with serving(act) as receiver:
        ports = Ports(free_port(), free_port(), receiver.port)
        with proxy(name, tmp_path, ports), connected(ports.tls) as sender:
            reply(sender, sent())
    assert files_that_show_it(tmp_path) == {}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"proxy_read_timeout 75s": "proxy_read_timeout 100ms"}, 504),
        ({"limit_conn senders 100": "limit_conn senders 1"}, 503),
    ],
    ids=["the receiver is late", "too many connections"],
)
def test_no_log_of_nginx_shows_a_secret_of_what_it_refuses_by_itself(
    changes: Mapping[str, str], status: int, tmp_path: Path
) -> None:
    with serving(hang) as receiver:
        ports = Ports(free_port(), free_port(), receiver.port)
        with proxy("nginx", tmp_path, ports, changes), connected(ports.tls) as other, connected(ports.tls) as sender:
            other.sendall(sent())
            assert receiver.arrived.acquire(timeout=10)
            assert reply(sender, sent()).status == status
    assert files_that_show_it(tmp_path) == {}
    assert f" {status} upstream=" in (tmp_path / "access.log").read_text(encoding="utf-8")


def test_no_log_of_nginx_shows_a_secret_when_its_connections_run_out(tmp_path: Path) -> None:
    """It logs that as an alert, which is above `crit`, and with the URL if it wants a connection to the receiver."""
    with serving(hang) as receiver, contextlib.ExitStack() as held:
        ports = Ports(free_port(), free_port(), receiver.port)
        few = {"worker_processes auto": "worker_processes 1", "worker_connections 4096": "worker_connections 8"}
        held.enter_context(proxy("nginx", tmp_path, ports, few))
        senders = (held.enter_context(connected(ports.tls)) for _ in range(8))
        assert any(refused(sender, receiver) for sender in senders)
    assert files_that_show_it(tmp_path) == {}


def refused(sender: ssl.SSLSocket, receiver: ScriptedServer) -> bool:
    """Send one; whether nginx answers it by itself, or else the request has reached the receiver."""
    sender.sendall(sent())
    sender.setblocking(False)

    def decided() -> bytes | bool:
        try:
            return sender.recv(65536)
        except ssl.SSLWantReadError:
            return receiver.arrived.acquire(blocking=False)

    answer = until(decided, "nginx has decided")
    return isinstance(answer, bytes) and answer.startswith(b"HTTP/1.1 500 ")
