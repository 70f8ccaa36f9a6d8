"""Lists of networks that calls may go to, or not: kept to where the socket is opened, whatever the name resolves to."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from inbox.config.model import ForwardDestination
from inbox.errors import ConfigError
from inbox.loader.load import parse_config
from relay import destinations
from relay.daemon.generation import alert_client
from relay.http.answer import Answer
from tests.destinations.calling import POST, resolving_to
from tests.helpers.delivering import context
from tests.helpers.mistakes import mistake
from tests.helpers.scripted import ScriptedServer, answer, serving

SOURCE = '[sources.s]\npreset = "trivore"\nauth = { kind = "none" }\n'
ROUTE = '[routes.r]\nsource = "s"\ndestination = "d"\n'
LOOPBACK = ("127.0.0.0/8", "::1/128")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving(answer(), routes={"POST /token": [answer(200, {"access_token": "t"})]}) as made:
        yield made


def config_of(url: str, *lists: str, outbound: str = "", private: bool = True) -> str:
    """A configuration whose destination `d` and api `a` have these lines; for alerts only the lists of all calls count."""
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


def call_each(text: str, *, alerts_too: bool = False) -> list[Answer]:
    """Call the destination and the api, and the alerts' endpoint where that is asked for; return the results."""
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
        (('allow_to = ["10.0.0.0/8", "2001:db8::/32"]',), "not named by allow_to"),
        (('block_to = ["127.0.0.0/8"]',), "named by block_to"),
        (('block_to = ["0.0.0.0/0"]', 'allow_to = ["127.0.0.1"]'), "named by block_to"),
        (('block_to = ["::ffff:127.0.0.0/104"]',), "named by block_to"),
    ],
    ids=["allowed", "and not blocked", "not allowed", "blocked", "blocked and allowed", "written as IPv6"],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]"])
def test_a_list_holds_for_every_call_however_the_host_is_written(
    server: ScriptedServer, host: str, lists: tuple[str, ...], why: str | None, where: str
) -> None:
    url = f"http://{host}:{server.port}"
    text = config_of(url, *lists) if where == "its own" else config_of(url, outbound="\n".join(lists))
    found = call_each(text, alerts_too=where == "of all")
    if why is None:
        assert {result.error_class for result in found} == {None}
    else:
        assert {(result.error_class, result.call.sent) for result in found} == {("refused", "not_sent")}
        assert all(why in (result.call.error or "") for result in found)
        assert server.seen == []


def test_both_lists_must_name_the_address(server: ScriptedServer) -> None:
    for everywhere, own, fine in (("127.0.0.0/8", "127.0.0.1", True), ("10.0.0.0/8", "127.0.0.1", False)):
        text = config_of(server.url, f'allow_to = ["{own}"]', outbound=f'allow_to = ["{everywhere}"]')
        assert {result.error_class for result in call_each(text)} == ({None} if fine else {"refused"})


def test_a_list_opens_nothing_that_is_private(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("127.0.0.1"))
    url = server.url.replace("127.0.0.1", "crm.example")
    found = call_each(config_of(url, 'allow_to = ["127.0.0.0/8"]', private=False), alerts_too=True)
    assert {result.error_class for result in found} == {"refused"}
    assert all("loopback; allow_private = true lets the call out" in (result.call.error or "") for result in found)


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
    text = config_of(f"https://{host}:9000", private=False)
    for make, key in (
        (destinations.build, "destinations.d.url"),
        (lambda config: destinations.base.Clients(config).api("a"), "apis.a.base_url"),
        (alert_client, "alerts.url"),
    ):
        with pytest.raises(ConfigError) as caught:
            make(parse_config(text))
        assert str(caught.value).startswith(f"{key}: ")
        assert str(caught.value).endswith(f"{told}; allow_private = true lets the call out")
        make(parse_config(text.replace("allow_private = false", "allow_private = true")))


def test_the_list_holds_for_what_the_name_resolves_to_and_for_each_of_its_addresses(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("127.0.0.1", "127.0.0.2"))
    url = f"http://crm.example:{server.port}"
    assert {r.error_class for r in call_each(config_of(url, 'block_to = ["127.0.0.2"]'))} == {"refused"}
    assert {r.error_class for r in call_each(config_of(url, 'allow_to = ["127.0.0.1"]'))} == {"refused"}
    assert {r.error_class for r in call_each(config_of(url, 'allow_to = ["127.0.0.0/30"]'))} == {None}


def test_the_list_holds_for_the_peer_that_is_connected(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    original = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda sock, _: original(sock, ("127.0.0.1", server.port)))
    found = call_each(config_of("http://127.0.0.9:80", 'block_to = ["127.0.0.1"]'))
    assert {result.error_class for result in found} == {"refused"}
    assert server.seen == []


def test_the_list_holds_for_the_token_too(server: ScriptedServer) -> None:
    with serving(answer(200, {"access_token": "t"})) as tokens:
        token_url = tokens.url.replace("127.0.0.1", "127.0.0.2")
        auth = f'auth = {{ kind = "oauth2", token_url = "{token_url}", client_id = "c", client_secret = "s" }}'
        text = config_of(server.url).replace("[destinations.d]\n", f"[destinations.d]\n{auth}\n")
        result = call_each(text.replace("[outbound]\n", '[outbound]\nallow_to = ["127.0.0.1"]\n'))[0]
        assert result.error_class == "refused"
        assert "no token: " in (result.call.error or "")
        assert tokens.seen == []


# --- mistakes


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('allow_to = ["10.0.0.1/8"]', "did you mean '10.0.0.0/8'?"),
        ('block_to = ["crm.example"]', 'expected an address or a network such as "192.0.2.7"'),
        ('block_to = ["10.0.0.0/33"]', "expected an address or a network"),
        ("block_to = [10]", "expected an address or a network"),
        ('block_to = "10.0.0.0/8"', "expected a list in [ ]"),
        ("allow_to = []", "must not be empty"),
        ('allow = ["10.0.0.0/8"]', "did you mean 'allow_to'?"),
    ],
)
@pytest.mark.parametrize("table", ["outbound", "apis.a", "destinations.d"])
def test_a_list_of_anything_but_networks_is_told_with_its_place(written: str, told: str, table: str) -> None:
    text = config_of("http://crm.example").replace(f"[{table}]\n", f"[{table}]\n{written}\n")
    found = mistake(text)
    assert f"[{table}]" in found
    assert told in found


def behind_a_proxy(host: str, *lists: str, outbound: str = "", private: bool = False) -> None:
    text = config_of(f"http://{host}", *lists, outbound=outbound, private=private)
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
    """Unless private addresses may be called."""
    with pytest.raises(ConfigError, match=r"apis\.a\.base_url: "):
        behind_a_proxy(host)
    if host.isascii() and "%" not in host:
        behind_a_proxy(host, private=True)


@pytest.mark.parametrize(
    "host", ["crm.example", "1.1.1.1", "[2606:4700::1111]", "xn--bcher-kva.example", "a_b.example"]
)
def test_a_public_name_or_address_may_be(host: str) -> None:
    behind_a_proxy(host)


def test_an_address_behind_a_proxy_is_kept_to_the_lists_and_a_name_can_not_be() -> None:
    behind_a_proxy("10.1.2.3", 'allow_to = ["10.0.0.0/8"]', private=True)
    behind_a_proxy("crm.example", outbound='block_to = ["10.0.0.0/8"]')
    for host, lists, why in (
        ("10.1.2.3", 'allow_to = ["10.2.0.0/16"]', "10.1.2.3 is not named by allow_to"),
        ("10.66051", 'block_to = ["10.1.2.3"]', "10.66051 is 10.1.2.3, which is named by block_to"),
        ("crm.example", 'block_to = ["10.0.0.0/8"]', "the proxy resolves crm.example itself"),
        ("crm.example", 'allow_to = ["192.0.2.0/24"]', "give these lists to the proxy"),
    ):
        with pytest.raises(ConfigError, match=why):
            behind_a_proxy(host, lists, private=True)
    with pytest.raises(ConfigError, match="named by block_to"):
        behind_a_proxy("1.1.1.1", outbound='block_to = ["1.1.1.0/24"]')
