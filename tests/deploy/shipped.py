"""Readers of the files below deploy/, and a systemd that runs the units in namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.docs.pages import ROOT
from tests.helpers.waiting import until

DEPLOY = ROOT / "deploy"
UNITS = DEPLOY / "systemd"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
INSTALLED = "/opt/inbox-relay/bin/"
GRACE = {"receiver": 15, "relay": 20, "web": 10}
"""Seconds that a stopping program gives its running requests or calls."""

READ: Mapping[str, set[str]] = {
    "migrate": {"database-password"},
    "receiver": {"database-password", "acme"},
    "relay": {"database-password", "crm"},
    "web": {"database-password", "web-users"},
    "check": {"database-password", "acme", "crm", "web-users"},
}
"""The secrets of deploy/inbox.toml that each program reads."""


def unit(name: str) -> Mapping[str, str]:
    """Return the settings of a unit; the last value of a repeated one."""
    text = (UNITS / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def image() -> Mapping[str, list[str]]:
    """Return the commands of the image: `CMD`, and `HEALTHCHECK` without its options."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^(CMD|HEALTHCHECK)\b.*?(\[.*\])$", text, re.MULTILINE)
    return {name: json.loads(command) for name, command in found}


def compose() -> dict[str, Any]:
    """Return the Compose file."""
    made: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return made


def manifests() -> Iterator[dict[str, Any]]:
    """Yield the Kubernetes objects."""
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def pods() -> dict[str, dict[str, Any]]:
    """Map each component to its pod."""
    return {
        made["metadata"]["labels"]["app.kubernetes.io/component"]: made["spec"]["template"]["spec"]
        for made in manifests()
        if made["kind"] in {"Deployment", "Job"}
    }


def configuration(secrets: Path, changes: Mapping[str, str]) -> str:
    """Return deploy/inbox.toml with its secrets in another folder, and these changes."""
    text = (DEPLOY / "inbox.toml").read_text(encoding="utf-8")
    for old, new in {"/etc/inbox-relay/secrets": str(secrets), **changes}.items():
        assert old in text, f"deploy/inbox.toml has no {old!r}"
        text = text.replace(old, new)
    return text


# --- A systemd in namespaces with the units of deploy/, on a discarded overlay of this machine's files


SYSTEMD = Path("/usr/lib/systemd/systemd")
_APART = ["--mount", "--pid", "--cgroup", "--net", "--ipc", "--uts"]
_BOOT = """
set -eu
ip link set lo up
mount --make-rprivate /
mount -t tmpfs tmpfs "$PLACE"
cd "$PLACE"
mkdir up work root
mount -t overlay overlay -o lowerdir=/,upperdir="$PLACE/up",workdir="$PLACE/work" root
for folder in run tmp dev etc/systemd/system usr/lib/systemd/system usr/lib/systemd/system-generators; do
  mkdir -p root/$folder
  mount -t tmpfs tmpfs root/$folder
done
mount -t proc proc root/proc
mount -t sysfs sysfs root/sys
mkdir -p root/dev/shm root/dev/pts root/opt/python root/opt/packages root/opt/code root/opt/inbox-relay/bin root/old
mount -t cgroup2 cgroup2 root/sys/fs/cgroup
for device in null zero full random urandom tty; do
  touch root/dev/$device
  mount --bind /dev/$device root/dev/$device
done
mount -t devpts devpts root/dev/pts
ln -s /proc/self/fd root/dev/fd
ln -s pts/ptmx root/dev/ptmx
mount --bind "$PYTHON" root/opt/python
mount --bind "$PACKAGES" root/opt/packages
mount --bind "$CODE" root/opt/code
echo inbox-relay:x:64999:64999::/var/lib/inbox-relay:/usr/sbin/nologin >>root/etc/passwd
echo inbox-relay:x:64999: >>root/etc/group
cp -r "$ETC/." root/etc/
cp -r "$ETC/bin/." root/opt/inbox-relay/bin/
chown -R 0:64999 root/etc/inbox-relay
chmod -R u=rwX,g=rX,o= root/etc/inbox-relay
cd root
pivot_root . old
umount -l old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin "$SYSTEMD" --system --unit=up.target
"""
_PROGRAM = """#!/bin/sh
export PYTHONPATH=/opt/code:/opt/packages LD_LIBRARY_PATH=/opt/python/lib
exec /opt/python/bin/{python} -P -c 'from relay.cli.{module} import main; main()' "$@"
"""
_TARGETS = ("up", "sysinit", "basic", "sockets", "shutdown", "network-online", "multi-user")
_LOGS = "[Service]\nStandardOutput=append:/run/%N.log\n"


class Booted:
    """The booted machine, where commands run as root."""

    def __init__(self, pid: int) -> None:
        self._enter = ["nsenter", f"--target={pid}", *_APART, "--root", "--wd=/", "env", "-i", "PATH=/usr/bin:/bin"]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._enter, *command], capture_output=True, text=True, check=False, timeout=120)

    def begin(self, *command: str) -> subprocess.Popen[str]:
        """Start a command and return its process."""
        return subprocess.Popen([*self._enter, *command], stdout=subprocess.PIPE, text=True)

    def systemctl(self, *words: str) -> int:
        """Run `systemctl` and return its exit status."""
        return self.run("systemctl", "--quiet", *words).returncode

    def shown(self, unit: str, key: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={key}", unit).stdout.strip()

    def ours(self, side: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `inbox` or `relay` as the programs' user."""
        return self.run(
            "setpriv", "--reuid=64999", "--regid=64999", "--clear-groups",
            "env", "INBOX_CONFIG=/etc/inbox-relay/inbox.toml", f"/opt/inbox-relay/bin/{side}", *words,
        )  # fmt: skip

    def logs(self) -> dict[str, str]:
        """Return the output of each service."""
        names = self.run("sh", "-c", "ls /run/inbox-relay-*.log").stdout.split()
        return {Path(name).name: self.run("cat", name).stdout for name in names}


def _write_etc(folder: Path, files: dict[str, str]) -> None:
    """Write the machine's files below /etc and in /opt/inbox-relay/bin."""
    units = folder / "systemd" / "system"
    shutil.copytree(UNITS, units)
    (units / "inbox-relay-.service.d" / "logs.conf").write_text(_LOGS, encoding="utf-8")
    for target in _TARGETS:
        (units / f"{target}.target").write_text("[Unit]\nDescription=of any machine\n", encoding="utf-8")
    python = Path(sys.executable).resolve().name
    for name, text in files.items():
        (folder / "inbox-relay" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "inbox-relay" / name).write_text(text, encoding="utf-8")
    (folder / "bin").mkdir()
    for side in ("inbox", "relay"):
        program = folder / "bin" / side
        program.write_text(
            _PROGRAM.format(python=python, module="inbox" if side == "inbox" else "main"), encoding="utf-8"
        )
        program.chmod(0o755)


@contextlib.contextmanager
def boot(folder: Path, files: dict[str, str]) -> Iterator[Booted]:
    """Boot a machine with the units and with these files in /etc/inbox-relay."""
    _write_etc(folder / "etc", files)
    (folder / "place").mkdir()
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PLACE": str(folder / "place"),
        "ETC": str(folder / "etc"),
        "PYTHON": sys.base_prefix,
        "PACKAGES": sysconfig.get_path("purelib"),
        "CODE": str(ROOT),
        "SYSTEMD": str(SYSTEMD),
    }
    command = ["unshare", *_APART, "--fork", "--kill-child", "sh", "-c", _BOOT]
    with (folder / "boot.log").open("wb") as log:
        machine = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:

        def up() -> Booted | None:
            assert machine.poll() is None, (folder / "boot.log").read_text(encoding="utf-8")
            children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text(encoding="utf-8").split()
            made = Booted(int(children[0])) if children else None
            return made if made and made.systemctl("is-active", "up.target") == 0 else None

        made = until(up, "systemd is up", within=60)
        assert made is not None
        yield made
    finally:
        os.kill(machine.pid, signal.SIGKILL)
        machine.wait()
