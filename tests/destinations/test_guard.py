"""The outbound guard: forbidden addresses in every spelling of a URL."""

from __future__ import annotations

import socket
import threading
import time
from unittest.mock import Mock

import msgspec
import pytest

from inbox.config.model import Endpoint
from inbox.config.values import Duration
from relay.http import guard
from relay.http.answer import Answer
from relay.http.client import HttpClient
from relay.http.guard import CutOffError, RunningCall
from relay.http.target import prepare
from tests.destinations.calling import GET, client_of, hanging_lookups, resolving_to
from tests.helpers.delivering import context
from tests.helpers.patience import Stopwatch
from tests.helpers.scripted import answer, serving

FORBIDDEN = [
    "0.0.0.0",  # noqa: S104  # nothing is bound to it
    "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1", "100::1", "2001::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::1", "3fff::1", "5f00::1", "fc00::1",
    "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
    # hosts of providers, which tell machines their credentials: Azure, Alibaba, Oracle, AWS, Google
    "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1",
    "100.63.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "223.255.255.255",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
]


def test_an_address_that_is_not_public_is_refused() -> None:
    assert [address for address in FORBIDDEN if guard.refusal(address) is None] == []
    assert [address for address in PUBLIC if guard.refusal(address) is not None] == []


def call(url: str, *, allow_private: bool = False) -> Answer:
    return client_of(url, timeout=Duration(30), allow_private=allow_private).call(GET, context())


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0x7f000001", "2130706433", "0", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_not_called_however_it_is_spelled(host: str) -> None:
    with serving(answer()) as server:
        # The start refuses such a url; the guard does so once more, whatever the start has seen.
        url, endpoint = f"http://{host}:{server.port}", Endpoint(allow_private=True, allow_http=True)
        client = HttpClient(msgspec.structs.replace(prepare(endpoint, url, "destinations.crm"), rules=guard.PUBLIC))
        result = client.call(GET, context())
        assert (result.error_class, result.call.sent) == ("refused", "not_sent")
        assert "allow_private = true lets the call out" in (result.call.error or "")
        assert server.seen == []


@pytest.mark.parametrize(
    "addresses", [("127.0.0.1", "1.1.1.1"), ("1.1.1.1", "127.0.0.1"), ("2606:4700::1111", "fe80::1")]
)
def test_one_forbidden_address_among_several_is_enough(
    addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to(*addresses))
    assert call("http://rebound.example").error_class == "refused"


def test_the_peer_is_checked_once_more_when_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("1.1.1.1"))
    original = socket.socket.connect
    with serving(answer()) as server:
        monkeypatch.setattr(socket.socket, "connect", lambda sock, _: original(sock, ("127.0.0.1", server.port)))
        assert call("http://public.example").error_class == "refused"
        assert server.seen == []


def test_the_name_is_resolved_once_and_the_checked_address_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(answer()) as server:
        lookups = Mock(side_effect=resolving_to("127.0.0.1"))
        monkeypatch.setattr(socket, "getaddrinfo", lookups)
        assert call(f"http://pinned.example:{server.port}", allow_private=True).error_class is None
        assert [made.args[0] for made in lookups.mock_calls] == ["pinned.example"]
        assert server.seen[0].headers["host"] == f"pinned.example:{server.port}"


def test_the_next_address_is_tried_when_the_first_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("::1", "127.0.0.1"))
    with serving(answer()) as server:
        assert call(f"http://dual.example:{server.port}", allow_private=True).error_class is None


def test_lookups_that_hang_keep_a_bounded_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_lookups(monkeypatch):
        deadline = time.monotonic() + 0.3
        threads = [threading.Thread(target=_resolve, args=(deadline,)) for _ in range(40)]
        with Stopwatch() as watch:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert watch.seconds < 1
        assert sum(thread.name == "resolver" for thread in threading.enumerate()) == 16


def _resolve(deadline: float) -> None:
    with pytest.raises(CutOffError):
        guard._resolve("slow.example", 80, RunningCall(deadline, lambda: float("inf")))
