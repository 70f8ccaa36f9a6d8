"""The end of a run: everything recovers, and then all checkers run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from inbox.db.order_lock import HELD_SECONDS
from inbox.events.timestamps import as_time
from relay.store.leases import MOST_UNNOTICED_SECONDS
from tests.helpers import checkers
from tests.helpers.agreement import disagreements, list_enrolled
from tests.helpers.checkers import Holding, Interval, Line
from tests.helpers.databases import down
from tests.helpers.killable_postgres import KillablePostgres
from tests.helpers.tables import Row, facts, open_states, read_inbox, relay_pids, rows
from tests.helpers.waiting import until
from tests.proofs.faults import cuts
from tests.proofs.faults.plan import Fault, Streams
from tests.proofs.faults.rig import DISCARDED, STARTED, STEPPED, Rig, full

BREATH = 0.3
"""Least seconds between two faults of a stream."""
CUT_WITHIN = 6.0
VERIFIED_WITHIN = 60.0
FULL_AT_MOST = 20.0


def do_all(rig: Rig, streams: Streams) -> list[str]:
    """Carry out all planned faults, with the streams in parallel.

    Returns:
        Failed faults; the first one stops the rest.
    """
    failures: list[str] = []
    began = time.monotonic()

    def do(name: str) -> None:
        try:
            for fault in streams[name]:
                if rig.stopping.wait(max(BREATH, began + fault.at * rig.slowness - time.monotonic())):
                    return
                DEEDS[fault.kind](rig, name, fault)
        except Exception as error:  # noqa: BLE001  # any error is reported with all the evidence
            where = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(f"{name}: {error!r} ({where.name}, line {where.lineno})")
            rig.stopping.set()

    threads = [threading.Thread(target=do, args=(name,), name=name) for name in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def _kill_workers(rig: Rig, _stream: str, fault: Fault) -> None:
    workers = rig.receiver.children()
    with _record_fault(rig, fault, outage=False):
        for pid in workers[: None if fault.kind == "kill all workers" else 1]:
            _send(pid, signal.SIGKILL)
        until(lambda: set(rig.receiver.children()) - set(workers), "gunicorn started another worker")


def _freeze_worker(rig: Rig, _stream: str, fault: Fault) -> None:
    """Freeze a worker, which may hold the write lock on SQLite."""
    for pid in rig.receiver.children()[:1]:
        with _record_fault(rig, fault, outage=rig.store.postgres is None):
            _send(pid, signal.SIGSTOP)
            rig.stopping.wait(fault.seconds)
            _send(pid, signal.SIGCONT)


def _take_postgres_away(rig: Rig, _stream: str, fault: Fault) -> None:
    server = _postgres(rig)
    with _record_fault(rig, fault):
        if fault.kind == "kill Postgres":
            server.kill()
        else:
            server.stop("immediate" if fault.kind == "stop Postgres at once" else "fast")
        rig.stopping.wait(fault.seconds)
        server.start()


def _kill_backend(rig: Rig, _stream: str, fault: Fault) -> None:
    with _record_fault(rig, fault):
        _postgres(rig).kill_backend()
        _postgres(rig).wait()


def _hold_up_database(rig: Rig, _stream: str, fault: Fault) -> None:
    """Freeze Postgres, or lock SQLite as a tool left in a transaction does."""
    held_up = down(rig.store.url) if fault.kind == "lock SQLite" else _postgres(rig).frozen()
    with _record_fault(rig, fault), held_up:
        rig.stopping.wait(fault.seconds)


def _fill_disk(rig: Rig, _stream: str, fault: Fault) -> None:
    """Fill the disk. Postgres ends itself when it cannot write its log, and is started again afterwards.

    SQLite's log is truncated before, or SQLite would go on in its free part.
    """
    server = rig.store.postgres
    assert rig.store.disk is not None
    with _record_fault(rig, fault):
        if server is None:
            rows(rig.store.engine, "PRAGMA wal_checkpoint(TRUNCATE)")
        with full(rig.store.disk):
            refused = rig.sender.refused
            rig.stopping.wait(fault.seconds)
            until(
                lambda: rig.stopping.is_set() or rig.sender.refused > refused,
                "the receiver refuses what it can't store",
                within=FULL_AT_MOST,
            )
        if server is not None:
            if not server.runs:
                server.start()
            server.wait()


def _cut_commit(rig: Rig, _stream: str, fault: Fault) -> None:
    assert rig.store.cuts is not None
    pending = cuts.order(rig.store.cuts, *fault.about.split())
    deadline = time.monotonic() + CUT_WITHIN
    while pending.exists() and time.monotonic() < deadline and not rig.stopping.wait(0.1):
        pass
    pending.unlink(missing_ok=True)


def verify(rig: Rig) -> None:
    """Run `relay verify` and record its result."""
    begin = time.monotonic()
    program = rig.start("verify", "verify", "--json")
    status = program.ends(VERIFIED_WITHIN)
    told = "" if status == 0 else program.output
    rig.faults.append(kind="verify", begin=begin, end=time.monotonic(), status=status, told=told)


DEEDS: Mapping[str, Callable[[Rig, str, Fault], None]] = {
    "kill a relay": lambda rig, stream, _: rig.relays[stream].kill(),
    "freeze a relay": lambda rig, stream, fault: rig.relays[stream].freeze(fault.seconds),
    "replace a relay": lambda rig, stream, _: rig.relays[stream].replace(),
    "kill a worker": _kill_workers,
    "kill all workers": _kill_workers,
    "freeze a worker": _freeze_worker,
    "kill Postgres": _take_postgres_away,
    "stop Postgres at once": _take_postgres_away,
    "restart Postgres": _take_postgres_away,
    "kill a backend": _kill_backend,
    "freeze Postgres": _hold_up_database,
    "lock SQLite": _hold_up_database,
    "fill the disk": _fill_disk,
    "cut a commit": _cut_commit,
    "verify": lambda rig, *_: verify(rig),
}


@contextlib.contextmanager
def _record_fault(rig: Rig, fault: Fault, *, outage: bool = True) -> Iterator[None]:
    """Record begin and end of a fault, and whether it took the database away."""
    begin = time.monotonic()
    yield
    rig.faults.append(kind=fault.kind, begin=begin, end=time.monotonic(), outage=outage)


def _postgres(rig: Rig) -> KillablePostgres:
    assert rig.store.postgres is not None
    return rig.store.postgres


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# --- The end of a run: everything recovers, and then all checkers run


ACKNOWLEDGED_WITHIN = 30.0
DELIVERED_WITHIN = 60.0
"""Seconds: the last lease ends 15 s after the last fault, and the rest is for waiting deliveries."""
RELAYS_BACK_OFF = 6.0
"""Longest seconds a relay waits after an outage before it tries again."""
RELAYS_TRY_AGAIN = 1.0
"""Longest seconds a relay waits before it tries a released lock again."""
FOREVER = float("inf")
CRASH_LOOP = "crash_loop"
SHOWN = 5
CAUGHT_WHILE_SENDING = 4


class Verdict(msgspec.Struct, frozen=True):
    """Findings and counts of a run."""

    findings: Mapping[str, Sequence[object]]
    counts: Mapping[str, Any]


def conclude(rig: Rig, undone: Sequence[str]) -> Verdict:
    """Let everything finish, stop it in order, and judge. `undone` lists failed faults."""
    trouble: dict[str, Sequence[object]] = {"the rig": undone}
    rig.sender.enough()
    try:
        until(lambda: rig.sender.is_done, "every event is acknowledged", within=ACKNOWLEDGED_WITHIN * rig.slowness)
        until(lambda: _all_delivered(rig), "everything is delivered", within=DELIVERED_WITHIN * rig.slowness, poll=0.3)
    except AssertionError as late:
        trouble["liveness"] = [str(late), open_states(rig.store.engine)]
    verify(rig)
    rig.note_clock()
    try:
        trouble["exit statuses"] = sorted(rig.stop_programs().items())
    except AssertionError as late:
        trouble["did not stop"] = [str(late)]
    rig.sender.stop()
    return _judge(rig, trouble)


def told(rig: Rig, verdict: Verdict) -> str:
    """Describe the findings, and how to reproduce them."""
    lines = [f"seed {rig.seed}; everything is kept in {rig.folder}"]
    for name, found in verdict.findings.items():
        shown = ", ".join(str(one) for one in found[:SHOWN])
        lines.append(f"{name}: {len(found)}: {shown}")
    return "\n".join([*lines, f"counts: {verdict.counts}"])


def _judge(rig: Rig, trouble: Mapping[str, Sequence[object]]) -> Verdict:
    """Run every checker. Logs are named after the caller: 07-relay-5.log is that of relay-5."""
    engine, faults, logs = rig.store.engine, rig.faults.lines(), rig.site.logs()
    sends, arrivals = rig.sender.sends.lines(), rig.downstream.arrivals.lines()
    inbox, present, log = (
        read_inbox(engine),
        rows(engine, "SELECT * FROM open_delivery"),
        _monotonic(facts(engine), faults),
    )
    cut = [] if rig.store.cuts is None else cuts.read_ledger(rig.store.cuts)
    started = {name.split("-", 1)[1].removesuffix(".log"): STARTED.search(text) for name, text in logs.items()}
    callers = {name: found.group(1) for name, found in started.items() if found}
    frozen = [line for line in faults if line["kind"] == "freeze a relay"]
    closed = merge([*outages(faults), *find_locked_by_frozen(faults)])
    stepped = find_clock_steps(faults)
    measured = checkers.takeovers(holdings(faults), arrivals, log, merge([*closed, *stepped]))
    verifications = [line for line in faults if line["kind"] == "verify" and could_tell(line, faults)]
    without_lease = checkers.find_called_without_lease(arrivals, log)
    passed_over = checkers.find_passed_over(
        sends, arrivals, log, callers, frozen=holdings(frozen, "freeze a relay"), standstills=standstills(faults)
    )
    findings: dict[str, Sequence[object]] = {
        **trouble,
        **checkers.run_common_checkers(sends, arrivals, inbox, log, logs),
        "passed over": passed_over,
        "abandoned without cause": checkers.find_abandoned_without_cause(
            log, troubles(faults, cut, relay_pids(engine))
        ),
        "recorded by another": checkers.find_recorded_by_another(arrivals, log, callers),
        # a few are possible, as a thread may be frozen between checking its lease and sending
        "called without a lease": without_lease if len(without_lease) > CAUGHT_WHILE_SENDING * len(frozen) else [],
        "log and state disagree": list(disagreements(list_enrolled(inbox), log, present)),
        "slow takeovers": checkers.find_slow_takeovers(measured, slowness=rig.slowness),
        "verify": [line["told"] for line in verifications if line["status"]],
        "replaced relays that did not end well": [
            line for line in faults if line["kind"] == "replace a relay" and line["node"] and line["status"]
        ],
        "relays that ended by themselves": [
            line for line in faults if line["kind"] == "a relay ended by itself" and line["node"]
        ],
    }
    findings = {name: found for name, found in findings.items() if found}
    counts = {
        **_counts(sends, arrivals, faults, log),
        "late results discarded": sum(text.count(DISCARDED) for text in logs.values()),
        "takeovers": len(measured),
        "slowest takeover": max((takeover.seconds for takeover in measured.values()), default=0.0),
        "commits cut": len(cut),
        "commits done without an answer": sum(line["committed"] is True for line in cut),
        "clock steps of the machine": len(stepped),
        "clock steps seen by relays": sum(text.count(STEPPED) for text in logs.values()),
        "slowness": round(rig.slowness, 2),
        "verified": len(verifications),
    }
    for name, kept in {"inbox": inbox, "facts": log, "present": present}.items() if findings else ():
        with (rig.folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, default=str) + "\n" for row in kept)
    return Verdict(findings, counts)


def _monotonic(log: Sequence[Row], faults: Sequence[Line]) -> list[Row]:
    """Return facts with the ledgers' times."""
    clock = next(line for line in faults if line["kind"] == "clock")
    base = as_time(clock["database"])
    return [{**row, "at": clock["at"] + (row["at"] - base).total_seconds()} for row in log]


def _all_delivered(rig: Rig) -> bool:
    states = open_states(rig.store.engine)
    if set(states) == {"dead"}:  # by chance, three relays were killed over the same delivery
        reason = ("--reason", "the faults are over")
        program = rig.start("replay", "replay", "--cause", CRASH_LOOP, "--force", *reason, "--yes")
        assert program.ends(30) == 0, program.output
    return not states


def _counts(
    sends: Sequence[Line], arrivals: Sequence[Line], faults: Sequence[Line], log: Sequence[Row]
) -> dict[str, Any]:
    full = [Interval(line["begin"], line["end"]) for line in faults if line["kind"] == "fill the disk"]
    refusals = [line for line in sends if line.get("status") == 503]
    return {
        "repeats refused": sum(line.get("answer") == "duplicate" for line in sends),
        "answered 503": len(refusals),
        "answered 503 while the disk was full": sum(
            any(window.begin <= line["at"] <= window.end for window in full) for line in refusals
        ),
        "answer unknown": sum(line["outcome"] == "unknown" for line in sends),
        "calls refused downstream": sum(line["status"] >= 300 for line in arrivals),
        "answers lost downstream": sum(not line.get("sent", True) for line in arrivals),
        "repeated calls": len(checkers.find_repeats(arrivals)),
        "delivered late": sum(bool(fact["detail"].get("late")) for fact in log),
        "abandoned": sum(fact["kind"] == "abandoned" for fact in log),
        "kills of a relay at work": sum(line["kind"] == "kill a relay" and bool(line["held"]) for line in faults),
        "faults": Counter(line["kind"] for line in faults),
    }


# The ledger of faults in the checkers' terms, in monotonic seconds.


def outages(faults: Iterable[Line]) -> list[Interval]:
    """Return the intervals without a database, each until relays try again."""
    return merge(Interval(line["begin"], line["end"] + RELAYS_BACK_OFF) for line in faults if line.get("outage"))


def find_clock_steps(faults: Iterable[Line]) -> list[Interval]:
    """Return the intervals in which the machine's clock stepped: relays rescue no lease for as long as one lasts."""
    noted = [(line["at"], as_time(line["database"]).timestamp()) for line in faults if line["kind"] == "clock"]
    return [
        Interval(at, then)
        for (at, begin), (then, end) in itertools.pairwise(noted)
        if abs((end - begin) - (then - at)) > MOST_UNNOTICED_SECONDS
    ]


def find_locked_by_frozen(faults: Iterable[Line]) -> list[Interval]:
    """Return the intervals in which a frozen relay may hold a route's lock, each until relays try again."""
    held = HELD_SECONDS + RELAYS_TRY_AGAIN
    return [Interval(line["begin"], line["begin"] + held) for line in faults if line["kind"] == "freeze a relay"]


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge overlapping intervals, so that no time is counted twice."""
    apart: list[Interval] = []
    for interval in sorted(intervals, key=lambda interval: interval.begin):
        if apart and interval.begin <= apart[-1].end:
            apart[-1] = Interval(apart[-1].begin, max(interval.end, apart[-1].end))
        else:
            apart.append(interval)
    return apart


def holdings(faults: Iterable[Line], kind: str = "kill a relay") -> list[Holding]:
    """Return the calls in flight at killed relays, or at those hit by another `kind` of fault."""
    return [
        Holding(line["begin"], line["node"], tuple((seq, run, attempt) for seq, run, attempt in line["held"]))
        for line in faults
        if line["kind"] == kind and line["held"]
    ]


def standstills(faults: Iterable[Line]) -> list[Interval]:
    """Return the intervals in which the database was frozen."""
    return [Interval(line["begin"], line["end"]) for line in faults if line["kind"] == "freeze Postgres"]


def troubles(faults: Sequence[Line], cuts: Sequence[Line], pids: Mapping[str, int]) -> dict[str, list[Interval]]:
    """Return the intervals of each relay node's faults: its own, its connection's, and the database's.

    `pids` maps all nodes to their pids.
    """
    found: dict[str, list[Interval]] = defaultdict(list)
    for line in faults:
        if line["kind"] in {"kill a relay", "freeze a relay"}:
            found[line["node"]].append(Interval(line["begin"], FOREVER if "kill" in line["kind"] else line["end"]))
    for node, pid in pids.items():
        found[node] += [Interval(cut["at"], cut["at"]) for cut in cuts if cut["pid"] == pid]
        found[node] += outages(faults)
    return found


def could_tell(verification: Line, faults: Iterable[Line]) -> bool:
    """Return whether `relay verify` had a database to verify."""
    away = any(
        line.get("outage") and line["begin"] <= verification["end"] and verification["begin"] <= line["end"]
        for line in faults
    )
    return not (away and verification["status"] == 2)
