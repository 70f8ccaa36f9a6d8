"""Actions of operators in the model."""

from __future__ import annotations

from hypothesis import strategies as st

from relay.delivery.gates import Gate, GateKey, entity_of
from relay.delivery.lifecycle import State
from relay.operations.asks import Selection
from relay.store.operator.selection import Act
from tests.proofs.model.choosing import Choosing
from tests.proofs.model.snapshot import Violation
from tests.proofs.model.stage import WHICH, one_of, step
from tests.proofs.model.world import OPEN_GATE

GATES = (
    Gate(route="strict"),
    Gate(route="latest"),
    Gate(destination="audit"),
    Gate(source="trivore"),
    Gate(source="trivore", entity_type="USER", entity_id="a"),
    Gate(source="trivore", entity_type="USER", entity_id="b"),
)


class Commanding(Choosing):
    """The rules of persons: commands, and a hand that slips."""

    def do(self, act: Act, selection: Selection) -> int:
        """Look at the plan, and have it done.

        Raises:
            Violation: the plan has promised something else.
        """
        planned = self.make.plan(act, selection)
        changed: int = self.perform(self.make.command(act, selection))
        if changed != planned.count:
            raise Violation("the plan said something else", (act, selection, planned, changed))
        return changed

    @step(lambda self: self.dead(), trouble=True, which=WHICH, force=st.booleans())
    def replay_the_dead(self, which: int, force: bool) -> None:
        """All of a route."""
        self.do("replay", Selection(route=one_of(self.dead(), which)[1], force=force))

    @step(lambda self: self.closed(), trouble=True, which=WHICH, force=st.booleans())
    def replay_an_event(self, which: int, force: bool) -> None:
        """On each of its routes where it has ended or is dead."""
        self.do("replay", Selection(seq=one_of(self.closed(), which), force=force))

    @step(
        lambda self: self.cancellable(),
        trouble=True,
        which=WHICH,
        cause=st.sampled_from(["", "", "mapping", "exhausted", "rejected"]),
    )
    def cancel(self, which: int, cause: str) -> None:
        """An event, on one route or on all of its; or all of a route that have died of the same."""
        seq, route = one_of((self.dead() if cause else None) or self.cancellable(), which)
        if cause:
            self.do("cancel", Selection(route=route, cause=cause))
        else:
            self.do("cancel", Selection(seq=seq, route=route if which % 2 else None))

    @step(lambda self: self.any_open(State.BLOCKED), which=WHICH)
    def unblock(self, which: int) -> None:
        seq, route = one_of([key for key, row in self.open.items() if row.state is State.BLOCKED], which)
        self.do("unblock", Selection(seq=seq, route=route))

    @step(lambda self: self.due_later(), trouble=True, which=WHICH, by=st.sampled_from(["seq", "route", "destination"]))
    def retry(self, which: int, by: str) -> None:
        """Make one, all of a route, or all to a destination due at once."""
        seq, route = one_of(self.due_later(), which)
        chosen = {
            "seq": Selection(seq=seq, route=route),
            "route": Selection(route=route),
            "destination": Selection(destination="audit"),
        }
        self.do("retry", chosen[by])

    @step(
        lambda self: self.any_open(State.READY) and not self.paused_gates(), trouble=True, gate=st.sampled_from(GATES)
    )
    def hold_back(self, gate: Gate) -> None:
        self.perform(self.make.turn("pause", gate))
        self.everything_holds()
        if not self.stored.gates.get(gate.key, OPEN_GATE).is_paused:
            raise Violation("a pause does not hold", gate)

    @step(lambda self: self.paused_gates(), which=WHICH)
    def let_through(self, which: int) -> None:
        self.perform(self.make.turn("resume", gate_of(one_of(self.paused_gates(), which))))

    @step(lambda self: self.stopped_gates(), trouble=True, which=WHICH)
    def close_a_breaker(self, which: int) -> None:
        self.perform(self.make.turn("resume", gate_of(one_of(self.stopped_gates(), which))))

    @step(trouble=True, mend=st.booleans())
    def verify(self, mend: bool) -> None:
        self.perform(self.make.rebuild() if mend else self.make.verify())


def gate_of(key: GateKey) -> Gate:
    """Return the gate as an operator names this row of `gate`."""
    kind, name = key
    if kind == "entity" and (entity := entity_of(name)):
        source, entity_type, entity_id = entity
        return Gate(source=source, entity_type=entity_type, entity_id=entity_id)
    return Gate(**{kind: name})
