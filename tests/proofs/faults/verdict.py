"""The end of a run: everything gets well, and then all evidence is held against each other."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from inbox.events.timestamps import as_time
from tests.helpers import checkers
from tests.helpers.agreement import disagreements, enrolled
from tests.helpers.checkers import Call, Interval, Line, Takeover
from tests.helpers.tables import Row, facts, open_states, relay_pids, rows, stored
from tests.helpers.waiting import until
from tests.proofs.faults import timeline
from tests.proofs.faults.fault_actions import verify
from tests.proofs.faults.relays import DISCARDED, STARTED
from tests.proofs.faults.rig import Rig

ACKNOWLEDGED_WITHIN = 30.0
DELIVERED_WITHIN = 60.0
"""The last lease ends 15 s after the last fault; the rest is what had to wait for it."""
CRASH_LOOP = "crash_loop"
SHOWN = 5
CAUGHT_WHILE_SENDING = 4


class Evidence(msgspec.Struct, frozen=True):
    """All that a run has left behind. Times of facts are monotonic, as those of ledgers."""

    sends: Sequence[Line]
    arrivals: Sequence[Line]
    faults: Sequence[Line]
    cuts: Sequence[Line]
    inbox: Sequence[Row]
    facts: Sequence[Row]
    present: Sequence[Row]
    pids: Mapping[str, int]
    """Of every relay node."""
    callers: Mapping[str, str]
    """Relay nodes by the names under which the downstream service knows them."""
    logs: Mapping[str, str]
    starts_of_postgres: int = 0
    slowness: float = 1.0
    """Of the machine; see `Rig`."""


class Verdict(msgspec.Struct, frozen=True):
    """Findings and counts of a run."""

    findings: Mapping[str, Sequence[object]]
    counts: Mapping[str, Any]


def conclude(rig: Rig, undone: Sequence[str]) -> Verdict:
    """Let everything finish, stop it in order, and judge. `undone` is what could not be done to the rig."""
    trouble: dict[str, Sequence[object]] = {"the rig": undone}
    rig.sender.enough()
    try:
        until(lambda: rig.sender.is_done, "every event is acknowledged", within=ACKNOWLEDGED_WITHIN * rig.slowness)
        until(lambda: _all_delivered(rig), "everything is delivered", within=DELIVERED_WITHIN * rig.slowness, poll=0.3)
    except AssertionError as late:
        trouble["liveness"] = [str(late), open_states(rig.store.engine)]
    verify(rig)
    try:
        trouble["exit statuses"] = sorted(rig.stop_programs().items())
    except AssertionError as late:
        trouble["did not stop"] = [str(late)]
    rig.sender.stop()
    evidence = gather(rig)
    verdict = judge(evidence, trouble)
    _keep(rig, evidence, verdict)
    return verdict


def told(rig: Rig, verdict: Verdict) -> str:
    """The findings in words, and how to have them again."""
    lines = [f"seed {rig.seed}; everything is kept in {rig.folder}"]
    for name, found in verdict.findings.items():
        shown = ", ".join(str(one) for one in found[:SHOWN])
        lines.append(f"{name}: {len(found)}: {shown}")
    return "\n".join([*lines, f"counts: {verdict.counts}"])


def gather(rig: Rig) -> Evidence:
    """Read everything."""
    engine, store = rig.store.engine, rig.store
    faults = rig.faults.lines()
    logs = rig.site.logs()
    return Evidence(
        sends=rig.sender.sends.lines(),
        arrivals=rig.downstream.arrivals.lines(),
        faults=faults,
        cuts=[] if store.proxy is None else store.proxy.cuts.lines(),
        inbox=stored(engine),
        facts=_monotonic(facts(engine), faults),
        present=rows(engine, "SELECT * FROM open_delivery"),
        pids=relay_pids(engine),
        callers=_callers(logs),
        logs=logs,
        starts_of_postgres=0 if store.postgres is None else store.postgres.starts,
        slowness=rig.slowness,
    )


def judge(evidence: Evidence, trouble: Mapping[str, Sequence[object]]) -> Verdict:
    """Run every checker."""
    e = evidence
    closed = timeline.merged([*timeline.outages(e.faults), *timeline.locked_by_frozen(e.faults)])
    measured = checkers.takeovers(timeline.holdings(e.faults), e.arrivals, e.facts, closed)
    verifications = [line for line in e.faults if line["kind"] == "verify" and timeline.could_tell(line, e.faults)]
    without_lease = checkers.called_without_lease(e.arrivals, e.facts)
    findings: dict[str, Sequence[object]] = {
        **trouble,
        **checkers.of_any_run(e.sends, e.arrivals, e.inbox, e.facts, e.logs),
        "passed over": checkers.passed_over(
            e.sends,
            e.arrivals,
            e.facts,
            e.callers,
            frozen=timeline.holdings(e.faults, "freeze a relay"),
            standstills=timeline.standstills(e.faults),
        ),
        "abandoned without cause": checkers.abandoned_without_cause(
            e.facts, timeline.troubles(e.faults, e.cuts, e.pids)
        ),
        "recorded by another": checkers.recorded_by_another(e.arrivals, e.facts, e.callers),
        "called without a lease": without_lease if len(without_lease) > _allowed_without_lease(e.faults) else [],
        "log and state disagree": list(disagreements(enrolled(e.inbox), e.facts, e.present)),
        "slow takeovers": checkers.slow_takeovers(measured, slowness=e.slowness),
        "verify": [line["told"] for line in verifications if line["status"]],
        "replaced relays that did not end well": [
            line for line in e.faults if line["kind"] == "replace a relay" and line["node"] and line["status"]
        ],
        "relays that ended by themselves": [
            line for line in e.faults if line["kind"] == "a relay ended by itself" and line["node"]
        ],
    }
    counts = _counts(e, measured, len(verifications))
    return Verdict({name: found for name, found in findings.items() if found}, counts)


def _all_delivered(rig: Rig) -> bool:
    states = open_states(rig.store.engine)
    if set(states) == {"dead"}:  # killed thrice over the same delivery, by chance
        reason = ("--reason", "the faults are over")
        program = rig.start("replay", "replay", "--cause", CRASH_LOOP, "--force", *reason, "--yes")
        assert program.ends(30) == 0, program.output
    return not states


def _counts(e: Evidence, measured: Mapping[Call, Takeover], verifications: int) -> dict[str, Any]:
    outcomes = Counter(line["outcome"] for line in e.sends)
    kinds = Counter(fact["kind"] for fact in e.facts)
    kills = [line for line in e.faults if line["kind"] == "kill a relay"]
    seconds = [takeover.seconds for takeover in measured.values()]
    full = [Interval(line["begin"], line["end"]) for line in e.faults if line["kind"] == "fill the disk"]
    refusals = [line for line in e.sends if line.get("status") == 503]
    return {
        "events": len(e.inbox),
        "requests": outcomes[None],
        "answered 200": outcomes["ok"],
        "repeats refused": sum(line.get("answer") == "duplicate" for line in e.sends),
        "answered 503": len(refusals),
        "answered 503 while the disk was full": sum(
            any(window.begin <= line["at"] <= window.end for window in full) for line in refusals
        ),
        "answer unknown": outcomes["unknown"],
        "calls": len(e.arrivals),
        "calls refused downstream": sum(line["status"] >= 300 for line in e.arrivals),
        "answers lost downstream": sum(not line.get("sent", True) for line in e.arrivals),
        "called without a lease": len(checkers.called_without_lease(e.arrivals, e.facts)),
        "repeated calls": len(checkers.repeats(e.arrivals)),
        "delivered late": sum(bool(fact["detail"].get("late")) for fact in e.facts),
        "abandoned": kinds["abandoned"],
        "crash loops": sum(fact["detail"].get("cause") == CRASH_LOOP for fact in e.facts if fact["kind"] == "dead"),
        "replayed": kinds["replayed"],
        "not counted": sum(fact["detail"].get("counted") is False for fact in e.facts),
        "late results discarded": sum(text.count(DISCARDED) for text in e.logs.values()),
        "database trouble told": sum(text.count("database trouble") for text in e.logs.values()),
        "kills of a relay at work": sum(bool(line["held"]) for line in kills),
        "takeovers": len(measured),
        "takeover p50 s": round(statistics.median(seconds), 1) if seconds else None,
        "takeover max s": round(max(seconds), 1) if seconds else None,
        "of these over 20 s": sum(takeover > 20 for takeover in seconds),
        "commits cut": len(e.cuts),
        "commits done though nobody knew": sum(line["committed"] is True for line in e.cuts),
        "starts of Postgres": e.starts_of_postgres,
        "slowness": round(e.slowness, 2),
        "verified": verifications,
        "faults": dict(sorted(Counter(line["kind"] for line in e.faults if line["kind"] not in _NO_FAULTS).items())),
    }


_NO_FAULTS = frozenset({"clock", "verify", "start a relay"})


def _allowed_without_lease(faults: Iterable[Line]) -> int:
    """Few: a thread would have to be caught in the moment between looking at its lease and sending."""
    return CAUGHT_WHILE_SENDING * len([line for line in faults if line["kind"] == "freeze a relay"])


def _callers(logs: Mapping[str, str]) -> dict[str, str]:
    """By the names of their logs: 07-relay-5.log is that of relay-5."""
    started = {name.split("-", 1)[1].removesuffix(".log"): STARTED.search(text) for name, text in logs.items()}
    return {name: found.group(1) for name, found in started.items() if found}


def _monotonic(found: Sequence[Row], faults: Sequence[Line]) -> list[Row]:
    clock = next(line for line in faults if line["kind"] == "clock")
    base: datetime = as_time(clock["database"])
    return [{**row, "at": clock["at"] + (row["at"] - base).total_seconds()} for row in found]


def _keep(rig: Rig, evidence: Evidence, verdict: Verdict) -> None:
    """Save the verdict, and after findings the contents of the database. The ledgers are there already."""
    for name in ("inbox", "facts", "present") if verdict.findings else ():
        with (rig.folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, default=str) + "\n" for row in getattr(evidence, name))
    kept = {"at": time.monotonic(), "findings": verdict.findings, "counts": verdict.counts}
    (rig.folder / "verdict.json").write_text(json.dumps(kept, indent=1, default=str), encoding="utf-8")
