"""Formats counts, times, states and the history of a delivery for the page and both command lines. Pure."""

from __future__ import annotations

import contextlib
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from inbox.events.states import ENDINGS, RETRYING, is_retrying
from inbox.events.timestamps import as_time, rfc3339
from inbox.observe.visible import visible

if TYPE_CHECKING:
    from inbox.config.model import Config
    from inbox.db.reads import Row

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_KILO = 1000
_FEW = 10
"""Durations shorter than this, in seconds, have a decimal."""
_OLDEST_IN_DAYS = 60
"""Times further away than this, in days, are shown as dates."""


def pluralize(word: str) -> str:
    """Return the plural of an English noun, such as `deliveries` of `delivery`."""
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"


def format_count(number: int, word: str) -> str:
    """Return a number with its noun: `1 event`, `2 events`, `12,000 deliveries`."""
    return f"{number:,} {word if number == 1 else pluralize(word)}"


def format_relative(moment: datetime, now: datetime) -> str:
    """Return a time relative to now: `3 min ago`, `in 2 h`; a date if it is far away."""
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    if abs(seconds) > _OLDEST_IN_DAYS * _DAY:
        return f"{moment:%Y-%m-%d}"
    amount = _rough(abs(seconds))
    return f"{amount} ago" if seconds > 0 else f"in {amount}"


def format_time_of_day(moment: datetime, now: datetime) -> str:
    """Return the time of day in UTC, with the date if it is not today's."""
    is_today = moment.date() == now.date()
    return f"{moment:%H:%M:%S}Z" if is_today else f"{moment:%m-%d %H:%M:%S}Z"


def format_duration(seconds: float) -> str:
    """Return a duration: `45 ms`, `1.2 s`, `12 s`, `3 min`, `2 h`, `5 d`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < _FEW else _rough(seconds)


def format_bytes(size: int) -> str:
    """Return a size: `0 bytes`, `1 byte`, `1.2 kB`, `3.4 MB`, `5.6 GB`."""
    if size < _KILO:
        return format_count(size, "byte")
    if size < _KILO**2:
        return f"{size / _KILO:.1f} kB"
    return f"{size / _KILO**2:.1f} MB" if size < _KILO**3 else f"{size / _KILO**3:,.1f} GB"


def describe_state(delivery: Mapping[str, Any], now: datetime) -> str:
    """Return the displayed state of a row of the view `delivery`: `retrying` for a ready one that waits for its next attempt.

    A row without `due_at` is an ended delivery of a backfill.
    """
    waits = is_retrying(delivery["state"], delivery["attempts"], delivery.get("due_at"), now)
    return RETRYING if waits else str(delivery["state"])


def _rough(seconds: float) -> str:
    """Return a duration in its largest unit. Hours and days are used only from two upwards."""
    if seconds < _MINUTE:
        return f"{int(seconds)} s"
    if seconds < 2 * _HOUR:
        return f"{seconds // _MINUTE:.0f} min"
    return f"{seconds // _HOUR:.0f} h" if seconds < 2 * _DAY else f"{seconds // _DAY:.0f} d"


_LATE_SECONDS = 60
"""Seconds after which a due delivery with open gates shows that no relay claims it."""

_DONE, _FAILED, _DEAD, _QUIET = "good", "warn", "bad", "quiet"
_FACTS = {
    "delivered": ("attempt {attempt}: {did}", _DONE),
    "unchanged": ("attempt {attempt}: nothing to send, the destination already has the change", _DONE),
    "attempt_failed": ("attempt {attempt} failed{given_back}, {error_class}: {error}", _FAILED),
    "abandoned": ("attempt {attempt} was cut off: its relay died, or lost the database", _FAILED),
    "dead": ("given up after attempt {attempt}{blocks}, {cause}: {error}", _DEAD),
    "superseded": ("superseded by event {by}", _QUIET),
    "skipped": ("skipped{person}", _QUIET),
    "cancelled": ("cancelled{person}", _QUIET),
    "took_over": ("continues the attempts of event {of}, which it superseded", ""),
    "rescheduled": ("rescheduled{person}: due {due_at}", ""),
    "replayed": ("replayed{edited}{person}", ""),
    "rearmed": ("to be delivered again: a duplicate request may report a change that was not delivered yet", ""),
    "corrected": ("corrected{person}", ""),
    "erased": ("the entity was erased{person}", _QUIET),
}
"""The sentence and tone of each kind of fact."""


MOST_FACTS_OF_A_ROUTE = 40
"""Number of facts shown for each route; the newest are kept."""


class HttpCall(msgspec.Struct, frozen=True):
    """An HTTP call of an attempt."""

    step: str
    method: str
    url: str
    outcome: str
    """HTTP status of the response; `not_sent` or `unknown` without a response."""
    milliseconds: float
    error: str | None
    excerpt: str | None
    """The beginning of an unsuccessful response, redacted; absent for viewers."""
    request: str | None
    """The beginning of the sent body, redacted. Only on the call that failed its attempt; absent for viewers."""


class FactShown(msgspec.Struct, frozen=True):
    """A fact of a route, in words."""

    id: int
    at: datetime
    kind: str
    attempt: int
    says: str
    """One sentence with escaped values."""
    tone: str
    """`good`, `warn`, `bad`, `quiet` or empty."""
    relay_node: str | None
    calls: tuple[HttpCall, ...]


class Hold(msgspec.Struct, frozen=True):
    """A gate that holds a delivery back."""

    says: str
    command: str
    """The command that opens the gate; empty if it opens on its own."""


class RouteProgress(msgspec.Struct, frozen=True):
    """The progress of an event on one route."""

    route: str
    state: str
    """The displayed state: `retrying` while it waits for its next attempt."""
    is_configured: bool
    attempts: int
    due_at: datetime | None
    lane: str | None
    last_error: str | None
    last_status: int | None
    next: str
    """The next step, in one sentence."""
    holds: tuple[Hold, ...]
    facts: tuple[FactShown, ...]
    """The newest facts, in order of time."""
    earlier_facts: int
    """Number of facts before these."""
    head_seq: int | None
    """The head of its lane, if that is another event."""
    waiting: int | None
    """Deliveries waiting in its lane, counted up to 501; None if it has ended."""
    superseded_by: int | None
    commands: tuple[str, ...]
    acts: tuple[str, ...] = ()
    """Acts for operators: `/acts/ACT?seq=…&route=…`."""


def describe_progress(
    event: Row, row: Row, config: Config, now: datetime, *, with_excerpts: bool = True
) -> RouteProgress:
    """Return the progress of an event on a route, from `inbox.db.reads.event` and its row of the view `delivery`."""
    state, seq, route = describe_state(row, now), event["seq"], row["route"]
    lane = next((each for each in event["lanes"] if each["route"] == route), None)
    head = None if lane is None or lane["head_seq"] in {None, seq} else lane
    holds = tuple(list_holds(event, route, config, now)) if state in {"ready", "retrying"} else ()
    facts, earlier = describe_facts(event, route, with_excerpts=with_excerpts)
    commands = [hold.command for hold in holds if hold.command]
    is_lost = route not in config.routes and state not in {*ENDINGS, "in_flight"}
    if is_lost:
        commands = ["relay status", format_command("cancel", "--seq", str(seq), "--route", route, "--reason", "…")]
    elif not is_gone(event):
        commands += suggest_commands(seq, row, state, head, is_held=bool(holds))
    return RouteProgress(
        route=route,
        state=state,
        is_configured=route in config.routes,
        **{name: row[name] for name in ("attempts", "due_at", "lane", "last_error", "last_status", "superseded_by")},
        next=_LOST if is_lost else describe_next_step(event, row, state, head, now, is_held=bool(holds)),
        holds=holds,
        facts=facts,
        earlier_facts=earlier,
        head_seq=None if head is None else head["head_seq"],
        waiting=None if lane is None else lane["waiting"],
        commands=tuple(commands),
    )


def is_gone(event: Row) -> bool:
    """Return whether an event has no payload left to deliver."""
    return event["is_pruned"] or event["erased_at"] is not None


def describe_facts(event: Row, route: str, *, with_excerpts: bool = True) -> tuple[tuple[FactShown, ...], int]:
    """Return the newest facts of a route in words, and the number of earlier ones."""
    facts = [fact for fact in event["facts"] if fact["route"] == route]
    shown = tuple(describe_fact(fact, with_excerpts=with_excerpts) for fact in facts[-MOST_FACTS_OF_A_ROUTE:])
    return shown, len(facts) - len(shown)


def describe_fact(fact: Row, *, with_excerpts: bool) -> FactShown:
    """Return a row of `delivery_log` in words, with its calls. It tolerates malformed details, such as after manual edits."""
    detail = fact["detail"] if isinstance(fact["detail"], dict) else {}
    says, tone = put_in_words(fact["kind"], fact["attempt"], detail)
    given = detail.get("calls")
    calls = [call for call in given if isinstance(call, dict)] if isinstance(given, list) else []
    columns = {name: fact[name] for name in ("id", "at", "kind", "attempt", "relay_node")}
    return FactShown(**columns, says=says, tone=tone, calls=tuple(_call(call, with_excerpts) for call in calls))


def _call(call: Row, with_excerpts: bool) -> HttpCall:
    error = call.get("error")
    shown = (call.get(name) if with_excerpts else None for name in ("excerpt", "request"))
    excerpt, request = (None if each is None else str(each) for each in shown)
    try:
        took = float(call.get("milliseconds", 0))
    except (TypeError, ValueError, OverflowError):
        took = 0.0
    return HttpCall(
        **{name: str(call.get(name, "")) for name in ("step", "method", "url")},
        outcome=str(call.get("status") or call.get("sent", "")),
        milliseconds=took,
        error=None if error is None else str(error),
        excerpt=excerpt,
        request=request,
    )


def put_in_words(kind: str, attempt: int, detail: Row) -> tuple[str, str]:
    """Return a fact in words, and its tone. Unknown kinds, such as those of a newer version, are shown by name."""
    sentence, style = _FACTS.get(kind, ("{kind}{person}", ""))
    words = defaultdict(str, {name: visible(str(value)) for name, value in detail.items()})
    if isinstance(detail.get("due_at"), str):
        with contextlib.suppress(ValueError, OverflowError):  # a malformed time is shown as it is
            words["due_at"] = rfc3339(as_time(detail["due_at"]), "seconds")
    by = f" by {words['who']}" if "who" in detail else ""
    words |= {
        "kind": visible(kind).replace("_", " "),
        "attempt": str(attempt),
        "did": words["did"].replace("_", " "),
        "person": f"{by}: {words['why']}" if "why" in detail else by,
        "blocks": ", and blocks its lane" if detail.get("blocks_lane") else "",
        "edited": "" if "edited_body" not in detail else f" with an edited body{_list_changed(detail)}",
        "given_back": "" if detail.get("counted", True) else " (not counted)",
    }
    return sentence.format_map(words), style


def _list_changed(detail: Row) -> str:
    changed = detail.get("changed")
    return f" ({visible(', '.join(map(str, changed)))})" if isinstance(changed, list) and changed else ""


def list_holds(event: Row, route: str, config: Config, now: datetime) -> Iterator[Hold]:
    """Yield the gates that hold back an event's delivery on a route, each with the command that opens it."""
    keys = {("source", event["source"]), ("route", route)}
    if (configured := config.routes.get(route)) is not None:
        keys.add(("destination", configured.destination))
        if configured.api is not None:
            keys.add(("api", configured.api))
    for gate in event["gates"]:
        kind, name = gate["kind"], gate["name"]
        if kind != "entity" and (kind, name) not in keys:
            continue
        entity = f"{event['entity_type']}/{event['entity_id']}"
        where = f"entity {visible(entity)}" if kind == "entity" else f"{kind} {visible(name)}"
        named = ("--source", event["source"], "--entity", entity) if kind == "entity" else (f"--{kind}", name)
        for sentence in describe_holds(gate, now):
            yield Hold(f"{where} {sentence}", format_command("resume", *named))
        used_until = gate["rate_used_until"]
        if gate["breaker"] == "closed" and used_until is not None and used_until > now:
            yield Hold(f"{where}: its rate limit is used up, more calls follow {format_relative(used_until, now)}", "")


def describe_holds(gate: Row, now: datetime) -> Iterator[str]:
    """Yield a sentence for each reason why a row of `gate` holds deliveries back: a pause, a rate hold, a circuit breaker."""
    if gate["paused_at"] is not None:
        by, why = visible(str(gate["paused_by"])), visible(str(gate["pause_reason"]))
        yield f"was paused {format_relative(gate['paused_at'], now)} by {by}: {why}"
    if gate["held_until"] is not None and gate["held_until"] > now:
        why = visible(str(gate["hold_reason"]))
        yield f"asked for no call until its limit ends {format_relative(gate['held_until'], now)}: {why}"
    if gate["breaker"] != "closed":
        is_final, cause = gate["breaker"] == "retired", visible(str(gate["breaker_cause"]))
        until = (
            "" if gate["breaker_until"] is None else f", the next probe {format_relative(gate['breaker_until'], now)}"
        )
        state = gate["breaker"].replace("_", " ")
        yield f"is retired: {cause}" if is_final else f"has its circuit breaker {state}{until}: {cause}"


_LOST = "nothing: inbox.toml has no such route any more; `relay status` says how to go on"
_NEXT = {
    "received": "a relay orders it in its lane",
    "waiting": "waits in its lane",
    "blocked": "nothing: it is dead and blocks its lane until an operator decides",
    "dead": "nothing, until an operator replays it",
}


def describe_next_step(event: Row, delivery: Row, state: str, head: Row | None, now: datetime, *, is_held: bool) -> str:
    """Return the next step of a delivery as a sentence, from its row of the view `delivery` and the head of its lane."""
    if state in {"ready", "retrying"}:
        late = (now - delivery["due_at"]).total_seconds() > _LATE_SECONDS
        then = ", once nothing holds it back" if is_held else "; no relay has claimed it yet" if late else ""
        return f"attempt {delivery['attempts'] + 1}, due {format_both_times(delivery['due_at'], now)}{then}"
    if state == "waiting" and head is not None:
        stopped = ", which is dead and blocks their lane" if head["head_state"] == "blocked" else ""
        return f"waits in its lane behind event {head['head_seq']}{stopped}"
    if state == "in_flight":
        relay = next((each for each in event["relays"] if each["id"] == delivery["relay_node"]), None)
        by = "" if relay is None else f", by the relay on {visible(relay['host'])} with pid {relay['pid']}"
        return f"attempt {delivery['attempts']} is running{by}"
    return _NEXT.get(state, "nothing: it has ended")


ACTS: Mapping[str, tuple[str, ...]] = {
    "dead": ("replay", "cancel"),
    "blocked": ("replay", "unblock", "cancel"),
    RETRYING: ("retry", "cancel"),
    **dict.fromkeys(("ready", "received", "waiting"), ("cancel",)),
    **dict.fromkeys((each for each in ENDINGS if each != "superseded"), ("replay",)),
}
"""The acts that apply to a delivery in each state, the most useful first."""


def suggest_commands(seq: int, delivery: Row, state: str, head: Row | None, *, is_held: bool) -> Iterator[str]:
    """Yield the commands that help with a delivery in this state."""
    if state in {"ready", "received"}:
        yield from () if is_held else ("relay status",)
    elif state == "waiting":
        yield from () if head is None else (f"inbox show {head['head_seq']}",)
    elif state == "superseded":
        yield f"inbox show {delivery['superseded_by']}"
    else:
        of_it = ("--seq", str(seq), "--route", str(delivery["route"]), "--reason", "…")
        yield from (format_command(each, *of_it) for each in ACTS.get(state, ()))


def format_command(name: str, *arguments: str) -> str:
    """Return a `relay` command to copy."""
    return visible(shlex.join(("relay", name, *arguments)))


def format_both_times(moment: datetime, now: datetime) -> str:
    """Return a time relative to now, followed by the exact time."""
    return f"{format_relative(moment, now)} ({rfc3339(as_time(moment), 'seconds')})"
