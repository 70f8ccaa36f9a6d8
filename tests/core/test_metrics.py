"""Prometheus accepts the tables of metrics, and disabled metrics cost nothing."""

from __future__ import annotations

import pytest

from inbox.config.values import Address
from inbox.errors import CAUSES, RequestError


def test_every_cause_of_a_refusal_is_known() -> None:
    def causes(error: type[RequestError]) -> set[str]:
        return {error.cause, *(cause for each in error.__subclasses__() for cause in causes(each))}

    assert {cause for error in RequestError.__subclasses__() for cause in causes(error)} == CAUSES


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:9100", "127.0.0.1", 9100), ("localhost:1", "localhost", 1), ("[::1]:65535", "::1", 65535)],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address, address.host, address.port) == (text, host, port)


@pytest.mark.parametrize(
    "text", ["", "9100", ":9100", "127.0.0.1", "a:0", "a:65536", "a:b", "::1:9100", "a b:1", 9100, None]
)
def test_anything_else_is_none(text: object) -> None:
    with pytest.raises(ValueError, match="expected a host and a port"):
        Address.parse(text)
