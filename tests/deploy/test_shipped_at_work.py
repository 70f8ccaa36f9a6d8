"""Configuration, units and health checks of deploy/, run for real: an event goes through, and a restart refuses nobody."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from relay.accounts import hash_password
from tests.deploy.fenced import Services, service_manager, services
from tests.deploy.shipped import READ, compose, configuration, image, pods, unit
from tests.helpers import checkers
from tests.helpers.processes import free_port, invoke, listens
from tests.helpers.scripted import answer, serving
from tests.helpers.waiting import until

pytestmark = pytest.mark.long

SECRETS = {
    "acme": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "crm": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    "database-password": "a-password",
    "web-users": f"anna:operator:{hash_password('a long password')}",
}


def configure(folder: Path, downstream: str, page: int) -> None:
    """Write deploy/inbox.toml and its secrets, with a SQLite file and this machine's addresses."""
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    for name, value in SECRETS.items():
        (secrets / name).write_text(value, encoding="utf-8")
    text = configuration(
        secrets,
        {
            "postgresql+psycopg://inbox@db/inbox": f"sqlite:///{folder}/state/inbox.db",
            f'password = "file:{secrets}/database-password"\n': "",
            'url = "https://crm.example.com/webhooks"': f'url = "{downstream}"\nallow_private = true\nallow_http = true',
            "https://relay.example.com": f"http://127.0.0.1:{page}",
        },
    )
    (folder / "inbox.toml").write_text(text, encoding="utf-8")
    (folder / "inbox.toml").chmod(0o600)


def is_healthy(at: Services, command: Sequence[str], port: str = "", real: int = 0) -> int:
    """Return the exit status of a health check, whose port is another one here."""
    first, *rest = (word.replace(f":{port}/", f":{real}/") if port else word for word in command)
    program = sys.executable if first == "python3" else str(Path(sys.executable).parent / first)
    environment = {"INBOX_CONFIG": str(at.folder / "inbox.toml")}
    done = subprocess.run([program, *rest], env=environment, capture_output=True, check=False, timeout=60)
    return done.returncode


def send(at: Services, port: int, entity: str) -> int:
    done = invoke(
        "inbox", "send", "acme", "--url", f"http://127.0.0.1:{port}", "--entity", f"USER/{entity}",
        INBOX_CONFIG=str(at.folder / "inbox.toml"),
    )  # fmt: skip
    return done.status


def test_each_program_reads_the_secrets_that_it_is_given_and_no_other(tmp_path: Path) -> None:
    """In containers. An intruder at the receiver, which the internet reaches, finds no key to other systems."""
    with services(tmp_path) as at:
        configure(tmp_path, "http://127.0.0.1:9", page := free_port())
        starts = {"receiver": ("--bind", f"127.0.0.1:{free_port()}"), "web": ("--bind", f"127.0.0.1:{page}")}
        for name in ("migrate", "receiver", "relay", "web"):
            for secret, value in SECRETS.items():
                (tmp_path / "secrets" / secret).unlink(missing_ok=True)
                if secret in READ[name]:
                    (tmp_path / "secrets" / secret).write_text(value, encoding="utf-8")
            program = at.start(name, *starts.get(name, ()))
            if name == "migrate":
                assert program.ends(60) == 0, program.output
            else:
                program.writes("started node" if name == "relay" else "Application startup complete", within=60)
                assert program.stop(60) == 0, program.output


def test_an_event_goes_through_what_is_shipped_and_a_restart_refuses_nobody(tmp_path: Path) -> None:
    page = free_port()
    with (
        serving(answer(204), answer(204)) as downstream,
        services(tmp_path) as at,
        service_manager(tmp_path / "notify") as manager,
        socket.create_server(("127.0.0.1", 0), backlog=64) as address,
    ):
        port = address.getsockname()[1]
        notify = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "FORWARDED_ALLOW_IPS": "10.244.0.0/16,172.31.80.2"}
        configure(tmp_path, downstream.url, page)
        assert at.start("migrate").ends(60) == 0
        receiver = at.start("receiver", passed=address, environment=notify)
        assert b"READY=1" in manager.recv(4096)
        relay = at.start("relay")
        web = at.start("web", "--bind", f"127.0.0.1:{page}", environment=notify)
        assert b"READY=1" in manager.recv(4096)

        assert send(at, port, "u1") == 0
        until(lambda: len(downstream.seen) == 1, "the event is delivered")
        services_of_compose = compose()["services"]
        check = services_of_compose["relay"]["healthcheck"]["test"][1:]
        assert is_healthy(at, image()["HEALTHCHECK"], "8000", port) == 0
        assert is_healthy(at, check) == 0
        assert is_healthy(at, services_of_compose["web"]["healthcheck"]["test"][1:], "8025", page) == 0
        assert check == pods()["relay"]["containers"][0]["readinessProbe"]["exec"]["command"]

        receiver.send(signal.SIGHUP)
        receiver.writes("Finished server process", within=60)
        until(lambda: is_healthy(at, image()["HEALTHCHECK"], "8000", port) == 0, "the new one is healthy")
        assert receiver.stop(int(unit("inbox-relay-receiver.service")["TimeoutStopSec"])) == 0
        with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as early:
            early.sendall(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            receiver = at.start("receiver", passed=address, environment=notify)
            early.settimeout(60)
            assert b" 200 " in early.recv(4096).splitlines()[0]
        assert send(at, port, "u2") == 0
        until(lambda: len(downstream.seen) == 2, "so is one after the restart")

        for name, program in (("relay", relay), ("web", web), ("receiver", receiver)):
            assert program.stop(int(unit(f"inbox-relay-{name}.service")["TimeoutStopSec"])) == 0, program.output
        assert is_healthy(at, check) == 1
        assert is_healthy(at, image()["HEALTHCHECK"], "8000", page) == 1
        assert not listens(page)
        assert checkers.complaints(at.logs()) == []
