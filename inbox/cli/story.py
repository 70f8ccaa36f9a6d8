"""The story of one event for people: its arrival, and for each route the attempts, what holds it, what comes next. Pure."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from rich.cells import cell_len, chop_cells
from rich.text import Text

from inbox.cli.tables import cut, style_of
from inbox.cli.wording import byte_count, counted, lasting, relative, shown_state
from inbox.config.model import Config
from inbox.events.timestamps import as_time, rfc3339
from inbox.logs.visible import visible

Row = dict[str, Any]

_MOST_FACTS = 40
"""The most facts of a route in its story; the older ones are counted."""
_LATE_SECONDS = 60
"""A due delivery that waits longer, with all its gates open, lacks a relay."""
_LABEL = 22
"""Room for the labels and times before the texts."""
_LEAST_ROOM = 30


class _Line(msgspec.Struct, frozen=True):
    """A line of the story: a label, and a text beside it."""

    label: str
    text: str
    style: str = ""
    fit: Literal["wrap", "cut", "whole"] = "wrap"
    """The form of a text that is too long. A command stays whole, as somebody copies it."""


def story(event: Row, config: Config, now: datetime, width: int | None) -> list[Text]:
    """Tell the story of an event, as `inbox.db.reads.event` reads it, in lines of at most `width`; None: of any length."""
    entity = (
        "" if event["entity_type"] is None else f" {visible(event['entity_type'])}/{visible(event['entity_id'] or '')}"
    )
    heading = f"event {event['seq']}:{entity} {visible(event['event_type'])} from {visible(event['source'])}"
    lines = [Text(line, "bold") for line in ([heading] if width is None else wrapped(heading, width))]
    lines += _laid_out(_arrival(event, now), width)
    for delivery in event["deliveries"]:
        state = visible(shown_state(delivery, now))
        room = None if width is None else max(width - len(f"route : {state}"), _LEAST_ROOM)
        name = visible(str(delivery["route"]))
        route = name if room is None else cut(name, room)
        lines += [Text(), Text.assemble((f"route {route}: ", "bold"), (state, style_of(state)))]
        lines += _laid_out(_route(event, delivery, state, config, now), width)
    if not event["deliveries"]:
        lines += [Text(), Text("no route matched it when it arrived: it is stored, and delivered nowhere")]
    return lines


def _arrival(event: Row, now: datetime) -> Iterator[_Line]:
    yield _Line("arrived", _both(event["received_at"], now))
    yield _Line("happened", _both(event["occurred_at"], now))
    if event["event_id"] is not None:
        yield _Line("sender's id", visible(event["event_id"]))
    is_erased = event["erased_at"] is not None
    if is_erased:
        yield _Line("entity erased", _both(event["erased_at"], now))
    pruned = f"; payload {'erased' if is_erased else 'pruned'}" if event["body"] is None else ""
    yield _Line("body", f"{byte_count(event['body_bytes'])}, {visible(event['content_type'])}{pruned}")
    times = sum(duplicate["times"] for duplicate in event["duplicates"])
    if times:
        last = max(each["last_received_at"] or each["received_at"] for each in event["duplicates"])
        different = sum(each["body"] is not None for each in event["duplicates"])
        bodies = f"; {different} of them with another body" if different else ""
        yield _Line(
            "duplicates", f"{counted(times, 'request')} with the same key, the last {relative(last, now)}{bodies}"
        )


def _route(event: Row, delivery: Row, state: str, config: Config, now: datetime) -> Iterator[_Line]:
    route = delivery["route"]
    facts = [fact for fact in event["facts"] if fact["route"] == route]
    if len(facts) > _MOST_FACTS:
        yield _Line("", f"{counted(len(facts) - _MOST_FACTS, 'earlier fact')}: --json")
    for fact in facts[-_MOST_FACTS:]:
        yield from _fact(fact)
    held = list(_held_back(event, delivery, config, now)) if state in {"ready", "retrying"} else []
    for line, _ in held:
        yield _Line("held back", line, "yellow")
    head = next((head for head in event["heads"] if head["route"] == route), None)
    yield _Line("next", _next(event, delivery, state, head, now, is_held=bool(held)))
    commands = [command for _, command in held if command]
    if event["erased_at"] is None:  # else there is nothing that could be delivered
        commands += _commands(event["seq"], delivery, state, head, is_held=bool(held))
    for number, command in enumerate(commands):
        yield _Line("commands" if number == 0 else "", command, "cyan", fit="whole")


def _fact(fact: Row) -> Iterator[_Line]:
    """Tell one fact: what happened, then each call on a line of its own."""
    detail = fact["detail"]
    text, style = _what(fact["kind"], fact["attempt"], detail)
    yield _Line(rfc3339(fact["at"], "seconds"), text, style)
    for call in detail.get("calls", ()):
        outcome = str(call.get("status") or call.get("sent", ""))
        took = lasting(call.get("milliseconds", 0) / 1000)
        yield _Line("", visible(f"{outcome:<3} {took:>7}  {call.get('method', '')} {call.get('url', '')}"), fit="cut")
        said = call.get("error") or call.get("excerpt")
        if said and said not in str(detail.get("error", "")):
            yield _Line("", f"    {visible(' '.join(str(said).split()))}", fit="cut")


_DONE, _FAILED, _DEAD, _QUIET = "green", "yellow", "red", "bright_black"
_FACTS = {
    "delivered": ("attempt {attempt}: {did}", _DONE),
    "unchanged": ("attempt {attempt}: nothing to send, the other side has the change", _DONE),
    "attempt_failed": ("attempt {attempt} failed{given_back}, {error_class}: {error}", _FAILED),
    "abandoned": ("attempt {attempt} was cut off: its relay died, or lost the database", _FAILED),
    "dead": ("given up after attempt {attempt}{blocks}, {cause}: {error}", _DEAD),
    "superseded": ("superseded by event {by}", _QUIET),
    "skipped": ("skipped{person}", _QUIET),
    "cancelled": ("cancelled{person}", _QUIET),
    "took_over": ("goes on with the attempts of event {of}, which it superseded", ""),
    "rescheduled": ("rescheduled{person}: due {due_at}", ""),
    "rearmed": ("to be delivered again: a duplicate request may stand for a change that is not delivered yet", ""),
    "corrected": ("corrected to {state}{person}", ""),
    "erased": ("the entity was erased{person}", _QUIET),
}
"""The sentence for each kind of fact, and its colour."""


def _what(kind: str, attempt: int, detail: Row) -> tuple[str, str]:
    """Return a fact in words, and its colour. Other kinds, such as those of a newer version, are shown by their name."""
    sentence, style = _FACTS.get(kind, ("{kind}{person}", ""))
    words = defaultdict(str, {name: visible(str(value)) for name, value in detail.items()})
    if isinstance(detail.get("due_at"), str):
        words["due_at"] = rfc3339(as_time(detail["due_at"]), "seconds")
    by = f" by {words['who']}" if "who" in detail else ""
    words |= {
        "kind": visible(kind).replace("_", " "),
        "attempt": str(attempt),
        "did": words["did"].replace("_", " "),
        "person": f"{by}: {words['why']}" if "why" in detail else by,
        "blocks": ", and blocks its lane" if detail.get("blocks_lane") else "",
        "given_back": "" if detail.get("counted", True) else " (not counted)",
    }
    return sentence.format_map(words), style


def _held_back(event: Row, delivery: Row, config: Config, now: datetime) -> Iterator[tuple[str, str]]:
    """Yield the gates that hold the delivery back, each with the command that opens it."""
    keys = {("source", event["source"]), ("route", delivery["route"])}
    if (route := config.routes.get(delivery["route"])) is not None:
        keys.add(("destination", route.destination))
        if route.sync is not None:
            keys.add(("api", route.sync.fetch.api))
    for gate in event["gates"]:
        kind, name = gate["kind"], gate["name"]
        if kind != "entity" and (kind, name) not in keys:
            continue
        entity = f"{event['entity_type']}/{event['entity_id']}"
        where = f"entity {visible(entity)}" if kind == "entity" else f"{kind} {visible(name)}"
        named = ("--source", event["source"], "--entity", entity) if kind == "entity" else (f"--{kind}", name)
        if gate["paused_at"] is not None:
            by, why = visible(str(gate["paused_by"])), visible(str(gate["pause_reason"]))
            yield (
                f"{where} was paused {relative(gate['paused_at'], now)} by {by}: {why}",
                command("resume", *named),
            )
        if gate["held_until"] is not None and gate["held_until"] > now:
            why = visible(str(gate["hold_reason"]))
            yield (
                f"{where} asked for no call until its limit ends {relative(gate['held_until'], now)}: {why}",
                command("resume", *named),
            )
        if gate["breaker"] != "closed":
            yield _breaker(gate, where, now), command("resume", *named)
        elif gate["rate_used_until"] is not None and gate["rate_used_until"] > now:
            yield f"{where}: its rate limit is used up, more calls follow {relative(gate['rate_used_until'], now)}", ""


def _breaker(gate: Row, where: str, now: datetime) -> str:
    cause = visible(str(gate["breaker_cause"]))
    if gate["breaker"] == "retired":
        return f"{where} is retired: {cause}"
    until = "" if gate["breaker_until"] is None else f", the next probe {relative(gate['breaker_until'], now)}"
    return f"{where}: its circuit breaker is {gate['breaker'].replace('_', ' ')}{until}: {cause}"


_NEXT = {
    "received": "a relay orders it in its lane",
    "waiting": "waits in its lane",
    "blocked": "nothing: it is dead, and its lane waits until somebody decides",
    "dead": "nothing, until somebody replays it",
}


def _next(event: Row, delivery: Row, state: str, head: Row | None, now: datetime, *, is_held: bool) -> str:
    if state in {"ready", "retrying"}:
        late = (now - delivery["due_at"]).total_seconds() > _LATE_SECONDS
        then = ", when nothing holds it back" if is_held else "; no relay has claimed it yet" if late else ""
        return f"attempt {delivery['attempts'] + 1}, due {_both(delivery['due_at'], now)}{then}"
    if state == "waiting" and head is not None:
        stopped = ", which is dead and blocks their lane" if head["state"] == "blocked" else ""
        return f"waits in its lane behind event {head['seq']}{stopped}"
    if state == "in_flight":
        relay = next((each for each in event["relays"] if each["id"] == delivery["relay_node"]), None)
        by = "" if relay is None else f", by the relay on {visible(relay['host'])} with pid {relay['pid']}"
        return f"attempt {delivery['attempts']} runs now{by}"
    return _NEXT.get(state, "nothing: it has ended")


def _commands(seq: int, delivery: Row, state: str, head: Row | None, *, is_held: bool) -> Iterator[str]:
    of_it = ("--seq", str(seq), "--route", str(delivery["route"]), "--reason", "…")
    match state:
        case "retrying":
            yield command("retry", *of_it)
            yield command("cancel", *of_it)
        case "ready" | "received" if not is_held:
            yield "relay status"
        case "blocked":
            yield from (command(each, *of_it) for each in ("replay", "unblock", "cancel"))
        case "dead":
            yield command("replay", *of_it)
            yield command("cancel", *of_it)
        case "waiting" if head is not None:
            yield f"inbox show {head['seq']}"
        case "superseded":
            yield f"inbox show {delivery['superseded_by']}"
        case "delivered" | "unchanged" | "skipped" | "cancelled":
            yield command("replay", *of_it)


def command(name: str, *arguments: str) -> str:
    """Return a command of `relay` to copy."""
    return visible(shlex.join(("relay", name, *arguments)))


def _both(moment: datetime, now: datetime) -> str:
    return f"{relative(moment, now)} ({rfc3339(as_time(moment), 'seconds')})"


def _laid_out(lines: Iterator[_Line], width: int | None) -> Iterator[Text]:
    """Put each label into its column, and its text beside it, wrapped where it is too long."""
    for line in lines:
        room = None if width is None else max(width - _LABEL - 2, _LEAST_ROOM)
        texts: Sequence[str] = [line.text]
        if room is not None and line.fit != "whole":
            texts = [cut(line.text, room)] if line.fit == "cut" else wrapped(line.text, room)
        for number, text in enumerate(texts):
            label = line.label if number == 0 else ""
            yield Text.assemble("  ", (f"{label:<{_LABEL}}", "bright_black"), (text, line.style))


def wrapped(text: str, room: int) -> Sequence[str]:
    """Break a text into lines of so many cells, between words where possible."""
    lines = [""]
    for word in text.split(" "):
        for part in chop_cells(word, room) if cell_len(word) > room else [word]:
            longer = f"{lines[-1]} {part}" if lines[-1] else part
            if cell_len(longer) <= room:
                lines[-1] = longer
            else:
                lines.append(part)
    return lines
