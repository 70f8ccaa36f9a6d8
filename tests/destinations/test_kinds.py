"""Every kind of destination has what the rest of the relay reads of it."""

from __future__ import annotations

from typing import get_args

import pytest

from inbox.config.endpoint import Destination, Downstream
from relay.destinations import KINDS


def test_every_table_of_a_destination_has_its_kind() -> None:
    assert set(KINDS) == set(get_args(Destination))


@pytest.mark.parametrize("table", KINDS, ids=lambda table: table.__name__)
def test_every_kind_has_the_settings_that_policies_and_clients_read(table: type) -> None:
    """A table that is a mere endpoint has no `outcomes`, and a relay with one would end when it makes its policies."""
    assert issubclass(table, Downstream)
