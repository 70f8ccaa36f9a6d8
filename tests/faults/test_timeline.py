"""What the ledger of faults says about when nobody could have worked."""

from __future__ import annotations

from typing import Any

from tests.faults import timeline
from tests.helpers.fault_checkers import Holding, Interval

Line = dict[str, Any]


def did(kind: str, begin: float, end: float, **more: object) -> Line:
    return {"kind": kind, "begin": begin, "end": end, **more}


def node(name: str, at: float, pid: int = 1) -> Line:
    return {"id": name, "at": at, "pid": pid}


def test_an_outage_lasts_until_relays_have_noticed_its_end_and_is_counted_once() -> None:
    faults = [did("kill Postgres", 10, 12, outage=True), did("fill the disk", 15, 20, outage=True)]
    apart = did("freeze Postgres", 40, 41, outage=True)
    assert timeline.outages([*faults, apart, did("freeze a worker", 70, 80, outage=False)]) == [
        Interval(10, 26),
        Interval(40, 47),
    ]


def test_a_relay_works_from_its_start_until_it_is_killed_or_replaced_and_not_while_it_is_frozen() -> None:
    nodes = [node("a", 0), node("b", 10), node("c", 30), node("d", 50)]
    faults = [
        did("kill a relay", 5, 5, node="a"),
        did("freeze a relay", 15, 25, node="b"),
        did("kill a relay", 26, 26, node="b"),
        did("replace a relay", 55, 56, node="c"),
    ]
    idle = timeline.without_relays(faults, nodes)
    assert idle == [Interval(5, 11), Interval(15, 26), Interval(26, 31)]
    assert timeline.without_relays(faults, [*nodes, node("e", 1)]) == []


def test_what_a_killed_relay_held_is_told_if_it_is_known() -> None:
    faults = [
        did("kill a relay", 5, 5, node="a", held=[[1, 0, 2]]),
        did("kill a relay", 6, 6, node="b", held=None),
        did("freeze a relay", 7, 9, node="c", held=[[2, 0, 1]]),
    ]
    assert timeline.holdings(faults) == [Holding(5, "a", ((1, 0, 2),))]


def test_trouble_is_a_nodes_own_its_connections_or_everybodys() -> None:
    faults = [did("kill a relay", 5, 5, node="a"), did("kill Postgres", 10, 12, outage=True)]
    cuts = [{"at": 3.0, "pid": 2}]
    assert timeline.troubles(faults, cuts, [node("a", 0, 1), node("b", 0, 2)]) == {
        "a": [Interval(5, timeline.FOREVER), Interval(10, 18)],
        "b": [Interval(3.0, 3.0), Interval(10, 18)],
    }


def test_a_verification_without_a_database_tells_nothing_but_one_that_found_something_does() -> None:
    faults = [did("kill Postgres", 10, 12, outage=True)]
    assert not timeline.could_tell(did("verify", 11, 13, status=2), faults)
    assert timeline.could_tell(did("verify", 11, 13, status=1), faults)
    assert timeline.could_tell(did("verify", 20, 21, status=2), faults)
