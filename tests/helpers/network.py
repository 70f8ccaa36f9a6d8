"""Hosts of one network, each a network namespace of this machine, which can be unplugged and partitioned."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

WRITTEN = "10.0.0."
"""Network of the configurations in deploy/."""
_SWITCH = "switch"


def can_be_made() -> bool:
    """Return whether this machine allows network namespaces: only for root, and not in most containers."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"inbox-relay-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        _ip("netns", "del", name)
    return made


class Network:
    """A switch with hosts, and this machine as one more. Addresses end as in deploy/, in another network."""

    def __init__(self, hosts: Sequence[str]) -> None:
        number = os.getpid()
        self._prefix = f"198.18.{number % 250}."  # reserved for measurements: RFC 2544
        self._name = f"inbox-relay-{number}"
        self._port = f"ir{number}"
        self.hosts = {host: self.here(f"{WRITTEN}{11 + at}") for at, host in enumerate(hosts)}
        """Addresses by host."""

    def here(self, text: str) -> str:
        """Return the text with addresses of this network in place of those in deploy/."""
        return text.replace(WRITTEN, self._prefix)

    def make(self) -> None:
        """Create the namespaces and the links between them."""
        switch = self.namespace(_SWITCH)
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        _ip("link", "add", self._port, "type", "veth", "peer", "name", "machine", "netns", switch)
        _ip("address", "add", f"{self._prefix}1/24", "dev", self._port)
        _ip("link", "set", self._port, "up")
        _ip("-n", switch, "link", "set", "machine", "master", "bridge", "up")
        for host, address in self.hosts.items():
            inside = self.namespace(host)
            _ip("netns", "add", inside)
            _ip("-n", switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", inside)
            _ip("-n", switch, "link", "set", host, "master", "bridge", "up")
            _ip("-n", inside, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", inside, "link", "set", link, "up")

    def remove(self) -> None:
        """Remove the namespaces."""
        for name in (*self.hosts, _SWITCH):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self.namespace(name))

    def namespace(self, host: str) -> str:
        """Return the namespace of a host."""
        return f"{self._name}-{host}"

    def on(self, host: str, *command: object, user: str) -> list[str]:
        """Return a command line that runs a command on a host as a user."""
        as_user = ("setpriv", "--reuid", user, "--regid", user, "--clear-groups")
        return ["ip", "netns", "exec", self.namespace(host), *as_user, *map(str, command)]

    def pids(self, host: str) -> list[int]:
        """Return the pids of a host."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace(host)).split()]

    def unplug(self, host: str) -> None:
        """Disconnect a host without notice to its peers."""
        _ip("-n", self.namespace(_SWITCH), "link", "set", host, "down")

    def plug(self, host: str) -> None:
        """Reconnect a host."""
        _ip("-n", self.namespace(_SWITCH), "link", "set", host, "up")

    def part(self, host: str) -> None:
        """Partition a host from the other hosts; this machine still reaches it."""
        self._route("add", host)

    def join(self, host: str) -> None:
        """End a partition."""
        self._route("del", host)

    def _route(self, act: str, host: str) -> None:
        for other, address in self.hosts.items():
            if other != host:
                _ip("-n", self.namespace(host), "route", act, "blackhole", f"{address}/32")
                _ip("-n", self.namespace(other), "route", act, "blackhole", f"{self.hosts[host]}/32")


@contextlib.contextmanager
def network(hosts: Sequence[str]) -> Iterator[Network]:
    """Create a network for the block."""
    made = Network(hosts)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
