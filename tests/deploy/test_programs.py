"""Programs of deploy/ with the shipped configuration, health checks and units, and under a real systemd."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from relay.accounts import hash_password
from tests.deploy.shipped import (
    GRACE,
    INSTALLED,
    READ,
    SYSTEMD,
    UNITS,
    boot,
    compose,
    configuration,
    image,
    pods,
    unit,
)
from tests.helpers import checkers
from tests.helpers.processes import Program, Site, free_port, site
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.waiting import until

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
    """Run ExecStart of a unit until it serves, or to its end with status 0."""
    first, *rest = shlex.split(unit(f"inbox-relay-{name}.service")["ExecStart"])
    bound = () if port is None else ("--bind", f"127.0.0.1:{port}")
    program = place.start(name, str(BIN / first.removeprefix(INSTALLED)), *rest, *bound)
    if name == "migrate":
        assert program.ends(60) == 0, program.output
    else:
        program.writes("started node" if name == "relay" else "Application startup complete", within=60)
    return program


def check_health(place: Site, command: Sequence[str], port: str = "", real: int = 0) -> int:
    """Return the exit status of a health check with the port replaced."""
    first, *rest = (word.replace(f":{port}/", f":{real}/") if port else word for word in command)
    program = sys.executable if first == "python3" else str(BIN / first)
    done = subprocess.run([program, *rest], env=place.environment, capture_output=True, check=False, timeout=60)
    return done.returncode


@pytest.mark.nightly
def test_a_program_runs_with_only_the_secrets_that_it_reads(place: Site, page: int) -> None:
    """In containers, an intruder in the receiver finds no key to other systems."""
    for name, port in (("migrate", None), ("receiver", free_port()), ("relay", None), ("web", page)):
        for secret, value in SECRETS.items():
            (place.folder / "secrets" / secret).unlink(missing_ok=True)
            if secret in READ[name]:
                (place.folder / "secrets" / secret).write_text(value, encoding="utf-8")
        program = start(place, name, port)
        assert name == "migrate" or program.stop(60) == 0, program.output


@pytest.mark.nightly
def test_the_shipped_configuration_delivers_an_event_and_health_checks_see_running_programs(
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
    assert [check_health(place, *check) for check in checks] == [0, 0, 0]
    assert checks[1][0] == pods()["relay"]["containers"][0]["readinessProbe"]["exec"]["command"]
    for program in programs:
        assert program.stop(60) == 0, program.output
    assert [check_health(place, *check) for check in checks[:2]] == [1, 1]
    assert checkers.find_complaints(place.logs()) == []


# --- The units under a real systemd, with their hardening


SERVICES = [f"inbox-relay-{name}.service" for name in ("receiver", "relay", "web")]
LOOP = '\n[sources.loop]\npreset = "standard-webhooks"\nsecrets = ["file:/etc/inbox-relay/secrets/crm"]\n'
"""The destination is the receiver itself, as the machine has no other host."""
ASK = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/health/ready', timeout=60).status)"


def _can_boot() -> bool:
    if os.geteuid() != 0 or not SYSTEMD.exists():
        return False
    apart = ["unshare", "--mount", "--pid", "--cgroup", "--net", "--fork"]
    tries = (
        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t cgroup2 cgroup2 /mnt/r && umount /mnt/r"
    )
    overlay = "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    return (
        subprocess.run([*apart, "sh", "-c", f"{tries} && {overlay}"], capture_output=True, check=False).returncode == 0
    )


needs_a_boot = pytest.mark.skipif(not _can_boot(), reason="no root, namespaces or systemd: the units are not booted")


def files() -> dict[str, str]:
    text = configuration(
        Path("/etc/inbox-relay/secrets"),
        {
            "postgresql+psycopg://inbox@db/inbox": "sqlite:////var/lib/inbox-relay/inbox.db",
            'password = "file:/etc/inbox-relay/secrets/database-password"\n': "",
            "https://crm.example.com/webhooks": "http://127.0.0.1:8000/webhooks/loop",
            'kind = "forward"': 'kind = "forward"\nallow_private = true\nallow_http = true',
        },
    )
    return {"inbox.toml": text + LOOP, **{f"secrets/{name}": secret for name, secret in SECRETS.items()}}


@pytest.mark.nightly
@needs_a_boot
def test_hardened_units_work_and_recover_from_mistakes_and_crashes(tmp_path: Path) -> None:
    with boot(tmp_path, files()) as machine:

        def restarts(name: str) -> int:
            return int(machine.shown(name, "NRestarts"))

        def is_active(name: str) -> bool:
            return machine.systemctl("is-active", name) == 0

        assert machine.systemctl("start", "inbox-relay-migrate") == 0, machine.logs()
        assert machine.systemctl("start", "inbox-relay-receiver.socket", *SERVICES) == 0, machine.logs()
        sent = machine.ours("inbox", "send", "acme", "--url", "http://127.0.0.1:8000", "--entity", "USER/u1")
        assert sent.returncode == 0, sent

        def came_back() -> bool:
            listed = machine.ours("inbox", "list", "--source", "loop", "--json").stdout
            return len(json.loads(listed or "[]")) == 1

        until(came_back, "the event is delivered", within=60)
        assert machine.ours("relay", "status", "--check", "--here").returncode == 0
        assert machine.systemctl("reload", *SERVICES) == 0

        machine.run("sh", "-c", "echo '[[[' >>/etc/inbox-relay/inbox.toml")
        assert machine.systemctl("restart", "inbox-relay-receiver") != 0
        asking = machine.begin("/opt/python/bin/python3", "-c", ASK)
        until(lambda: restarts(SERVICES[0]) >= 2, "the receiver is tried again", within=60)
        assert is_active("inbox-relay-receiver.socket")
        machine.run("sed", "-i", "$d", "/etc/inbox-relay/inbox.toml")
        assert asking.communicate(timeout=60)[0] == "200\n", "the request waited for the receiver"

        for name in SERVICES:
            before = restarts(name)
            assert machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", name) == 0
            until(lambda: restarts(name) > before and is_active(name), f"{name} is started again", within=60)
        for name in SERVICES:
            assert machine.systemctl("stop", name) == 0
            assert machine.shown(name, "Result") == "success", (name, unit(name)["TimeoutStopSec"])
        assert checkers.find_complaints(machine.logs()) == []


# --- The units are valid and hardened


NAMES = sorted(path.name for path in UNITS.glob("inbox-relay-*.*") if path.is_file())
UNIT_SERVICES = [name for name in NAMES if name.endswith(".service")]
MOST_EXPOSED = 15
"""Upper limit of `systemd-analyze security` times ten: a program with network access has 12, one without hardening 92."""
TARGETS = ("sysinit", "basic", "sockets", "shutdown", "network-online", "multi-user")

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: the units are not checked"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with the units, their programs and their targets."""
    root = tmp_path_factory.mktemp("root")
    units = root / "etc" / "systemd" / "system"
    shutil.copytree(UNITS, units)
    for target in TARGETS:
        (units / f"{target}.target").write_text("[Unit]\nDescription=of any machine\n", encoding="utf-8")
    for program in (f"{INSTALLED}inbox", f"{INSTALLED}relay", "/bin/kill"):
        path = root / program.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n", encoding="utf-8")
        path.chmod(0o755)
    return root


def analyze(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", f"--root={root}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@needs_systemd_analyze
def test_systemd_accepts_the_units(installed: Path) -> None:
    done = analyze(installed, "verify", "--man=no", *NAMES)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd_analyze
@pytest.mark.parametrize("name", UNIT_SERVICES)
def test_each_service_is_hardened(installed: Path, name: str) -> None:
    done = analyze(installed, "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", name)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_systemd_analyze
@pytest.mark.parametrize("program", GRACE)
def test_a_reload_is_a_sighup_and_only_mistakes_stop_restarts(program: str) -> None:
    """The receiver is restarted even after a mistake: otherwise, each connection to its socket would start it at once."""
    settings = unit(f"inbox-relay-{program}.service")
    assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (settings["Restart"], settings["StartLimitIntervalSec"]) == ("always", "0")
    assert settings.get("RestartPreventExitStatus") == (None if program == "receiver" else "2")


@needs_systemd_analyze
def test_no_service_waits_for_a_migration() -> None:
    """The receiver starts while the database is down; a failed migration at boot must not prevent that."""
    for name in NAMES:
        text = (UNITS / name).read_text(encoding="utf-8")
        assert name == "inbox-relay-migrate.service" or "inbox-relay-migrate" not in text, name
