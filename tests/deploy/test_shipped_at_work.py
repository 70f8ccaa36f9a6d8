"""Configuration, commands and health checks of deploy/, run for real: an event goes through. Their fence has a test of its own."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from relay.accounts import hash_password
from tests.deploy.shipped import INSTALLED, READ, compose, configuration, image, pods, unit
from tests.helpers import checkers
from tests.helpers.processes import Program, Site, free_port, site
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.waiting import until

pytestmark = pytest.mark.nightly

BIN = Path(sys.executable).parent
SECRETS = {
    "acme": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "crm": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    "database-password": "a-password",
    "web-users": f"anna:operator:{hash_password('a long password')}",
}


@pytest.fixture
def downstream() -> Iterator[ScriptedServer]:
    with serving(answer(204)) as made:
        yield made


@pytest.fixture
def page() -> int:
    return free_port()


@pytest.fixture
def place(tmp_path: Path, downstream: ScriptedServer, page: int) -> Iterator[Site]:
    """A folder with deploy/inbox.toml and its secrets, with a SQLite file and this machine's addresses."""
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    for name, value in SECRETS.items():
        (secrets / name).write_text(value, encoding="utf-8")
    local = f'url = "{downstream.url}"\nallow_private = true\nallow_http = true'
    text = configuration(
        secrets,
        {
            "postgresql+psycopg://inbox@db/inbox": f"sqlite:///{tmp_path}/inbox.db",
            f'password = "file:{secrets}/database-password"\n': "",
            'url = "https://crm.example.com/webhooks"': local,
            "https://relay.example.com": f"http://127.0.0.1:{page}",
        },
    )
    with site(tmp_path, text) as made:
        (tmp_path / "inbox.toml").chmod(0o600)
        yield made


def start(place: Site, name: str, port: int | None = None) -> Program:
    """Run ExecStart of a unit, until it serves or has ended well."""
    first, *rest = shlex.split(unit(f"inbox-relay-{name}.service")["ExecStart"])
    bound = () if port is None else ("--bind", f"127.0.0.1:{port}")
    program = place.start(name, str(BIN / first.removeprefix(INSTALLED)), *rest, *bound)
    if name == "migrate":
        assert program.ends(60) == 0, program.output
    else:
        program.writes("started node" if name == "relay" else "Application startup complete", within=60)
    return program


def is_healthy(place: Site, command: Sequence[str], port: str = "", real: int = 0) -> int:
    """Return the exit status of a health check, whose port is another one here."""
    first, *rest = (word.replace(f":{port}/", f":{real}/") if port else word for word in command)
    program = sys.executable if first == "python3" else str(BIN / first)
    done = subprocess.run([program, *rest], env=place.environment, capture_output=True, check=False, timeout=60)
    return done.returncode


def test_each_program_reads_the_secrets_that_it_is_given_and_no_other(place: Site, page: int) -> None:
    """In containers. An intruder at the receiver, which the internet reaches, finds no key to other systems."""
    for name, port in (("migrate", None), ("receiver", free_port()), ("relay", None), ("web", page)):
        for secret, value in SECRETS.items():
            (place.folder / "secrets" / secret).unlink(missing_ok=True)
            if secret in READ[name]:
                (place.folder / "secrets" / secret).write_text(value, encoding="utf-8")
        program = start(place, name, port)
        assert name == "migrate" or program.stop(60) == 0, program.output


def test_an_event_goes_through_the_shipped_configuration_and_health_checks_tell_who_is_there(
    place: Site, downstream: ScriptedServer, page: int
) -> None:
    port = free_port()
    start(place, "migrate")
    programs = [start(place, "receiver", port), start(place, "relay"), start(place, "web", page)]
    url = f"http://127.0.0.1:{port}"
    assert place.invoke("inbox", "send", "acme", "--url", url, "--entity", "USER/u1").status == 0
    until(lambda: len(downstream.seen) == 1, "the event is delivered")
    services = compose()["services"]
    checks = [
        (image()["HEALTHCHECK"], "8000", port),
        (services["relay"]["healthcheck"]["test"][1:],),
        (services["web"]["healthcheck"]["test"][1:], "8025", page),
    ]
    assert [is_healthy(place, *check) for check in checks] == [0, 0, 0]
    assert checks[1][0] == pods()["relay"]["containers"][0]["readinessProbe"]["exec"]["command"]
    for program in programs:
        assert program.stop(60) == 0, program.output
    assert [is_healthy(place, *check) for check in checks[:2]] == [1, 1]
    assert checkers.find_complaints(place.logs()) == []
