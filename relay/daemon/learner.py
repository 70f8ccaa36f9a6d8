"""Learns the shapes of payloads in a thread of its own, so that it delays neither deliveries nor intake.

The database grants each turn (`relay.store.shapes`), so that one relay process at a time learns. A round is bounded: in the
events that it looks at, in the part of each body that it reads, and in its share of the process's time.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy.exc import SQLAlchemyError

from inbox.clock import steady
from inbox.config.source import Source
from relay.observe import Observer
from relay.shapes.learn import ANY, ObservedEvent, learn
from relay.shapes.observe import observe
from relay.shapes.paths import ROOT
from relay.shapes.sample import Candidate, bound_types, choose
from relay.steps import Steps
from relay.store import shapes
from relay.store.bulkhead import in_parts
from relay.store.database import Database

STEP = "learn"
LOOK_EVERY_SECONDS = 1.0
MOST_LEARNED = 1_000
"""Events that a round learns."""
BATCH = 20
"""Bodies that are read between two rests."""
LEARNED_AT_ONCE = 100
"""Events that are added to a shape between two rests."""
REST = 4.0
"""A rest lasts so many times as long as the work before it: others have most of the interpreter's time."""
ROUND_SECONDS = 30.0
"""The longest time for which a round reads bodies; it stays within the lease."""

Shape = tuple[str, str]
"""A source and an event type."""


class Learner:
    """The learning thread. It ends soon after `stop` is set, and the next relay repeats what was not stored."""

    def __init__(
        self,
        database: Database,
        node: str,
        sources: Mapping[str, Source],
        *,
        stop: threading.Event,
        observer: Observer,
        steps: Steps,
    ) -> None:
        self._database = database
        self._node = node
        self._sources = sources
        self._stop = stop
        self._observer = observer
        self._steps = steps
        self._thread = threading.Thread(target=self._work, name="learn", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def replace_sources(self, sources: Mapping[str, Source]) -> None:
        """Learn from other sources from the next round on."""
        self._sources = sources

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, at most so long."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def run_due(self) -> None:
        """Run a round, if one is due."""
        try:
            self._steps.run("learn", self._take_turn, None)
        except SQLAlchemyError as error:  # there was no connection either
            self._observer.database_trouble("learning shapes", error)

    def _work(self) -> None:
        while not self._stop.wait(LOOK_EVERY_SECONDS):
            try:
                self.run_due()
            except Exception as error:  # noqa: BLE001  # without this thread nobody learns, and nobody notices
                self._observer.bug_in_thread("learn", error)

    def _take_turn(self) -> None:
        if not shapes.is_due(self._database):
            return
        turn = shapes.take(self._database, self._node)
        if turn is None:
            return
        is_finished = False
        try:
            is_finished = self._round(turn)
        finally:
            if not is_finished:
                shapes.give_back(self._database, self._node)

    def _round(self, turn: shapes.LearningTurn) -> bool:
        """Learn the events of a turn. Returns False when the process is to end, or another relay has the turn by now."""
        found = [each for each in shapes.candidates(self._database, turn) if self._is_learned(each.source)]
        chosen = bound_types(choose(found, MOST_LEARNED), shapes.known_types(self._database))
        seen = self._observe(chosen)
        parts = in_parts(
            self._database,
            STEP,
            list(seen),
            part=lambda some: self._learn(turn, {shape: seen[shape] for shape in some}),
            name=lambda shape: f"shape of {shape[0]} {shape[1]}",
            apart=lambda some: [[shape] for shape in some],
        )
        for has_turn in parts:
            if not has_turn or self._stop.is_set():
                return False
        if self._stop.is_set():
            return False
        learned = sum(map(len, seen.values()))
        arrived = len(found) if turn.numbers <= shapes.LOOKED_AT else turn.numbers
        shapes.finish(self._database, turn, learned=learned, passed_over=arrived - learned)
        return True

    def _is_learned(self, source: str) -> bool:
        return source in self._sources and self._sources[source].shapes

    def _observe(self, chosen: Sequence[Candidate]) -> Mapping[Shape, list[ObservedEvent]]:
        """Read the structure of these events, with rests, for as long as a round may take."""
        seen: defaultdict[Shape, list[ObservedEvent]] = defaultdict(list)
        until = steady() + ROUND_SECONDS
        for first in range(0, len(chosen), BATCH):
            began = steady()
            batch = {each.seq: each for each in chosen[first : first + BATCH]}
            for body in shapes.bodies(self._database, list(batch)):
                event = batch[body.seq]
                structure = observe(body.beginning, event.content_type, size=body.size, entity_id=event.entity_id)
                seen[event.source, event.event_type].append(ObservedEvent(event.seq, event.at, structure))
            if self._stop.wait((steady() - began) * REST) or steady() >= until:
                break
        return seen

    def _learn(self, turn: shapes.LearningTurn, seen: Mapping[Shape, Sequence[ObservedEvent]]) -> bool:
        """Add events to their shapes. Returns False when another relay has the turn by now."""
        parts = (
            (shape, events[first : first + LEARNED_AT_ONCE])
            for shape, events in seen.items()
            for first in range(0, len(events), LEARNED_AT_ONCE)
        )
        for (source, event_type), events in parts:
            began = steady()
            known = shapes.read(self._database, source, event_type)
            root = known.get((ROOT, ANY))
            new = [event for event in events if root is None or event.seq > root.last_seq]  # a round may be repeated
            learned = learn(known, new)
            try:
                if learned.changed or learned.folded:
                    shapes.write(self._database, turn, source, event_type, learned)
            except shapes.TurnLost:
                return False
            if self._stop.wait((steady() - began) * REST):
                return False
        return True
