"""The address guard against the numbers themselves: every edge of every range, and addresses from all over."""

from __future__ import annotations

import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.http import guard

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


@pytest.mark.parametrize("network", [*RANGES_4, *RANGES_6, PUBLIC_6, "::ffff:0:0/96"])
def test_on_both_sides_of_every_edge_the_guard_is_right(network: str) -> None:
    bits = 128 if ":" in network else 32
    for edge in bounds(network):
        for number in (edge - 1, edge, edge + 1):
            if 0 <= number < 2**bits:
                assert (guard.refusal(written(number, bits)) is None) == may_be_called(number, bits), written(
                    number, bits
                )


@settings(max_examples=5_000, derandomize=True, database=None)
@given(
    st.one_of(
        st.integers(0, 2**32 - 1).map(lambda number: (number, 32)),
        st.integers(0, 2**128 - 1).map(lambda number: (number, 128)),
        st.integers(0, 2**125 - 1).map(lambda number: ((0b001 << 125) | number, 128)),
        st.integers(0, 2**32 - 1).map(lambda number: ((0xFFFF << 32) | number, 128)),
    )
)
@example((0xA9FEA9FE, 32))
@example(((0x64FF9B << 96) | 0xA9FEA9FE, 128))
def test_wherever_an_address_lies_the_guard_is_right(address: tuple[int, int]) -> None:
    assert (guard.refusal(written(*address)) is None) == may_be_called(*address)
