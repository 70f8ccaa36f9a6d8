"""The outbound guard: forbidden addresses in every spelling, and lists of networks."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from random import Random
from unittest.mock import Mock

import msgspec
import pytest

from inbox.config.model import Endpoint, ForwardDestination
from inbox.config.values import Duration
from inbox.errors import ConfigError
from inbox.loader.load import parse_config
from relay import destinations
from relay.daemon.generation import alert_client
from relay.http import guard
from relay.http.client import HttpClient
from relay.http.guard import AddressRules, CutOffError, RunningCall
from relay.http.response import CallResult
from relay.http.target import prepare
from tests.destinations.calling import GET, POST, hang_lookups, make_client, resolve_to
from tests.helpers.delivering import context
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.waiting import Stopwatch


def call(url: str, *, allow_private: bool = False) -> CallResult:
    return make_client(url, timeout=Duration(30), allow_private=allow_private).call(GET, context())


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0x7f000001", "2130706433", "0", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_not_called_however_it_is_spelled(host: str) -> None:
    with serving(answer()) as server:
        # The start refuses such a URL; the guard refuses it again.
        url, endpoint = f"http://{host}:{server.port}", Endpoint(allow_private=True, allow_http=True)
        client = HttpClient(msgspec.structs.replace(prepare(endpoint, url, "destinations.crm"), rules=guard.PUBLIC))
        result = client.call(GET, context())
        assert (result.error_class, result.call.sent) == ("refused", "not_sent")
        assert "allow_private = true allows the call" in (result.call.error or "")
        assert server.seen == []


def test_one_forbidden_address_among_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for addresses in (("127.0.0.1", "1.1.1.1"), ("1.1.1.1", "127.0.0.1"), ("2606:4700::1111", "fe80::1")):
        monkeypatch.setattr(socket, "getaddrinfo", resolve_to(*addresses))
        assert call("http://rebound.example").error_class == "refused"


def test_the_peer_is_checked_once_more_when_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("1.1.1.1"))
    original = socket.socket.connect
    with serving(answer()) as server:
        monkeypatch.setattr(socket.socket, "connect", lambda sock, _: original(sock, ("127.0.0.1", server.port)))
        assert call("http://public.example").error_class == "refused"
        assert server.seen == []


def test_the_name_is_resolved_once_and_its_checked_addresses_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(answer()) as server:
        lookups = Mock(side_effect=resolve_to("::1", "127.0.0.1"))  # the first does not answer
        monkeypatch.setattr(socket, "getaddrinfo", lookups)
        assert call(f"http://pinned.example:{server.port}", allow_private=True).error_class is None
        assert [made.args[0] for made in lookups.mock_calls] == ["pinned.example"]
        assert server.seen[0].headers["host"] == f"pinned.example:{server.port}"


def test_lookups_that_hang_keep_a_bounded_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    with hang_lookups(monkeypatch):
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


RANGES_4 = """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4""".split()  # noqa: SIM905
PUBLIC_6 = "2000::/3"
RANGES_6 = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"]


def bounds(network: str) -> tuple[int, int]:
    """Return the first and last number of a range, as the kernel parses addresses."""
    address, _, length = network.partition("/")
    family, bits = (socket.AF_INET6, 128) if ":" in address else (socket.AF_INET, 32)
    first = int.from_bytes(socket.inet_pton(family, address), "big")
    return first, first + 2 ** (bits - int(length)) - 1


def is_public(number: int, bits: int) -> bool:
    if bits == 32:
        return not any(low <= number <= high for low, high in map(bounds, RANGES_4))
    if number >> 32 == 0xFFFF:
        return is_public(number & 0xFFFFFFFF, 32)
    low, high = bounds(PUBLIC_6)
    return low <= number <= high and not any(low <= number <= high for low, high in map(bounds, RANGES_6))


def write_address(number: int, bits: int) -> str:
    family = socket.AF_INET if bits == 32 else socket.AF_INET6
    return socket.inet_ntop(family, number.to_bytes(bits // 8, "big"))


def test_an_address_that_is_not_public_is_refused() -> None:
    draw = Random(1)
    numbers = [(0xA9FEA9FE, 32), (0x64FF9B << 96 | 0xA9FEA9FE, 128)]
    for network in (*RANGES_4, *RANGES_6, PUBLIC_6, "::ffff:0:0/96"):
        bits = 128 if ":" in network else 32
        numbers += [
            (edge + step, bits) for edge in bounds(network) for step in (-1, 0, 1) if 0 <= edge + step < 2**bits
        ]
    for _ in range(2_000):
        four = draw.getrandbits(32)
        numbers += [(four, 32), (0xFFFF << 32 | four, 128), (draw.getrandbits(128), 128)]
        numbers.append((0b001 << 125 | draw.getrandbits(125), 128))
    for number in numbers:
        assert (guard.find_refusal(write_address(*number)) is None) == is_public(*number), write_address(*number)


def a_network(draw: Random) -> ipaddress.IPv4Network:
    length = draw.randint(0, 32)
    return ipaddress.IPv4Network((draw.getrandbits(32) >> (32 - length) << (32 - length), length))


def test_a_call_goes_out_if_every_list_allows_it_and_none_blocks_it() -> None:
    def has(network: ipaddress.IPv4Network) -> bool:
        low, high = bounds(str(network))
        return low <= number <= high

    draw, called = Random(2), 0
    for _ in range(2_000):
        number, private = draw.getrandbits(32), draw.random() < 0.5
        allow = tuple(tuple(a_network(draw) for _ in range(draw.randint(1, 3))) for _ in range(draw.randint(0, 2)))
        block = tuple(a_network(draw) for _ in range(draw.randint(0, 2)))
        may = (
            not any(map(has, block))
            and all(any(map(has, networks)) for networks in allow)
            and (private or is_public(number, 32))
        )
        assert (guard.find_refusal(write_address(number, 32), AddressRules(private, allow, block)) is None) == may
        called += may
    assert 200 < called < 1_800


def test_a_blocked_address_is_blocked_inside_of_ipv6_too() -> None:
    draw = Random(3)
    for number in [draw.getrandbits(32) for _ in range(300)]:
        rules = AddressRules(allow_private=True, block=(ipaddress.IPv4Network(number),))
        for six in (
            number | 0xFFFF << 32,
            number,
            number | 0x64FF9B << 96,
            number | 0x64FF9B0001 << 80,
            0x2002 << 112 | number << 80 | 1,
            0x20010000 << 96 | 0xC0000201 << 64 | number ^ 0xFFFFFFFF,
        ):
            assert guard.find_refusal(write_address(six, 128), rules) == "in block_to"


SOURCE = '[sources.s]\npreset = "trivore"\nauth = { kind = "none" }\n'
ROUTE = '[routes.r]\nsource = "s"\ndestination = "d"\n'


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving(answer(), routes={"POST /token": [answer(200, {"access_token": "t"})]}) as made:
        yield made


def write_config(url: str, *lists: str, outbound: str = "", private: bool = True) -> str:
    """Return a configuration with these lines for destination `d` and api `a`; alerts have only the lists of all calls."""
    permitted = f"allow_private = {str(private).lower()}\nallow_http = true"
    lines = "\n".join([permitted, *lists])
    return f"""
[outbound]
{outbound}
[alerts]
url = "{url}/alerts"
{permitted}
[apis.a]
base_url = "{url}"
{lines}
[destinations.d]
kind = "forward"
url = "{url}/hook"
{lines}
{SOURCE}{ROUTE}"""


def call_each(text: str, *, alerts_too: bool = False) -> list[CallResult]:
    """Call the destination and the api, and the alerts' endpoint if wanted, and return the results."""
    config = parse_config(text)
    clients = destinations.base.Clients(config)
    destination = config.destinations["d"]
    assert isinstance(destination, ForwardDestination)
    url = destination.url.reveal()
    alerts = alert_client(config)
    assert alerts is not None
    callers = (clients.destination(destination, url), clients.api("a"), *([alerts] if alerts_too else []))
    return [caller.call(POST, context()) for caller in callers]


@pytest.mark.parametrize("where", ["its own", "of all"])
@pytest.mark.parametrize(
    ("lists", "why"),
    [
        (('allow_to = ["127.0.0.0/8", "::1"]',), None),
        (('allow_to = ["127.0.0.1"]', 'block_to = ["10.0.0.0/8"]'), None),
        (('allow_to = ["10.0.0.0/8", "2001:db8::/32"]',), "not in allow_to"),
        (('block_to = ["127.0.0.0/8"]',), "in block_to"),
        (('block_to = ["0.0.0.0/0"]', 'allow_to = ["127.0.0.1"]'), "in block_to"),
        (('block_to = ["::ffff:127.0.0.0/104"]',), "in block_to"),
    ],
    ids=["allowed", "and not blocked", "not allowed", "blocked", "blocked and allowed", "written as IPv6"],
)
@pytest.mark.parametrize("host", ["127.1", "[::ffff:127.0.0.1]"])
def test_lists_hold_for_all(
    server: ScriptedServer, host: str, lists: tuple[str, ...], why: str | None, where: str
) -> None:
    url = f"http://{host}:{server.port}"
    text = write_config(url, *lists) if where == "its own" else write_config(url, outbound="\n".join(lists))
    found = call_each(text, alerts_too=where == "of all")
    if why is None:
        assert {result.error_class for result in found} == {None}
    else:
        assert {(result.error_class, result.call.sent) for result in found} == {("refused", "not_sent")}
        assert all(why in (result.call.error or "") for result in found)
        assert server.seen == []


def test_a_list_opens_nothing_that_is_private(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("127.0.0.1"))
    text = write_config(f"http://crm.example:{server.port}", 'allow_to = ["127.0.0.0/8"]', private=False)
    assert {result.error_class for result in call_each(text, alerts_too=True)} == {"refused"}
    assert server.seen == []


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("127.0.0.1", "127.0.0.1 is loopback"),
        ("127.1", "127.1 is 127.0.0.1, which is loopback"),
        ("[::1]", "::1 is not a public address"),
        ("10.0.0.1", "10.0.0.1 is private"),
        ("[::ffff:10.0.0.1]", " is private"),
        ("169.254.169.254", "169.254.169.254 is link-local"),
        ("localhost", "localhost is this machine"),
        ("crm.LOCALHOST.", "crm.localhost. is this machine"),
    ],
)
def test_an_address_that_is_private_as_it_stands_stops_the_start(host: str, told: str) -> None:
    text = write_config(f"https://{host}:9000", private=False)
    for make, key in (
        (destinations.build, "destinations.d.url"),
        (lambda config: destinations.base.Clients(config).api("a"), "apis.a.base_url"),
        (alert_client, "alerts.url"),
    ):
        with pytest.raises(ConfigError) as caught:
            make(parse_config(text))
        assert str(caught.value).startswith(f"{key}: ")
        assert str(caught.value).endswith(f"{told}; allow_private = true allows the call")
        make(parse_config(text.replace("allow_private = false", "allow_private = true")))


def test_the_list_holds_for_the_token_too(server: ScriptedServer) -> None:
    with serving(answer(200, {"access_token": "t"})) as tokens:
        token_url = tokens.url.replace("127.0.0.1", "127.0.0.2")
        auth = f'auth = {{ kind = "oauth2", token_url = "{token_url}", client_id = "c", client_secret = "s" }}'
        text = write_config(server.url).replace("[destinations.d]\n", f"[destinations.d]\n{auth}\n")
        result = call_each(text.replace("[outbound]\n", '[outbound]\nallow_to = ["127.0.0.1"]\n'))[0]
        assert result.error_class == "refused"
        assert "no token: " in (result.call.error or "")
        assert tokens.seen == []


# --- mistakes


def build_behind_a_proxy(host: str, *lists: str, outbound: str = "", private: bool = False) -> None:
    text = write_config(f"http://{host}", *lists, outbound=outbound, private=private)
    proxied = text.replace("[apis.a]", '[apis.a]\nproxy = "http://proxy.example:3128"')
    destinations.base.Clients(parse_config(proxied)).api("a")


SPELLINGS = """127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.1 0177.1 017700000001 0 0.0.0.0 127.1. 127.0.0.1.
    0x7f.1. [::1] [::ffff:127.0.0.1] [::127.0.0.1] [64:ff9b::127.0.0.1] 169.254.169.254 0xa9fea9fe 2852039166
    168.63.129.16 10.1 [fe80::1] [fd00:ec2::254] localhost LOCALHOST localhost. crm.localhost localhost.localdomain
    metadata metadata.google.internal metadata.google.internal. metadata.goog instance-data crm crm.local crm.internal
    crm.example. 010.0.0.1 8.8.2056 134744072 1.1.1.1. 127.0.0.256 1.2.3.4.5 crm.1
    %31%32%37.1 \u2460\u2461\u2466.0.0.1 \uff11\uff12\uff17.1""".split()  # noqa: SIM905


@pytest.mark.parametrize("host", SPELLINGS)
def test_a_host_that_can_be_seen_to_be_private_is_not_given_to_a_proxy(host: str) -> None:
    """Hosts that look private are refused unless private addresses are allowed."""
    with pytest.raises(ConfigError, match=r"apis\.a\.base_url: "):
        build_behind_a_proxy(host)
    if host.isascii() and "%" not in host:
        build_behind_a_proxy(host, private=True)


def test_an_address_behind_a_proxy_is_kept_to_the_lists_and_a_name_can_not_be() -> None:
    for public in ("crm.example", "1.1.1.1", "[2606:4700::1111]", "xn--bcher-kva.example", "a_b.example"):
        build_behind_a_proxy(public)
    build_behind_a_proxy("10.1.2.3", 'allow_to = ["10.0.0.0/8"]', private=True)
    build_behind_a_proxy("crm.example", outbound='block_to = ["10.0.0.0/8"]')
    for host, lists, why in (
        ("10.1.2.3", 'allow_to = ["10.2.0.0/16"]', "10.1.2.3 is not in allow_to"),
        ("10.66051", 'block_to = ["10.1.2.3"]', "10.66051 is 10.1.2.3, which is in block_to"),
        ("crm.example", 'block_to = ["10.0.0.0/8"]', "the proxy resolves crm.example itself"),
        ("crm.example", 'allow_to = ["192.0.2.0/24"]', "configure these lists in the proxy"),
    ):
        with pytest.raises(ConfigError, match=why):
            build_behind_a_proxy(host, lists, private=True)
    with pytest.raises(ConfigError, match="in block_to"):
        build_behind_a_proxy("1.1.1.1", outbound='block_to = ["1.1.1.0/24"]')
