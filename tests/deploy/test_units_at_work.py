"""The units of deploy/systemd under a real systemd, with all of their hardening: they work, and never give up."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.deploy.booted import SYSTEMD, booted
from tests.deploy.shipped import configuration, unit
from tests.deploy.test_shipped_at_work import SECRETS
from tests.helpers import checkers
from tests.helpers.waiting import until

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


pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not _can_boot(), reason="no root, namespaces or systemd: nobody boots deploy/systemd"),
]


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


def test_units_work_in_their_hardening_and_come_back_from_mistakes_and_crashes(tmp_path: Path) -> None:
    with booted(tmp_path, files()) as machine:

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
        assert asking.communicate(timeout=60)[0] == "200\n", "who came meanwhile waited"

        for name in SERVICES:
            before = restarts(name)
            assert machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", name) == 0
            until(lambda: restarts(name) > before and is_active(name), f"{name} is started again", within=60)
        for name in SERVICES:
            assert machine.systemctl("stop", name) == 0
            assert machine.shown(name, "Result") == "success", (name, unit(name)["TimeoutStopSec"])
        assert checkers.find_complaints(machine.logs()) == []
