"""`inbox show`: the story of one event, with its arrival, and for each route the attempts, what holds it, what comes next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from inbox.clock import SystemClock
from inbox.events.timestamps import rfc3339
from inbox.observe.visible import visible
from relay.cli.options import MOST_NUMBER, TIME, AsJson, open_database
from relay.cli.output import (
    FINDING,
    exit_on_error,
    fail,
    hanging,
    put,
    put_json,
    say,
    style_of,
    terminal_width,
)
from relay.words import FactShown, RouteProgress, both_times, byte_count, counted, facts_of, lasting, progress, relative

if TYPE_CHECKING:
    from inbox.config.model import Config

Row = dict[str, Any]
_Line = tuple[str, ...]
"""A label, a text beside it, and perhaps its style."""

_LABEL = 22
"""Room for the labels and times before the texts."""
_STYLES = {"good": "green", "warn": "yellow", "bad": "red", "quiet": "bright_black"}
"""The colour of each tone."""
_COMMAND = "cyan"
"""The style of commands, which people copy: they never wrap."""


def story(event: Row, config: Config, now: datetime, width: int | None) -> list[Text]:
    """Tell the story of an event, as `inbox.db.reads.event` reads it, in lines of at most `width`; None: of any length."""
    lines = _beginning(event, now, width)
    for delivery in event["deliveries"]:
        told = progress(event, delivery, config, now)
        lines += _told(told.route, told.state, _route(told), width)
    return lines


def story_at(event: Row, at: datetime, width: int | None) -> list[Text]:
    """Tell the story of an event up to a moment, as `inbox.events.past.event_at` gives it; spans of time end then."""
    lines = [Text(f"as it was at {rfc3339(at, 'milliseconds')}"), *_beginning({**event, "duplicates": ()}, at, width)]
    for delivery in event["deliveries"]:
        lines += _told(delivery["route"], delivery["state"], _past_route(event, delivery, at), width)
    return lines


def _beginning(event: Row, now: datetime, width: int | None) -> list[Text]:
    entity = (
        "" if event["entity_type"] is None else f" {visible(event['entity_type'])}/{visible(event['entity_id'] or '')}"
    )
    heading = f"event {event['seq']}:{entity} {visible(event['event_type'])} from {visible(event['source'])}"
    lines = [*hanging("", heading, width, "bold")]
    lines += _laid_out(_arrival(event, now), width)
    if not event["deliveries"]:
        lines += [Text(), Text("no route matched it when it arrived: it is stored, and delivered nowhere")]
    return lines


def _told(route: str, state: str, lines: Iterator[_Line], width: int | None) -> Iterator[Text]:
    yield Text()
    yield from hanging(f"route {visible(route)}: ", visible(state), width, style_of(state), label_style="bold")
    yield from _laid_out(lines, width)


def _arrival(event: Row, now: datetime) -> Iterator[_Line]:
    yield ("arrived", both_times(event["received_at"], now))
    yield ("happened", both_times(event["occurred_at"], now))
    if event["event_id"] is not None:
        yield ("sender's id", visible(event["event_id"]))
    is_erased = event["erased_at"] is not None
    if is_erased:
        yield ("entity erased", both_times(event["erased_at"], now))
    pruned = f"; payload {'erased' if is_erased else 'pruned'}" if event["is_pruned"] else ""
    yield ("body", f"{byte_count(event['body_bytes'])}, {visible(event['content_type'])}{pruned}")
    times = sum(duplicate["times"] for duplicate in event["duplicates"])
    if times:
        last = max(each["last_received_at"] or each["received_at"] for each in event["duplicates"])
        different = sum(each["is_other"] for each in event["duplicates"])
        bodies = f"; {different} of them with another body" if different else ""
        yield ("duplicates", f"{counted(times, 'request')} with the same key, the last {relative(last, now)}{bodies}")


def _route(told: RouteProgress) -> Iterator[_Line]:
    yield from _facts(told.facts, told.earlier_facts)
    for hold in told.holds:
        yield ("held back", hold.says, "yellow")
    yield ("next", told.next)
    for number, command in enumerate(told.commands):
        yield ("" if number else "commands", command, _COMMAND)


def _past_route(event: Row, delivery: Row, at: datetime) -> Iterator[_Line]:
    yield from _facts(*facts_of(event, delivery["route"]))
    if delivery["last_fact"] is None:
        yield ("", "no attempt had ended")
    if delivery["due_at"] is not None:
        yield ("next attempt", both_times(delivery["due_at"], at))


def _facts(facts: Sequence[FactShown], earlier: int) -> Iterator[_Line]:
    """Tell each fact: what happened, then each call on a line of its own."""
    if earlier:
        yield ("", f"{counted(earlier, 'earlier fact')}: --json")
    for fact in facts:
        yield (rfc3339(fact.at, "seconds"), fact.says, _STYLES.get(fact.tone, ""))
        for call in fact.calls:
            took = lasting(call.milliseconds / 1000)
            yield ("", visible(f"{call.outcome:<3} {took:>7}  {call.method} {call.url}"))
            said = visible(" ".join((call.error or call.excerpt or "").split()))
            if said and said not in fact.says:
                yield ("", f"    {said}")


def _laid_out(lines: Iterator[_Line], width: int | None) -> Iterator[Text]:
    """Put each label into its column, and its text beside it, wrapped where it is too long."""
    for label, text, *style in lines:
        room = None if _COMMAND in style else width
        yield from hanging(f"  {label:<{_LABEL}}", text, room, *style, label_style="bright_black")


# --- the command


def show(
    seq: Annotated[int, typer.Argument(min=0, max=MOST_NUMBER, help="The event's number.")],
    *,
    at: Annotated[
        datetime | None,
        typer.Option(help="As it was at this time, by the log; forms as for --since, and not in the future.", **TIME),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one event: its arrival, each attempt with its calls, what comes next on each route, and the commands for it.

    With --at, its deliveries are shown as they were then, with the facts until then. An open one is `open` or `retrying`, as the
    log has no scheduling. Duplicates, gates and lanes of that time are not kept.

    Exits 1 when there is none of that number, or when it arrived after --at.

    Examples:
      inbox show 42
      inbox show 42 --json
      inbox show 42 --at 2026-01-31T10:00:00Z
    """
    from inbox.db import reads
    from inbox.events.past import event_at

    now = SystemClock().now()
    if at is not None and at > now:
        fail("--at lies in the future: give a time that has been")
    removed: list[str] = []
    with exit_on_error():
        config, database = open_database()
        row = reads.event(database.engine, seq, is_whole=True)
        if row is not None and at is not None:
            removed = reads.removed_from(database.engine, row, at)
    if row is None:
        say(f"there is no event {seq}")
        raise typer.Exit(FINDING)
    if at is not None and row["received_at"] > at:
        say(f"event {seq} arrived later, at {rfc3339(row['received_at'], 'milliseconds')}")
        raise typer.Exit(FINDING)
    shown = row if at is None else {"at": at, **event_at(row, at), "removed": removed}
    if as_json:
        put_json(shown)
        return
    width = terminal_width()
    put(*(story(row, config, now, width) if at is None else story_at(shown, at, width)))
    for sentence in removed:
        say(sentence)
