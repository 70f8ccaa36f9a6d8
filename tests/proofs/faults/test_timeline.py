"""Tests of what the ledger of faults says about times when nobody could have worked."""

from __future__ import annotations

from typing import Any

from inbox.db.order_lock import HELD_SECONDS
from tests.helpers.checkers import Holding, Interval
from tests.proofs.faults import timeline

Line = dict[str, Any]


def did(kind: str, begin: float, end: float, **more: object) -> Line:
    return {"kind": kind, "begin": begin, "end": end, **more}


def test_an_outage_lasts_until_relays_have_noticed_its_end_and_is_counted_once() -> None:
    faults = [did("kill Postgres", 10, 12, outage=True), did("fill the disk", 15, 20, outage=True)]
    apart = did("freeze Postgres", 40, 41, outage=True)
    assert timeline.outages([*faults, apart, did("freeze a worker", 70, 80, outage=False)]) == [
        Interval(10, 26),
        Interval(40, 47),
    ]


def test_what_a_killed_or_frozen_relay_held_is_told_if_it_is_known() -> None:
    faults = [
        did("kill a relay", 5, 5, node="a", held=[[1, 0, 2]]),
        did("kill a relay", 6, 6, node="b", held=None),
        did("freeze a relay", 7, 9, node="c", held=[[2, 0, 1]]),
    ]
    assert timeline.holdings(faults) == [Holding(5, "a", ((1, 0, 2),))]
    assert timeline.holdings(faults, "freeze a relay") == [Holding(7, "c", ((2, 0, 1),))]


def test_a_frozen_relay_may_have_a_lock_until_the_server_takes_it_away() -> None:
    (locked,) = timeline.locked_by_frozen([did("kill a relay", 5, 5), did("freeze a relay", 7, 29)])
    assert locked.begin == 7
    assert HELD_SECONDS < locked.end - locked.begin < HELD_SECONDS + 2


def test_the_database_stands_still_while_it_is_frozen_and_not_while_it_is_away() -> None:
    faults = [did("kill Postgres", 10, 12, outage=True), did("freeze Postgres", 40, 41, outage=True)]
    assert timeline.standstills(faults) == [Interval(40, 41)]


def test_trouble_is_a_nodes_own_its_connections_or_everybodys() -> None:
    faults = [did("kill a relay", 5, 5, node="a"), did("kill Postgres", 10, 12, outage=True)]
    cuts = [{"at": 3.0, "pid": 2}]
    assert timeline.troubles(faults, cuts, {"a": 1, "b": 2}) == {
        "a": [Interval(5, timeline.FOREVER), Interval(10, 18)],
        "b": [Interval(3.0, 3.0), Interval(10, 18)],
    }


def test_a_verification_without_a_database_tells_nothing_but_one_that_found_something_does() -> None:
    faults = [did("kill Postgres", 10, 12, outage=True)]
    assert not timeline.could_tell(did("verify", 11, 13, status=2), faults)
    assert timeline.could_tell(did("verify", 11, 13, status=1), faults)
    assert timeline.could_tell(did("verify", 20, 21, status=2), faults)
