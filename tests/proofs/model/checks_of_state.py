"""Nothing is lost or made up, and what is stored follows from the facts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from relay.delivery.lifecycle import HEADS, FoldedState, State
from tests.proofs.model.history import LaneKey
from tests.proofs.model.receiver import KEPT_REPEATS
from tests.proofs.model.snapshot import Moment
from tests.proofs.model.world import Repeat


def acknowledged_is_stored_once(moment: Moment) -> Sequence[object]:
    expected = sorted((seq, event.dedup_key) for seq, event in moment.ledger.events.items())
    return [] if expected == moment.stored.inbox else [(expected, moment.stored.inbox)]


def every_delivery_is_open_or_ended(moment: Moment) -> Sequence[object]:
    return [
        key
        for key in moment.ledger.lanes
        if key not in moment.after and moment.history.standing.get(key, FoldedState()).state is not State.ENDED
    ]


def nothing_is_made_up(moment: Moment) -> Sequence[object]:
    return sorted((moment.after.keys() | moment.history.standing.keys()) - moment.ledger.lanes.keys())


def facts_fold_to_the_rows(moment: Moment) -> Sequence[object]:
    evidence: list[object] = list(moment.history.impossible.items())
    for key, row in moment.after.items():
        standing = moment.history.standing.get(key, FoldedState())
        used = row.attempt - int(row.state is State.IN_FLIGHT)  # the attempt that runs is no fact yet
        state = row.state if row.state in {State.BLOCKED, State.DEAD} else State.RECEIVED
        early = row.due_at is not None and standing.due_at is not None and row.due_at < standing.due_at
        if (standing.state, standing.attempt, standing.run, standing.crashes) != (
            (state, used, row.run, row.crashes)
        ) or early:
            evidence.append((standing, row))
    return evidence + [
        key
        for key, standing in moment.history.standing.items()
        if standing.state is State.ENDED and key in moment.after
    ]


def waiting_lanes_have_one_head(moment: Moment) -> Sequence[object]:
    lanes: dict[LaneKey, list[State]] = defaultdict(list)
    for row in moment.after.values():
        lanes[row.route, row.lane].append(row.state)
    evidence = []
    for lane, states in lanes.items():
        heads, waiting = sum(state in HEADS for state in states), states.count(State.WAITING)
        if heads > 1 or (waiting and not heads):
            evidence.append((lane, states))
    return evidence


def lane_remembers_its_last_success(moment: Moment) -> Sequence[object]:
    return [] if moment.lasts == moment.stored.lanes else [(moment.lasts, moment.stored.lanes)]


def every_repeat_is_stored(moment: Moment) -> Sequence[object]:
    """As a row or as a count, which is to be judged; of each event so many rows at most."""
    repeats = moment.stored.repeats.values()
    rows, stored = Counter(repeat.seq for repeat in repeats), _times(repeats)
    too_many = [seq for seq, number in rows.items() if number > KEPT_REPEATS]
    to_judge = {repeat.seq for repeat in repeats if not repeat.is_handled}
    unseen = (stored - _times(moment.earlier.repeats.values())).keys() - to_judge
    agrees = stored == moment.ledger.repeats and not too_many and not unseen
    return [] if agrees else [(stored, moment.ledger.repeats, too_many, unseen)]


def _times(repeats: Iterable[Repeat]) -> Counter[int]:
    """Count the duplicates of each event."""
    times: Counter[int] = Counter()
    for repeat in repeats:
        times[repeat.seq] += repeat.times
    return times


def verify_agrees(moment: Moment) -> Sequence[object]:
    return moment.doing.differences
