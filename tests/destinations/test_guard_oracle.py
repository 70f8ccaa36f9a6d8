"""The address guard against the numbers themselves: every edge of every range, and addresses from all over."""

from __future__ import annotations

import ipaddress
import socket
from random import Random

from relay.http import guard
from relay.http.guard import AddressRules

RANGES_4 = """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4""".split()  # noqa: SIM905
PUBLIC_6 = "2000::/3"
RANGES_6 = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"]


def bounds(network: str) -> tuple[int, int]:
    """The first and the last number of a range: the kernel's own reading of addresses, and arithmetic."""
    address, _, length = network.partition("/")
    family, bits = (socket.AF_INET6, 128) if ":" in address else (socket.AF_INET, 32)
    first = int.from_bytes(socket.inet_pton(family, address), "big")
    return first, first + 2 ** (bits - int(length)) - 1


def may_be_called(number: int, bits: int) -> bool:
    if bits == 32:
        return not any(low <= number <= high for low, high in map(bounds, RANGES_4))
    if number >> 32 == 0xFFFF:
        return may_be_called(number & 0xFFFFFFFF, 32)
    low, high = bounds(PUBLIC_6)
    return low <= number <= high and not any(low <= number <= high for low, high in map(bounds, RANGES_6))


def written(number: int, bits: int) -> str:
    family = socket.AF_INET if bits == 32 else socket.AF_INET6
    return socket.inet_ntop(family, number.to_bytes(bits // 8, "big"))


def test_on_both_sides_of_every_edge_and_wherever_an_address_lies_the_guard_is_right() -> None:
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
        assert (guard.refusal(written(*number)) is None) == may_be_called(*number), written(*number)


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
            and (private or may_be_called(number, 32))
        )
        assert (guard.refusal(written(number, 32), AddressRules(private, allow, block)) is None) == may
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
            assert guard.refusal(written(six, 128), rules) == "named by block_to"
