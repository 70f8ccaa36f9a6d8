"""Dead letters at a terminal: in groups of one route and cause, with the commands for them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

from inbox.events.timestamps import rfc3339
from inbox.observe.visible import visible_line
from relay.cli.output import fit_table, hang
from relay.delivery.outcome import RULES, Rule
from relay.words import format_command, format_count, format_relative

if TYPE_CHECKING:
    from inbox.db.reads import Row

COLUMNS = ("seq", "state", "entity_type", "entity_id", "route", "cause", "error", "died_at")
"""Columns of the view `dead_letter` that the groups show."""
MOST_GROUPED = 5000
"""Maximum number of dead letters to group: those that died last."""
_MOST_COMMANDS = 5
_INDENT = "  "
_LONGEST_ERROR = 300
"""Characters shown of a group's last error; `inbox show` shows all of it."""
_SHOWN = ("seq", "state", "entity", "died_at", "error")

Group = tuple[str, str, Sequence["Row"]]
"""Route, cause, and the dead letters, the latest first."""


def group_by_cause(rows: Sequence[Row]) -> list[Group]:
    """Group rows of the view `dead_letter`, the largest group first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["route"], row["cause"] or ""), []).append(row)
    return sorted(((*key, letters) for key, letters in groups.items()), key=lambda group: -len(group[2]))


def describe_groups(
    groups: Sequence[Group], given: Mapping[str, Any], limit: int, width: int, now: datetime
) -> Iterator[Text]:
    """Yield lines for each group, with about `limit` dead letters in all, and the next commands, with the given filters."""
    most = max(1, limit // len(groups))
    for route, cause, letters in groups[:limit]:
        heading = f"{cause or 'unknown cause'} on {route}: {format_count(len(letters), 'dead letter')}"
        yield from hang("", visible_line(f"{heading}, {_describe_span(letters, now)}"), width, "bold red")
        if error := _cut(letters[0]["error"] or "", _LONGEST_ERROR).rstrip():
            yield from hang(_INDENT, visible_line(error), width)
        lines, _ = fit_table(_shorten(letters, most, width), _SHOWN, width - len(_INDENT), now)
        yield from (Text(_INDENT).append_text(line) for line in lines)
        if len(letters) > most:
            how = f"--limit {len(letters)}" if len(groups) == 1 else "filter by --route and --cause"
            yield from hang(_INDENT, f"and {len(letters) - most:,} more: {how}", width)
        yield Text()
    yield from _describe_next(groups, given, width)


def _describe_span(letters: Sequence[Row], now: datetime) -> str:
    times = [row["died_at"] for row in letters if row["died_at"] is not None]
    first, last = (format_relative(at, now) for at in (min(times, default=now), max(times, default=now)))
    return f"died {last}" if first == last else f"first died {first}, last {last}"


def _describe_next(groups: Sequence[Group], given: Mapping[str, Any], width: int) -> Iterator[Text]:
    """Yield the commands for the largest groups."""
    filters = [word for name, value in given.items() if value is not None for word in _write_filter(name, value, given)]
    few = groups[:_MOST_COMMANDS]
    of_group = [("--route", route, *(("--cause", cause) if cause else ()), *filters) for route, cause, _ in few]
    is_gone = [cause == "payload_gone" for _, cause, _ in few]
    blocks = [any(row["state"] == "blocked" for row in letters) for _, _, letters in few]
    sections = {
        "See the calls of one, and repair the cause:": [f"inbox show {groups[0][2][0]['seq']}"],
        "Then replay, at first without --yes:": _write("replay", of_group, [not gone for gone in is_gone]),
        "End those whose payload is gone:": _write("cancel", of_group, is_gone),
        "Or let blocked lanes continue past them:": _write("unblock", of_group, blocks),
    }
    yield Text("Next", "bold")
    for sentence, commands in sections.items():
        yield from hang(_INDENT, sentence, width) if commands else ()
        yield from (Text(f"{_INDENT * 2}{command}", "cyan") for command in commands)


def _write(name: str, of_group: Sequence[Sequence[str]], wanted: Sequence[bool]) -> list[str]:
    reason = ("--reason", "…")
    return [
        format_command(name, *words, *reason) for words, is_wanted in zip(of_group, wanted, strict=True) if is_wanted
    ]


def _write_filter(name: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:  # noqa: ANN401  # of any option
    """Yield a filter of the listing as words of a command."""
    if name == "entity_id":
        yield from ("--entity", f"{given['entity_type']}/{value}")
    elif name not in {"route", "destination", "cause", "entity_type"}:
        yield from (
            f"--{name.replace('_', '-')}",
            rfc3339(value, "seconds") if isinstance(value, datetime) else str(value),
        )


def _shorten(letters: Sequence[Row], most: int, width: int) -> list[Row]:
    """Return the first rows of a group for lines of this width, without members that the whole group shares."""
    are_all_dead = all(row["state"] == "dead" for row in letters)
    have_one_error = len({row["error"] for row in letters}) == 1
    names = [f"{row['entity_type'] or ''}/{row['entity_id'] or ''}" for row in letters[:most]]
    room = min(max(map(len, names)), width // 3)
    left = max(width - room - (_OTHERS if are_all_dead else _OTHERS_AND_STATE), 16)
    return [
        {
            "seq": row["seq"],
            "state": None if are_all_dead else row["state"],
            "entity": _cut(name, room, room // 2),
            "died_at": row["died_at"],
            "error": None if have_one_error else _cut(row["error"] or "", left),
        }
        for row, name in zip(letters, names, strict=False)
    ]


_OTHERS, _OTHERS_AND_STATE = 25, 34
"""Cells of a line that entity and error do not use: without and with the state."""


def _cut(text: str, room: int, kept_at_end: int = 0) -> str:
    """Shorten a text to `room` characters, and keep some from its end."""
    return text if len(text) <= room else f"{text[: room - 1 - kept_at_end]}…{text[len(text) - kept_at_end :]}"


_RETRIED = {name for name, rule in RULES.items() if rule in {Rule.RETRY, Rule.AGAIN}}


def suggest_exhausted(cause: str, exhausted: Sequence[Row]) -> Iterator[str]:
    """Yield a hint about dead letters with the cause `exhausted`, if this class of failures is retried first."""
    if not exhausted or cause not in _RETRIED:
        return
    last = Counter(row["last_status"] for row in exhausted).most_common(_MOST_COMMANDS)
    answers = ", ".join(f"{'no response' if status is None else status} ({number:,})" for status, number in last)
    more = " or more" if len(exhausted) >= MOST_GROUPED else ""
    yield (
        f"{cause} is retried until the schedule ends: {len(exhausted):,}{more} died of exhausted instead, by last status"
        f" {answers}; `relay dead --cause exhausted` lists them"
    )
