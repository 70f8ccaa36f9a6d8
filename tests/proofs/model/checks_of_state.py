"""Nothing is lost or made up, and what is stored follows from the facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from relay.delivery.lifecycle import FoldedState, State
from tests.helpers.agreement import follows, lanes_without_their_head
from tests.proofs.model.receiver import KEPT_REPEATS
from tests.proofs.model.snapshot import Snapshot
from tests.proofs.model.world import Repeat


def acknowledged_is_stored_once(snapshot: Snapshot) -> Sequence[object]:
    expected = sorted((seq, event.dedup_key) for seq, event in snapshot.ledger.events.items())
    return [] if expected == snapshot.stored.inbox else [(expected, snapshot.stored.inbox)]


def every_delivery_is_open_or_ended(snapshot: Snapshot) -> Sequence[object]:
    return [
        key
        for key in snapshot.ledger.lanes
        if key not in snapshot.after and snapshot.history.standing.get(key, FoldedState()).state is not State.ENDED
    ]


def nothing_is_made_up(snapshot: Snapshot) -> Sequence[object]:
    return sorted((snapshot.after.keys() | snapshot.history.standing.keys()) - snapshot.ledger.lanes.keys())


def facts_fold_to_the_rows(snapshot: Snapshot) -> Sequence[object]:
    evidence: list[object] = list(snapshot.history.impossible.items())
    for key, row in snapshot.after.items():
        standing = snapshot.history.standing.get(key, FoldedState())
        if not follows(standing, row.state, attempt=row.attempt, run=row.run, crashes=row.crashes, due_at=row.due_at):
            evidence.append((standing, row))
    return evidence + [
        key
        for key, standing in snapshot.history.standing.items()
        if standing.state is State.ENDED and key in snapshot.after
    ]


def waiting_lanes_have_one_head(snapshot: Snapshot) -> Sequence[object]:
    return list(lanes_without_their_head(((row.route, row.lane), row.state) for row in snapshot.after.values()))


def lane_remembers_its_last_success(snapshot: Snapshot) -> Sequence[object]:
    return [] if snapshot.lasts == snapshot.stored.lanes else [(snapshot.lasts, snapshot.stored.lanes)]


def every_repeat_is_stored(snapshot: Snapshot) -> Sequence[object]:
    """As a row or as a count, which is to be judged; of each event so many rows at most."""
    repeats = snapshot.stored.repeats.values()
    rows, stored = Counter(repeat.seq for repeat in repeats), _times(repeats)
    too_many = [seq for seq, number in rows.items() if number > KEPT_REPEATS]
    to_judge = {repeat.seq for repeat in repeats if not repeat.is_handled}
    unseen = (stored - _times(snapshot.earlier.repeats.values())).keys() - to_judge
    agrees = stored == snapshot.ledger.repeats and not too_many and not unseen
    return [] if agrees else [(stored, snapshot.ledger.repeats, too_many, unseen)]


def _times(repeats: Iterable[Repeat]) -> Counter[int]:
    """Count the duplicates of each event."""
    times: Counter[int] = Counter()
    for repeat in repeats:
        times[repeat.seq] += repeat.times
    return times


def verify_agrees(snapshot: Snapshot) -> Sequence[object]:
    return snapshot.doing.differences
