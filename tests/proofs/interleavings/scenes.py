"""States in which relays meet. Each prepares its tables and gives the operations that may happen in them at once."""

from __future__ import annotations

from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome
from relay.store.claim import claim, claim_suspect
from relay.store.leases import LEASE_SECONDS
from relay.store.reap import reap
from relay.store.record import record
from relay.store.sequence import sequence
from tests.helpers.relaying import POLICIES
from tests.helpers.storing import an_event
from tests.proofs.interleavings.stage import Operation, Stage

DONE = Delivered((), "forwarded")
BROKEN = Failed((), "server_error", "forward answered 503")
HOPELESS = Failed((), "mapping", "email: no value")

Operations = dict[str, Operation]


def arrivals(stage: Stage) -> Operations:
    """Two lanes in which nothing has its place yet."""
    stage.routes = ("strict",)
    stage.arrive(an_event(2), an_event(1), an_event(3, "u2"))
    return {
        "r1 sequences": stage.sequences("r1"),
        "r1 sequences one": stage.sequences("r1", batch=1),
        "r1 claims": stage.claims("r1"),
        "r2 claims": stage.claims("r2", room=2),
    }


def a_head_in_flight(stage: Stage) -> Operations:
    """One is worked on, one waits, and one that goes between them has arrived."""
    first = _in_flight(stage, "strict", 1, 3)
    stage.arrive(an_event(2))
    return {
        "r1 records its success": stage.records("r1", DONE, first),
        "r1 records its failure": stage.records("r1", BROKEN, first),
        "r1 renews": stage.renews(first),
        "r1 gives back": stage.gives_back(first),
        "r2 sequences": stage.sequences("r2"),
        "r2 claims": stage.claims("r2"),
        "r2 reaps": stage.reaps("r2"),
    }


def earlier_ones_behind_a_head_in_flight(stage: Stage) -> Operations:
    """Prepare a head in flight that is not begun; an earlier one waits behind it, and the earliest has arrived."""
    head = _in_flight(stage, "strict", 3)
    _place(stage, "strict", 2)
    stage.arrive(an_event(1))
    return {
        "r1 gives back": stage.gives_back(head),
        "r2 sequences": stage.sequences("r2"),
        "r2 claims": stage.claims("r2"),
    }


def an_earlier_one(stage: Stage) -> Operations:
    """A head is due, and an earlier one has arrived in time."""
    stage.routes = ("strict",)
    _place(stage, "strict", 2)
    stage.arrive(an_event(1))
    return {
        "r1 sequences": stage.sequences("r1"),
        "r1 claims": stage.claims("r1"),
        "r2 claims": stage.claims("r2", room=2),
    }


def a_newer_one(stage: Stage) -> Operations:
    """In `latest`: one is worked on, one waits, and a newer one has arrived that stands for it."""
    first = _in_flight(stage, "latest", 1, 2)
    stage.arrive(an_event(3, routes=["latest"]))
    return {
        "r1 records its success": stage.records("r1", DONE, first),
        "r1 records its failure": stage.records("r1", BROKEN, first),
        "r1 gives back": stage.gives_back(first),
        "r2 sequences": stage.sequences("r2"),
        "r2 claims": stage.claims("r2"),
    }


def a_newer_one_takes_over(stage: Stage) -> Operations:
    """In `latest`: a failed one is due again, and a newer one has arrived that goes on from its attempts."""
    _attempted(stage, _in_flight(stage, "latest", 1), BROKEN)
    stage.clock.advance(5)
    stage.arrive(an_event(2, routes=["latest"]), an_event(3, routes=["latest"]))
    return {
        "r1 sequences": stage.sequences("r1"),
        "r2 sequences one": stage.sequences("r2", batch=1),
        "r1 claims": stage.claims("r1"),
    }


def a_lease_that_ran_out(stage: Stage) -> Operations:
    """The relay that was frozen comes back while others take its place; one waits, one has arrived."""
    stale = _in_flight(stage, "strict", 1, 3)
    stage.arrive(an_event(2))
    stage.clock.advance(LEASE_SECONDS + 1)
    return {
        "r1 records its success": stage.records("r1", DONE, stale),
        "r1 renews": stage.renews(stale),
        "r1 gives back": stage.gives_back(stale),
        "r2 reaps": stage.reaps("r2"),
        "r2 claims": stage.claims("r2"),
        "r3 sequences": stage.sequences("r3"),
    }


def a_lease_taken_over(stage: Stage) -> Operations:
    """The same, when another relay has claimed it since."""
    stale = _in_flight(stage, "strict", 1, 3)
    stage.arrive(an_event(2))
    stage.clock.advance(LEASE_SECONDS + 1)
    reap(stage.database, POLICIES, "r2")
    (fresh,) = claim(stage.database, "r2", [(["strict"], 1)])
    return {
        "r1 records its success": stage.records("r1", DONE, stale),
        "r1 renews": stage.renews(stale),
        "r1 gives back": stage.gives_back(stale),
        "r2 records its failure": stage.records("r2", BROKEN, fresh),
        "r2 renews": stage.renews(fresh),
        "r3 sequences": stage.sequences("r3"),
    }


def a_head_that_blocks(stage: Stage) -> Operations:
    """A lane that a dead head blocks."""
    first = _in_flight(stage, "blocking", 1, 2)
    stage.arrive(an_event(3, routes=["blocking"]))
    return {
        "r1 records its death": stage.records("r1", HOPELESS, first),
        "r1 renews": stage.renews(first),
        "r2 sequences": stage.sequences("r2"),
        "r2 claims": stage.claims("r2"),
    }


def two_lanes_at_once(stage: Stage) -> Operations:
    """Prepare deliveries of two lanes that one relay holds and handles together, in any order of the two."""
    stage.routes = ("strict",)
    stage.arrive(an_event(1, "u1"), an_event(2, "u2"), an_event(3, "u1"), an_event(4, "u2"))
    sequence(stage.database, POLICIES, "r1")
    first, second = claim(stage.database, "r1", [(stage.routes, 2)])
    stage.arrive(an_event(5, "u2"), an_event(6, "u1"))
    return {
        "r1 records": stage.records("r1", DONE, second, first),
        "r1 renews": stage.renews(second, first),
        "r1 renews the first": stage.renews(first),
        "r1 gives back": stage.gives_back(second, first),
        "r2 sequences": stage.sequences("r2"),
        "r2 claims": stage.claims("r2", room=2),
    }


def a_lease_that_ran_out_once_too_often(stage: Stage) -> Operations:
    """The process died each time: the delivery is set aside."""
    stage.routes = ("strict",)
    _place(stage, "strict", 1, 2)
    stale = _claim_one(stage, "r1")
    for relay in ("r2", "r3"):
        stage.clock.advance(LEASE_SECONDS + 1)
        reap(stage.database, POLICIES, relay)
        stale = _claim_one(stage, relay)
    stage.clock.advance(LEASE_SECONDS + 1)
    return {
        "r3 records its success": stage.records("r3", DONE, stale),
        "r3 renews": stage.renews(stale),
        "r4 reaps": stage.reaps("r4"),
        "r4 claims": stage.claims("r4"),
        "r5 claims suspects": stage.claims_suspect("r5"),
    }


def suspects(stage: Stage) -> Operations:
    """Two that may be what kills the process, and in `latest` a newer one that takes over from one of them."""
    stage.routes = ("latest",)
    stage.arrive(an_event(1, "u1", routes=["latest"]), an_event(2, "u2", routes=["latest"]))
    sequence(stage.database, POLICIES, "r1")
    claim(stage.database, "r1", [(stage.routes, 2)])
    stage.clock.advance(LEASE_SECONDS + 1)
    reap(stage.database, POLICIES, "r2")
    claim(stage.database, "r2", [(stage.routes, 2)])
    stage.clock.advance(LEASE_SECONDS + 1)
    reap(stage.database, POLICIES, "r3")
    stage.arrive(an_event(3, "u1", routes=["latest"]))
    return {
        "r3 claims suspects": stage.claims_suspect("r3"),
        "r4 claims": stage.claims("r4"),
        "r5 sequences": stage.sequences("r5"),
    }


def a_row_of_no_event(stage: Stage) -> Operations:
    """A rebuild has something to remove, in the last of its chunks."""
    stage.routes = ("strict",)
    _place(stage, "strict", 1)
    stage.put(
        "INSERT INTO open_delivery (seq, route, lane, occurred_at, state)"
        " VALUES (1000000, 'strict', 'USER|u9', '2026-01-01 00:00:00.000000Z', 'dead')"
    )
    return {"ann rebuilds": stage.rebuilds(), "a receiver takes in": stage.receives(an_event(2), an_event(3, "u2"))}


def _place(stage: Stage, route: str, *numbers: int) -> None:
    """Events of one lane, in their places."""
    stage.arrive(*(an_event(number, routes=[route]) for number in numbers))
    sequence(stage.database, POLICIES, "r1")


def _claim_one(stage: Stage, relay: str) -> Delivery:
    (delivery,) = claim(stage.database, relay, [(stage.routes, 1)]) or claim_suspect(
        stage.database, relay, stage.routes
    )
    return delivery


def _in_flight(stage: Stage, route: str, *numbers: int) -> Delivery:
    """Events of one lane, the first in flight at r1."""
    stage.routes = (route,)
    _place(stage, route, *numbers)
    return _claim_one(stage, "r1")


def _attempted(stage: Stage, delivery: Delivery, outcome: Outcome) -> None:
    record(stage.database, POLICIES, "r1", [(delivery, outcome)])
