"""A source's list of addresses, as far as it needs no connection: `tests/process/test_sender_addresses.py` has those."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.values import Network
from inbox.events.event import RawRequest
from inbox.loader.load import parse_config
from inbox.receiver.app import endpoints_of
from inbox.sources.credentials import SentFrom
from tests.helpers.mistakes import mistake
from tests.sources.presenting import NOW, why_refused

RIGHT = RawRequest("acme", {"authorization": "Bearer s3cret"}, b"{}", NOW)


def config(*networks: str) -> str:
    return f"""
[sources.acme]
preset = "trivore"
auth = {{ kind = "bearer", secrets = ["s3cret"] }}
allow_from = {list(networks)}
"""


def refusal(networks: tuple[str, ...], raw: RawRequest) -> str | None:
    return why_refused(endpoints_of(parse_config(config(*networks)))["acme"].verifier, raw)


def let_in(networks: tuple[str, ...], address: str | None) -> bool:
    return refusal(networks, msgspec.structs.replace(RIGHT, remote_address=address)) is None


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("192.0.2.7", ("192.0.2.7", "::ffff:192.0.2.7", "::FFFF:c000:0207"), ("192.0.2.8", "::192.0.2.7")),
        ("192.0.2.0/24", ("192.0.2.0", "192.0.2.255"), ("192.0.3.0", "192.0.1.255")),
        ("2001:db8::/32", ("2001:db8::1", "2001:DB8:0::1"), ("2001:db9::", "::", "192.0.2.7")),
        ("::ffff:192.0.2.0/120", ("192.0.2.9", "::ffff:192.0.2.9"), ("192.0.3.9",)),
        ("::1", ("::1", "0:0:0:0:0:0:0:1"), ("127.0.0.1", "::ffff:127.0.0.1")),
        ("0.0.0.0/0", ("203.0.113.1", "::ffff:203.0.113.1"), ("2001:db8::1",)),
        ("fe80::/10", ("fe80::1%eth0",), ("fec0::1",)),
    ],
)
def test_an_address_is_let_in_if_a_network_has_it(
    network: str, inside: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    assert [address for address in inside if not let_in((network,), address)] == []
    assert [address for address in outside if let_in((network,), address)] == []


@pytest.mark.parametrize(
    "nothing", [None, "", "unknown", "192.0.2.7:80", "192.0.2.07", "192.0.2.7 ", "2001:db8::/32", "*", "\x00"]
)
def test_what_is_no_address_is_let_in_nowhere(nothing: str | None) -> None:
    assert not let_in(("0.0.0.0/0", "::/0"), nothing)


def test_the_operator_is_told_the_address_and_the_sender_is_not() -> None:
    elsewhere = msgspec.structs.replace(RIGHT, remote_address="203.0.113.9")
    assert refusal(("192.0.2.0/24",), elsewhere) == "it comes from 203.0.113.9, which allow_from does not have"
    assert "an address that is not known" in (refusal(("192.0.2.0/24",), RIGHT) or "")


def test_the_right_address_alone_is_not_enough() -> None:
    stranger = msgspec.structs.replace(RIGHT, remote_address="192.0.2.1", headers={})
    assert refusal(("192.0.2.0/24",), stranger) == "it shows no secret"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("192.0.2.7/24", "did you mean '192.0.2.0/24'?"),
        ("2001:db8::1/32", "did you mean '2001:db8::/32'?"),
        ("hooks.example.com", "expected an address or a network"),
        ("192.0.2.7:443", "expected an address or a network"),
        ("192.0.2.0/33", "expected an address or a network"),
        ("192.0.2.0-192.0.2.9", "expected an address or a network"),
        ("*", "expected an address or a network"),
        ("", "expected an address or a network"),
    ],
)
def test_what_is_no_network_is_a_mistake(given: str, told: str) -> None:
    found = mistake(config(given))
    assert "allow_from" in found
    assert told in found


def test_an_empty_list_is_a_mistake() -> None:
    assert "must not be empty" in mistake(config())


@given(st.sampled_from([ipaddress.IPv4Address, ipaddress.IPv6Address]), st.data())
def test_a_network_has_what_begins_like_it_and_nothing_else(
    kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address], data: st.DataObject
) -> None:
    bits = 32 if kind is ipaddress.IPv4Address else 128
    address, other = (kind(data.draw(st.integers(0, 2**bits - 1))) for _ in range(2))
    length = data.draw(st.integers(0, bits))
    asked = SentFrom([Network.parse(str(ipaddress.ip_network((address, length), strict=False)))])

    def has(sender: object) -> bool:
        return asked.fault(msgspec.structs.replace(RIGHT, remote_address=str(sender)), NOW) is None

    if kind is ipaddress.IPv4Address or min(int(address), int(other)) >= 2**48:  # less may be IPv4 in IPv6
        assert has(address)
        assert has(other) == (int(other) >> (bits - length) == int(address) >> (bits - length))
    if kind is ipaddress.IPv4Address:
        assert has(f"::ffff:{address}")
        assert has(f"::ffff:{other}") == has(other)
