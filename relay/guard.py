"""The outbound guard: a name is resolved, every address is checked, and the connection goes to one that was checked.

Checking a URL's host and leaving the connection to resolve it again is how guards are bypassed (a second answer of the
name server, `http://127.1`, IPv4 inside IPv6), so the check sits where the socket is opened, and once more on its peer.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from concurrent.futures import Future

from inbox.errors import OutboundRefused
from relay.watchdog import CutOffError, Exchange

_SLICE = 0.1
"""Seconds between two looks at whether the call was cut while its name is being resolved."""
_RESOLVERS = 16
"""A name server that hangs keeps at most so many threads."""

# The IANA special-purpose registries, and Svix's list (webhook_http_client.rs). `is_global` alone would let
# 64:ff9b::a9fe:a9fe, 2002:7f00:1::1, 224.0.0.1, fec0::1 and 192.0.0.8 pass.
_FORBIDDEN_4 = tuple(
    (ipaddress.IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this host"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a carrier's NAT"),
        ("127.0.0.0/8", "loopback"),
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
"""All that IANA has handed out as global unicast: loopback, unique-local, link-local, NAT64, multicast and segment
routing lie outside of it."""
_FORBIDDEN_6 = tuple(
    (ipaddress.IPv6Network(network), what)
    for network, what in (
        ("2001::/23", "Teredo or another protocol's own"),
        ("2001:db8::/32", "for documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "for documentation"),
    )
)


def refusal(address: str) -> str | None:
    """Why a call may not go to this IP address; None when it may."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            if ip not in _GLOBAL_6:
                return "not a public address"
            return next((what for network, what in _FORBIDDEN_6 if ip in network), None)
        ip = ip.ipv4_mapped
    return next((what for network, what in _FORBIDDEN_4 if ip in network), None)


def connect(host: str, port: int, exchange: Exchange, *, allow_private: bool) -> socket.socket:
    """A socket connected to `host`, within the time of `exchange`, which holds it.

    Raises:
        OutboundRefused: one of the host's addresses may not be called.
        OSError: not resolved, not connected, or out of time.
    """
    addresses = _RESOLVER.resolve(host, port, exchange)
    if not allow_private:
        for _, address in addresses:
            _check(host, address[0])
    failure = OSError(f"{host} has no address")
    for left, (family, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(exchange.remaining() / left)  # the next address gets its share of the time
            exchange.hold(sock)
            sock.connect(address)
            if not allow_private:
                _check(host, sock.getpeername()[0])
            exchange.remaining()  # a socket that was shut while it was connecting may look connected
        except (OSError, OutboundRefused) as error:
            exchange.let_go()
            sock.close()
            if isinstance(error, OutboundRefused):
                raise
            failure = error
        else:
            return sock
    raise failure


def _check(host: str, address: str) -> None:
    reason = refusal(address)
    if reason is not None:
        raise OutboundRefused(f"{host} is at {address}, which is {reason}; allow_private = true lets the call out")


_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


class _Resolver:
    """Resolves names in threads of its own, since nothing can end a `getaddrinfo` that hangs."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[str, int, Future[list[_Address]]]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open = 0
        self._lock = threading.Lock()

    def resolve(self, host: str, port: int, exchange: Exchange) -> list[_Address]:
        """The addresses of `host`.

        Raises:
            OSError: the name has none, or the time is over.
        """
        answer: Future[list[_Address]] = Future()
        with self._lock:
            self._open += 1
            self._threads = [thread for thread in self._threads if thread.is_alive()]  # none of them is, after a fork
            if self._open > len(self._threads) and len(self._threads) < _RESOLVERS:
                thread = threading.Thread(target=self._run, name="resolver", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._asked.put((host, port, answer))
        while True:
            try:
                return answer.result(timeout=min(_SLICE, exchange.remaining()))
            except CutOffError:
                raise
            except TimeoutError:  # the wait's, or the lookup's own
                if answer.done():
                    return answer.result()

    def _run(self) -> None:
        while True:
            host, port, answer = self._asked.get()
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                answer.set_result([(family, address) for family, _, _, _, address in found])  # type: ignore[misc]  # no int addresses without AF_PACKET
            except UnicodeError:  # an empty label, or one of more than 63 characters
                answer.set_exception(socket.gaierror(socket.EAI_NONAME, "not a host name"))
            except Exception as error:  # noqa: BLE001  # it is the caller's, and no reason for this thread to end
                answer.set_exception(error)
            with self._lock:
                self._open -= 1


_RESOLVER = _Resolver()
