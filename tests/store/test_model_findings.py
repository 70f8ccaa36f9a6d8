"""Bugs that the model found, or that its construction revealed: each test is as short as possible."""

from __future__ import annotations

from inbox.config.endpoint import ForwardDestination
from inbox.config.model import Config, Route
from inbox.config.retry import BreakerLimits, Retry
from inbox.config.source import NoAuth, Source
from inbox.config.types import Duration, Secret
from relay.delivery.outcome import Call, Delivered, Failed
from relay.delivery.policy import policies
from relay.store import gates
from relay.store.claim import claim, claim_probe
from relay.store.operator.selection import Selection
from relay.store.record import record
from tests.helpers.commanding import carry_out
from tests.helpers.relaying import HOPELESS, FakeClock, Steps
from tests.helpers.storing import an_event

CRM = ("destination", "crm")
CONFIG = Config(
    sources={"trivore": Source(name="trivore", preset="trivore", auth=NoAuth())},
    destinations={
        "crm": ForwardDestination(
            name="crm", url=Secret("https://crm/"), breaker=BreakerLimits(open_for=Duration(30), longest=Duration(30))
        )
    },
    routes={
        "strict": Route(name="strict", source="trivore", destination="crm", ordering="strict", retry=Retry(jitter=0))
    },
)
POLICIES = policies(CONFIG)
STALE = Failed((Call("fetch", "GET", "https://id/", "answered", 1.0, 200),), "stale", "older than its event")
REFUSED = Failed((Call("forward", "POST", "https://crm/", "answered", 1.0, 401),), "auth", "answered 401")


def test_a_breaker_is_tried_where_all_that_is_due_was_abandoned_several_times(steps: Steps) -> None:
    """Else it stays open until something else arrives, or a person comes."""
    steps.arrive(an_event(1))
    for node in ("r1", "r2"):
        assert claim(steps.database, node, [(["strict"], 1)])
        steps.advance(16)
        steps.reap("r3")
    steps.arrive(an_event(2, "u2"))
    (other,) = claim(steps.database, "r3", [(["strict"], 1)])
    record(steps.database, POLICIES, "r3", [(other, REFUSED)])
    carry_out(steps.database, CONFIG, "cancel", Selection(seq=2), why="not needed")
    assert [state for _, _, state in steps.states()] == ["ready"]
    steps.advance(10_000)
    assert gates.read_gates(steps.database).admit(POLICIES["strict"].gates) == "probe"
    assert [d.seq for d in claim_probe(steps.database, "r4", "strict", [CRM])] == [1]


def test_what_was_replayed_is_no_dead_letter_of_its_cause_any_more(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    for _ in range(2):
        steps.attempt(HOPELESS)
    carry_out(steps.database, CONFIG, "replay", Selection(seq=1), why="mended")
    assert carry_out(steps.database, CONFIG, "cancel", Selection(cause="mapping"), why="not needed") == 1
    assert [(seq, state) for seq, _, state in steps.states()] == [(1, "ready")]


def test_a_late_success_without_a_fetch_does_not_cover_what_is_newer_than_itself(
    steps: Steps, clock: FakeClock
) -> None:
    """An update is fetched, an older delete comes late, and then an update from between the two, which neither has in it."""
    steps.advance(11)
    steps.arrive(an_event(1, second=10, routes=["latest"]))
    steps.attempt(Delivered((), "updated", fetch_began_at=clock.now()), "latest")
    steps.arrive(an_event(2, second=8, routes=["latest"]))
    assert steps.attempt(Delivered((), "deleted"), "latest").late
    steps.arrive(an_event(3, second=9, routes=["latest"]))
    assert [state for _, _, state in steps.states()] == ["ready"]


def test_one_that_was_put_off_and_not_counted_is_not_due_sooner_because_an_older_one_came(steps: Steps) -> None:
    steps.arrive(an_event(2))
    delivery = steps.claim()
    steps.record([(delivery, STALE)])
    steps.arrive(an_event(1))
    carry_out(steps.database, CONFIG, "cancel", Selection(seq=2), why="it is the older one")
    steps.advance(0.5)
    assert steps.claim_due(1, "strict") == []
    steps.facts_agree()
