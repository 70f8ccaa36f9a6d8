"""Calls of relays to the downstream service in the model, and its answers."""

from __future__ import annotations

from hypothesis import strategies as st

from relay.delivery.lifecycle import State
from tests.proofs.model.choosing import Choosing
from tests.proofs.model.outcomes import FAILED, FAILURES, HOPELESS, REFUSED, SKIPPED, SUCCESSES
from tests.proofs.model.receiving import MOST, SECOND, Receiving
from tests.proofs.model.stage import WHICH, one_of, step
from tests.proofs.model.world import ROUTES, SCHEDULE


class Calling(Receiving, Choosing):
    """The rules of calls."""

    @step(lambda self: self.untouched(), which=WHICH)
    def call(self, which: int) -> None:
        self.begin(*one_of(self.untouched(), which))

    @step(lambda self: self.at_work(), which=WHICH, outcome=st.sampled_from(SUCCESSES))
    def succeed(self, which: int, outcome: str) -> None:
        self.answer(which, outcome)

    @step(lambda self: self.at_work(), which=WHICH, outcome=st.sampled_from(FAILURES))
    def fail(self, which: int, outcome: str) -> None:
        self.answer(which, outcome)

    @step(lambda self: self.at_work(), which=WHICH, outcome=st.sampled_from(FAILURES))
    def fail_again_and_again(self, which: int, outcome: str) -> None:
        """Always the same, until it dies of it or something else comes between."""
        relay, held = one_of(self.at_work(), which)
        key = held.key
        for _ in range(len(SCHEDULE) + 1):
            self.end(relay, held, outcome)
            self.let(relay, "record")
            self.everything_holds()
            if key not in self.open or self.open[key].state is not State.READY:
                break
            self.advance(self.next_due())
            self.perform(self.make.claim(relay, [key[1]], 2))
            self.everything_holds()
            again = [each for each in relay.untouched() if each.key == key]
            if not again:
                break
            held = again[-1]

    @step(lambda self: self.at_work(), which=WHICH)
    def fail_hopelessly(self, which: int) -> None:
        self.answer(which, HOPELESS)

    @step(lambda self: self.at_work() and not self.stopped_gates(), which=WHICH)
    def refuse_credentials(self, which: int) -> None:
        """It is recorded at once: all relays stop."""
        self.answer(which, REFUSED)
        for relay in self.with_("record"):
            self.let(relay, "record")

    @step(
        lambda self: self.active() and self.stopped_gates(),
        which=WHICH,
        number=WHICH,
        outcome=st.sampled_from([*SUCCESSES, FAILED, REFUSED]),
    )
    def try_a_breaker(self, which: int, number: int, outcome: str) -> None:
        """Mostly when its time has come."""
        relay = one_of(self.active(), which)
        if number % 4:
            self.advance(self.next_due())
        self.let(relay, "probe", number)
        self.everything_holds()
        if number % 2:
            for held in self.beginnable(relay):
                self.end(relay, held, outcome)
            self.let(relay, "record")

    @step(lambda self: self.at_work(), trouble=True, which=WHICH)
    def skip(self, which: int) -> None:
        self.answer(which, SKIPPED)

    @step(
        lambda self: self.active() and self.lanes_in_latest() and len(self.sent) < MOST,
        which=WHICH,
        number=WHICH,
        outcome=st.sampled_from(SUCCESSES),
        second=SECOND,
    )
    def follow_up(self, which: int, number: int, outcome: str, second: int) -> None:
        """Another event of a lane where one has succeeded or died comes, new or late, and is delivered if need be."""
        relay = one_of(self.active(), which)
        self.arrive([(one_of(self.lanes_in_latest(), number), second, ("latest",))])
        self.let(relay, "sequence all")
        self.everything_holds()
        self.let(relay, "claim", ROUTES.index("latest"))
        for held in self.beginnable(relay):
            self.end(relay, held, outcome)
        self.let(relay, "record")
