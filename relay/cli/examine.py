"""`inbox check` validates a configuration, `inbox doctor` examines an installation, and `inbox show` shows one event."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from inbox.clock import SystemClock
from inbox.errors import ConfigError
from inbox.events.timestamps import rfc3339
from inbox.observe.visible import visible, visible_line
from relay.cli.options import NUMBER, TIME, AsJson, open_database, require_known
from relay.cli.output import (
    FINDING,
    WRONG_USE,
    bar,
    choose_style,
    fail,
    hang,
    put,
    put_json,
    say,
    terminal_width,
)
from relay.words import (
    FactShown,
    RouteProgress,
    describe_facts,
    describe_progress,
    format_both_times,
    format_bytes,
    format_count,
    format_duration,
    format_relative,
)

if TYPE_CHECKING:
    from inbox.config.model import Config
    from inbox.db.reads import Row
    from inbox.loader.load import ConfigFile
    from relay.check import ConfigFinding, DatabaseState, Reply
    from relay.doctor.run import ExaminationResult

_LINE = re.compile(r"\(at line (\d+)")
"""The line number in an error of the TOML parser."""
_SECTIONS = (("sources", "source"), ("routes", "route"), ("apis", "api"), ("destinations", "destination"))
_STYLES = {"mistake": "bold red", "critical": "bold red", "warning": "yellow", "information": "cyan"}


def check(
    *,
    online: Annotated[
        bool,
        typer.Option(
            "--online", help="Also connect to the database and to each api and destination, without changing anything."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the configuration as the receiver and the relay do when they start, and show every mistake with its line.

    Exits with 2 on a mistake that would keep the receiver or the relay from starting, with 1 on warnings only, else with 0.
    Imports your handlers and opens a SQLite database. Without --online, nothing leaves this machine.

    Examples:
      inbox check
      inbox check --online
      INBOX_CONFIG=/etc/inbox-relay/new.toml inbox check --json
    """
    from inbox.loader.load import config_path, load_file
    from relay.check import ConfigFinding, examine_database, list_findings, list_unreached, make_probes, run_probes

    path, file, database = config_path(), None, None
    replies: list[Reply] = []
    try:
        file = load_file(path)
    except ConfigError as error:
        line = _LINE.search(str(error))
        text = str(error).removeprefix(f"{path} ")
        found = [ConfigFinding(str(path), int(line[1]) if line else None, "", text, "mistake")]
    else:
        found = list_findings(file, path)
        database, of_database = examine_database(file, online=online)
        found += [each for each in of_database if each not in found]
        if online and (questions := make_probes(file.sound)):
            with bar("connecting", len(questions)) as report:
                for reply in run_probes(questions):
                    replies.append(reply)
                    report(doing=f"asked {reply.key}")
            found += list_unreached(file, replies)
    mistakes = sum(each.level == "mistake" for each in found)
    if as_json:
        put_json(
            {
                "file": str(path),
                **{section: sorted(file.source.tree.get(section, {})) if file else [] for section, _ in _SECTIONS},
                "database": database,
                "mistakes": mistakes,
                "warnings": len(found) - mistakes,
                "findings": found,
                "asked": replies,
            }
        )
    else:
        put(*_list_check_lines(str(path), found, replies, file, database))
    if found:
        raise typer.Exit(WRONG_USE if mistakes else FINDING)


def _list_check_lines(
    path: str,
    found: Sequence[ConfigFinding],
    replies: Sequence[Reply],
    file: ConfigFile | None,
    database: DatabaseState | None,
) -> Iterator[Text]:
    """Yield lines with the findings, the systems reached, and a summary."""
    for each in sorted(found, key=lambda one: (one.level, one.line is None, one.line or 0)):
        text = visible(str(each))
        yield from hang(f"{each.level}  ", text, terminal_width(), label_style=_STYLES[each.level])
    for reply in replies:
        if reply.reached:
            line = f"  {reply.key}: {reply.url} {reply.text}, {reply.milliseconds:.0f} ms"
            yield Text.assemble(("reached", "green"), visible(line))
    if file is not None:
        counts = [format_count(len(file.source.tree.get(section, {})), word) for section, word in _SECTIONS]
        yield Text(visible(f"{path}: {', '.join(counts)}"))
        retention = file.sound.retention
        ages = [f"{kind} {retention.get_age(kind).shown}" for kind in ("payloads", "events", "attempts", "rejected")]
        yield Text(f"retention: {', '.join(ages)}")
    if database is not None and database.url:
        state = "not contacted; use --online" if database.state == "not asked" else database.state
        yield Text(visible(f"{database.origin}: {database.url} ({state})"))
    mistakes = sum(each.level == "mistake" for each in found)
    said = [format_count(mistakes, "mistake") if mistakes else "both sides would start"]
    said += [format_count(len(found) - mistakes, "warning")] if found else []
    yield Text(", ".join(said), "bold red" if mistakes else "yellow" if found else "green")


def doctor(
    *,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Run only this examination; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Examine the running installation: database, schema, disk, configuration and relays.

    Each finding has an observation, the reason why it matters, and the command that fixes it. Exits with 1 on a finding,
    else with 0; information does not affect the exit code. It changes nothing and never reads a whole table. An
    examination that lacks rights or time reports its requirement, and the others go on.

    `inbox check` validates a configuration before you use it; `inbox doctor` examines a running installation.

    Examples:
      inbox doctor
      inbox doctor --only disk --only schema
      inbox doctor --json
    """
    from relay.doctor.examinations import EXAMINATIONS
    from relay.doctor.run import exclude_information, open_installation, run
    from relay.findings import LEVELS

    names = [each.name for each in EXAMINATIONS]
    for name in only or ():
        require_known("examination", name, names)
    with open_installation() as installation:
        results = run(installation, [each for each in EXAMINATIONS if not only or each.name in only])
    if as_json:
        every = [each for result in results for each in result.findings]
        document: dict[str, Any] = {
            "at": installation.now,
            "host": installation.host,
            "file": str(installation.path),
            **{level: sum(each.level == level for each in every) for level in LEVELS},
            "examinations": results,
        }
        put_json(document)
    else:
        put(*format_results(results, width=terminal_width()))
    if exclude_information(results):
        raise typer.Exit(FINDING)


def format_results(results: Sequence[ExaminationResult], *, width: int | None) -> Iterator[Text]:
    """Yield the lines of the report, critical findings first. Without a width, lines are not wrapped."""
    found = sorted(
        (each for result in results for each in result.findings), key=lambda one: [*_STYLES].index(one.level)
    )
    needed = sum(each.level != "information" for each in found)
    critical = sum(each.level == "critical" for each in found)
    missing = [result for result in results if result.needs]
    yield Text.assemble(
        ("not well", "bold red" if critical else "bold yellow") if needed else ("well", "bold green"),
        f": {format_count(needed, 'finding')}" if needed else ": no finding",
        f", {critical} critical" if critical else "",
        f"; {format_count(len(results) - len(missing), 'examination')}",
        f", {len(missing)} not made in full" if missing else "",
    )
    if found:
        yield Text()
    for each in found:
        mark = "i" if each.level == "information" else "!"
        sentence = visible_line(f"{each.kind}: {each.sentence}")
        yield from hang(f"  {mark} ", sentence, width, label_style=_STYLES[each.level])
        if each.why:
            yield from hang("    ", visible_line(each.why), width)
        if each.remedy:
            yield Text(f"      {visible_line(' '.join(each.remedy.split()))}", "cyan")
    if missing:
        yield Text("\nNot examined", "bold")
    for result in missing:
        part = " (in part)" if result.findings else ""
        yield from hang("  - ", visible_line(f"{result.name}{part}: {result.needs}"), width)


# --- the report of an event

_Line = tuple[str, ...]
"""A label, its text, and optionally a style."""
_LABEL = 22
"""Cells of the column of labels and times."""
_TONES = {"good": "green", "warn": "yellow", "bad": "red", "quiet": "bright_black"}
_COMMAND = "cyan"
"""Style of commands. They never wrap, so that they can be copied."""


def show(
    seq: Annotated[int, typer.Argument(help="Number of the event.", **NUMBER)],
    *,
    at: Annotated[
        datetime | None,
        typer.Option(help="Show the event as it was at this past time; formats as for --since.", **TIME),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one event: its arrival, each attempt with its calls, the next step on each route, and useful commands.

    With --at, shows the deliveries and facts as of that time. An open delivery is then only `open` or `retrying`: the
    log does not record scheduling, nor the duplicates, gates and lanes of that time.

    Exits with 1 when the event does not exist, or arrived after --at.

    Examples:
      inbox show 42
      inbox show 42 --json
      inbox show 42 --at 2026-01-31T10:00:00Z
    """
    from inbox.db import reads
    from inbox.events.states import event_at

    now = SystemClock().now()
    if at is not None and at > now:
        fail("--at lies in the future: give a past time")
    removed: list[str] = []
    config, database = open_database()
    row = reads.event(database.engine, seq, is_whole=True)
    if row is not None and at is not None:
        removed = reads.describe_removed(database.engine, row, at)
    if row is None:
        fail(f"there is no event {seq}", FINDING)
    if at is not None and row["received_at"] > at:
        fail(f"event {seq} arrived later, at {rfc3339(row['received_at'], 'milliseconds')}", FINDING)
    shown = row if at is None else {"at": at, **event_at(row, at), "removed": removed}
    if as_json:
        put_json(shown)
        return
    put(*describe_event(shown, config, at or now, terminal_width(), is_past=at is not None))
    for sentence in removed:
        say(sentence)


def describe_event(
    event: Row, config: Config, now: datetime, width: int | None, *, is_past: bool = False
) -> Iterator[Text]:
    """Yield the lines of an event's report.

    Args:
        event: as returned by `inbox.db.reads.event` or `inbox.events.states.event_at`.
        config: the current configuration.
        now: reference for relative times.
        width: cells of a line; None: lines are not wrapped.
        is_past: True if `event` is a past state, so the report has no next step.
    """
    if is_past:
        yield Text(f"as it was at {rfc3339(now, 'milliseconds')}")
    named = (event["entity_type"], event["entity_id"] or "")
    entity = "" if named[0] is None else f" {visible('/'.join(named))}"
    heading = f"event {event['seq']}:{entity} {visible(event['event_type'])} from {visible(event['source'])}"
    yield from hang("", heading, width, "bold")
    yield from _align(_arrival(event, now), width)
    if not event["deliveries"]:
        yield from (Text(), Text("no route matched it when it arrived: it is stored, and delivered nowhere"))
    for delivery in event["deliveries"]:
        told = None if is_past else describe_progress(event, delivery, config, now)
        state = delivery["state"] if told is None else told.state
        yield Text()
        text = f"{visible(delivery['route'])}: {visible(state)}"
        yield from hang("route ", text, width, choose_style(state), label_style="bold")
        yield from _align(_past_route(event, delivery, now) if told is None else _route(told), width)


def _arrival(event: Row, now: datetime) -> Iterator[_Line]:
    yield ("arrived", format_both_times(event["received_at"], now))
    yield ("happened", format_both_times(event["occurred_at"], now))
    if event["event_id"] is not None:
        yield ("sender's id", visible(event["event_id"]))
    is_erased = event["erased_at"] is not None
    if is_erased:
        yield ("entity erased", format_both_times(event["erased_at"], now))
    pruned = f"; payload {'erased' if is_erased else 'pruned'}" if event["is_pruned"] else ""
    yield ("body", f"{format_bytes(event['body_bytes'])}, {visible(event['content_type'])}{pruned}")
    duplicates = event.get("duplicates", ())
    times = sum(duplicate["times"] for duplicate in duplicates)
    if times:
        last = max(each["last_received_at"] or each["received_at"] for each in duplicates)
        different = sum(each["is_other"] for each in duplicates)
        bodies = f"; {different} of them with another body" if different else ""
        yield (
            "duplicates",
            f"{format_count(times, 'request')} with the same key, the last {format_relative(last, now)}{bodies}",
        )


def _route(told: RouteProgress) -> Iterator[_Line]:
    yield from _facts(told.facts, told.earlier_facts)
    for hold in told.holds:
        yield ("held back", hold.says, "yellow")
    yield ("next", told.next)
    for number, command in enumerate(told.commands):
        yield ("" if number else "commands", command, _COMMAND)


def _past_route(event: Row, delivery: Row, at: datetime) -> Iterator[_Line]:
    yield from _facts(*describe_facts(event, delivery["route"]))
    if delivery["last_fact"] is None:
        yield ("", "no attempt had ended")
    if delivery["due_at"] is not None:
        yield ("next attempt", format_both_times(delivery["due_at"], at))


def _facts(facts: Sequence[FactShown], earlier: int) -> Iterator[_Line]:
    """Yield a line for each fact, followed by a line for each of its calls."""
    if earlier:
        yield ("", f"{format_count(earlier, 'earlier fact')}: --json")
    for fact in facts:
        yield (rfc3339(fact.at, "seconds"), fact.says, _TONES.get(fact.tone, ""))
        for call in fact.calls:
            took = format_duration(call.milliseconds / 1000)
            yield ("", visible(f"{call.outcome:<3} {took:>7}  {call.method} {call.url}"))
            if call.request is not None:
                yield ("", f"    sent {visible(' '.join(call.request.split()))}")
            said = visible(" ".join((call.error or call.excerpt or "").split()))
            if said and said not in fact.says:
                yield ("", f"    {said}")


def _align(lines: Iterator[_Line], width: int | None) -> Iterator[Text]:
    """Align the labels in a column, with the wrapped texts beside them."""
    for label, text, *style in lines:
        room = None if _COMMAND in style else width
        yield from hang(f"  {label:<{_LABEL}}", text, room, *style, label_style="bright_black")
