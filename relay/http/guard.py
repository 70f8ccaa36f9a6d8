"""The outbound guard: resolves a name, checks every address, connects to a checked one, and cuts the call at its deadline.

A guard that checks only a URL's host can be bypassed: by a name server whose second response differs, by `http://127.1`,
or by IPv4 inside IPv6. So the check happens where the socket is opened, and again on the address of its peer.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Literal

import msgspec

from inbox.clock import steady
from inbox.errors import OutboundRefused
from inbox.observe.logs import fields, without_message

_log = logging.getLogger(__name__)

CutBy = Literal["deadline", "lease"]

_TICK = 0.05
"""Seconds between two checks, and thus the longest delay before a cut."""


class CutOffError(TimeoutError):
    """The call was cut while connecting."""


class RunningCall:
    """A running call: its deadline, lease and socket, and a flag for a sent request."""

    __slots__ = ("_lock", "_socket", "cut_by", "deadline", "lease", "sent")

    def __init__(self, deadline: float, lease: Callable[[], float]) -> None:
        self.deadline = deadline
        """The end of the call's own time, by `inbox.clock.steady`."""
        self.lease = lease
        """Returns the instant of that clock until which the lease is trusted. The instant may move. It must not raise."""
        self.sent = False
        self.cut_by: CutBy | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def remaining(self) -> float:
        """Return the seconds until the deadline.

        Raises:
            CutOffError: the deadline has passed, or the call was cut.
        """
        left = self.deadline - steady()
        if left <= 0 or self.cut_by is not None:
            raise CutOffError
        return left

    def attach(self, sock: socket.socket) -> None:
        """Attach the socket that a cut shuts down.

        Raises:
            CutOffError: the call has already been cut.
        """
        with self._lock:
            if self.cut_by is not None:
                raise CutOffError
            self._socket = sock

    def detach(self) -> CutBy | None:
        """Detach the socket, which is closed or goes to another call. Return the cause of the cut, if there was one."""
        with self._lock:
            self._socket = None
            return self.cut_by

    def revoke(self) -> None:
        """Cut the call as if its lease had ended."""
        self._cut("lease")

    def cut_if_due(self, now: float) -> None:
        """Shut the socket down when the deadline or the lease has passed. A socket attached later is refused."""
        if self.cut_by is None and now < self.deadline and now < self.lease():
            return
        self._cut("deadline" if now >= self.deadline else "lease")

    def _cut(self, by: CutBy) -> None:
        with self._lock:
            if self.cut_by is None:
                self.cut_by = by
            if self._socket is not None:
                with contextlib.suppress(OSError):  # closed or reset by the other side: the call has ended
                    # Not sock.shutdown(): on an SSLSocket it drops the TLS state while another thread reads from the socket.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Watchdog:
    """The thread that cuts calls. It starts with the first call, and starts anew in a process that is forked later."""

    def __init__(self) -> None:
        self._running: dict[RunningCall, None] = {}
        self._busy = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, running: RunningCall) -> None:
        """Watch a call until `forget`, and cut it when it is due."""
        self._running[running] = None
        if not self._busy.is_set():
            self._busy.set()
        if self._thread is None or not self._thread.is_alive():
            self._start()

    def forget(self, running: RunningCall) -> None:
        """Stop watching a call that has ended."""
        self._running.pop(running, None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            if not self._running:
                self._busy.clear()
                if not self._running:  # no call was added between the check and the clear
                    self._busy.wait()
            time.sleep(_TICK)
            now = steady()
            for running in list(self._running):
                try:
                    running.cut_if_due(now)
                except Exception as error:  # noqa: BLE001  # cut a call with an unknown lease, and keep watching the others
                    _log.error(
                        "bug in the watchdog, which continues", exc_info=without_message(error), extra=fields("bug")
                    )
                    running.revoke()


WATCHDOG = Watchdog()


# --- addresses


_SLICE = 0.1
"""Seconds between two checks for a cut while a name is being resolved."""
_RESOLVERS = 16
"""Maximum number of threads that a hanging name server can occupy."""

# The IANA special-purpose registries, and Svix's list (webhook_http_client.rs). `is_global` alone would let
# 64:ff9b::a9fe:a9fe, 2002:7f00:1::1, 224.0.0.1, fec0::1 and 192.0.0.8 pass.
_FORBIDDEN_4 = tuple(
    (ipaddress.IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this host"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a carrier's NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "the host of an Azure machine"),  # learn.microsoft.com: IP address 168.63.129.16
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "for documentation"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "for benchmarks"),
        ("198.51.100.0/24", "for documentation"),
        ("203.0.113.0/24", "for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
"""The range that IANA assigned as global unicast, which excludes loopback, unique-local, link-local, NAT64, multicast and
segment routing."""
_FORBIDDEN_6 = tuple(
    (ipaddress.IPv6Network(network), what)
    for network, what in (
        ("2001::/23", "Teredo or another protocol's own"),
        ("2001:db8::/32", "for documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "for documentation"),
    )
)


# ::ffff:0:0/96 is always read as IPv4. These embed an IPv4 address that a gateway on the way extracts:
# RFC 4291 §2.5.5.1, RFC 6052 §2.1, RFC 8215.
_HOLDS_IPV4 = tuple(ipaddress.IPv6Network(network) for network in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48"))

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Net = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressRules(msgspec.Struct, frozen=True):
    """The addresses that the calls of an endpoint may go to."""

    allow_private: bool = False
    allow: tuple[tuple[Net, ...], ...] = ()
    """Allow lists: an address must be in each."""
    block: tuple[Net, ...] = ()

    @property
    def forbids_nothing(self) -> bool:
        """True if the rules refuse no address, so that calls need no check."""
        return self.allow_private and not self.allow and not self.block


PUBLIC = AddressRules()
ANYWHERE = AddressRules(allow_private=True)


def find_refusal(address: str, rules: AddressRules = PUBLIC) -> str | None:
    """Return the reason why a call may not go to this IP address; None if it may."""
    given = ipaddress.ip_address(address)
    mapped = given.ipv4_mapped if isinstance(given, ipaddress.IPv6Address) else None
    ip = given if mapped is None else mapped
    if any(reading in network for reading in _readings(ip) for network in rules.block):
        return "in block_to"
    if not all(any(ip in network for network in networks) for networks in rules.allow):
        return "not in allow_to"
    what = None if rules.allow_private else _not_public(ip)
    return None if what is None else f"{what}; allow_private = true allows the call"


def _not_public(ip: Ip) -> str | None:
    if isinstance(ip, ipaddress.IPv4Address):
        return next((what for network, what in _FORBIDDEN_4 if ip in network), None)
    if ip not in _GLOBAL_6:
        return "not a public address"
    return next((what for network, what in _FORBIDDEN_6 if ip in network), None)


def _readings(ip: Ip) -> Iterator[Ip]:
    """Yield the address, and the addresses to which a gateway may translate it."""
    yield ip
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.sixtofour is not None:
            yield ip.sixtofour
        yield from ip.teredo or ()
        if any(ip in network for network in _HOLDS_IPV4):
            yield ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)


def parse_literal(host: str) -> str | None:
    """Return the address that a URL's host spells, in any form that some resolver accepts; None for a name.

    Examples are `127.1`, `2130706433`, `0x7f.1` and `017700000001`, which `inet_aton` accepts. Any of them may have a trailing dot.
    """
    bare = host.strip("[]").rstrip(".")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(bare))
    except (OSError, UnicodeError):
        return None


def is_canonical(host: str) -> bool:
    """Return True for an address in an unambiguous spelling: four decimal numbers, or IPv6."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


_PRIVATE_SUFFIXES = (".localhost", ".local", ".localdomain", ".internal", ".home.arpa")
"""Suffixes of RFC 6761, 6762 and 8375, and ICANN's for private use. Cloud providers use them for metadata services, too."""
_PRIVATE_NAMES = frozenset({"metadata.goog"})


def is_private_name(host: str) -> bool:
    """Return True if the name alone refers to this machine or a private network, or is invalid.

    It serves for names that a proxy resolves. A public name ends with a label that begins with a letter (RFC 1123 §2.1);
    some resolvers read `127.0.0.256` as an address.
    """
    name = host.rstrip(".").lower()
    ends_as_a_name = name.rpartition(".")[2][:1].isalpha()
    return "." not in name or not ends_as_a_name or name.endswith(_PRIVATE_SUFFIXES) or name in _PRIVATE_NAMES


def is_loopback_name(host: str) -> bool:
    """Return True for `localhost` and its subdomains, which no resolver may look up elsewhere (RFC 6761 §6.3)."""
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def connect(host: str, port: int, running: RunningCall, rules: AddressRules) -> socket.socket:
    """Connect to `host` within the time left to `running`, and attach the socket to that call.

    Raises:
        OutboundRefused: one of the host's addresses may not be called.
        OSError: the name can't be resolved, the connection fails, or the time is up.
    """
    addresses = _resolve(host, port, running)
    for _, address in addresses:
        _check(host, address[0], rules)
    failure = OSError(f"{host} has no address")
    for left, (family, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(running.remaining() / left)  # keeps an equal share of the time for each further address
            running.attach(sock)
            sock.connect(address)
            if not rules.forbids_nothing:
                _check(host, sock.getpeername()[0], rules)
            running.remaining()  # a socket that was cut while connecting may look connected
        except (OSError, OutboundRefused) as error:
            running.detach()
            sock.close()
            if isinstance(error, OutboundRefused):
                raise
            failure = error
        else:
            return sock
    raise failure


def _check(host: str, address: str, rules: AddressRules) -> None:
    reason = None if rules.forbids_nothing else find_refusal(address, rules)
    if reason is not None:
        raise OutboundRefused(f"{host} is at {address}, which is {reason}")


_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


_LOOKUPS = threading.BoundedSemaphore(_RESOLVERS)


def _resolve(host: str, port: int, running: RunningCall) -> list[_Address]:
    """Return the addresses of `host`, resolved in a separate thread because a hanging `getaddrinfo` can't be stopped.

    Raises:
        OSError: the name has no address, or the time is up.
    """
    while not _LOOKUPS.acquire(timeout=min(_SLICE, running.remaining())):
        pass
    answer: Future[list[_Address]] = Future()
    try:
        threading.Thread(target=_look_up, args=(host, port, answer), name="resolver", daemon=True).start()
    except RuntimeError:  # the system can't start another thread
        _LOOKUPS.release()
        raise
    while True:
        try:
            return answer.result(timeout=min(_SLICE, running.remaining()))
        except CutOffError:
            raise
        except TimeoutError:  # raised by the wait, or by the lookup itself
            if answer.done():
                return answer.result()


def _look_up(host: str, port: int, answer: Future[list[_Address]]) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        answer.set_result([(family, address) for family, _, _, _, address in found])  # type: ignore[misc]  # no int addresses without AF_PACKET
    except UnicodeError:  # an empty label, or one of more than 63 characters
        answer.set_exception(socket.gaierror(socket.EAI_NONAME, "not a host name"))
    except Exception as error:  # noqa: BLE001  # passed to the caller
        answer.set_exception(error)
    finally:
        _LOOKUPS.release()
