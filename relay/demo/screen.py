"""What the demo shows: a line for each change, webhook and call, in columns that fit the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from inbox.clock import Clock, SystemClock
from inbox.logs.visible import visible
from relay.demo.compare import changed_fields
from relay.demo.happenings import CallMade, Happening, Noted, Ordered, WebhookSent
from relay.demo.scenario import Made

_ID = re.compile(r"[0-9a-f]{20}([0-9a-f]{4})")
_WIDE, _WIDE_COLUMN, _NARROW_COLUMN = 100, 28, 20
_CLIENT_ERROR, _SERVER_ERROR, _UNAVAILABLE = 400, 500, 503
_COLOURS = {"change": "bold", "webhook": "cyan", "call": "magenta", "relay": "blue", "command": "bold yellow"}
_NOTES = {
    "same": Text("nothing new: nothing is sent", "dim"),
    "stale": Text("too old: it is read again", "yellow"),
}
_VERBS = {"create": "CREATE", "update": "UPDATE", "delete": "DELETE"}


class Screen:
    """Prints lines. Main thread only."""

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        self._console = console
        self._clock = clock or SystemClock()
        self._names: dict[str, str] = {}  # what people call an entity, by id
        self._sent: dict[str, dict[str, Any]] = {}  # by external id: what the commercial service holds
        self._owners: dict[str, str] = {}  # path of a record to the external id

    def made(self, change: Made) -> None:
        """A change was made to the identity service."""
        self._names[change.entity_id] = change.name
        detail = Text(_assignments(change.fields))
        if not change.fields and change.action == "update":
            detail = Text("nothing the other side has", "dim")
        if not change.is_told:
            detail = Text("no webhook tells", "red").append(": " if detail.plain else "").append_text(detail)
        self._line("change", _VERBS[change.action], None, change.name, detail)

    def happened(self, happening: Happening) -> None:
        """A webhook was sent, a call was made, the relay has noted something, or a command has said something."""
        match happening:
            case WebhookSent(entity_type, entity_id, event_type, status):
                detail = "no answer; it is sent again" if status is None else self._name(entity_id)
                what = f"{entity_type} {short(entity_id)}"
                self._line("webhook", event_type, status or "---", what, Text(visible(detail), "dim"))
            case CallMade(method, path, status):
                self._line("call", method, status, short(path), self._detail(happening))
            case Noted(entity_type, entity_id, what):
                self._line("relay", what, None, f"{entity_type} {short(entity_id)}", _NOTES[what])
            case Ordered(command, about, said):
                self._line("command", command, None, short(about), Text(visible(said), "bold"))

    def _detail(self, call: CallMade) -> Text:
        """What a call changed. The relay sends every mapped field; those that are new are worth a look."""
        if call.status == _UNAVAILABLE:
            return Text("on purpose; it is tried again", "red")
        if call.status >= _CLIENT_ERROR:
            return Text("refused", "yellow")
        path = call.path.partition("?")[0]
        if call.method == "DELETE":
            external_id = self._owners.pop(path, "")
            self._sent.pop(external_id, None)
            return Text(visible(self._name(external_id)), "dim")
        if call.body is None:
            return Text("")
        external_id = str(call.body.get("external_id", ""))
        self._owners[call.created or path] = external_id
        fields = changed_fields(self._sent.get(external_id, {}), call.body)
        self._sent[external_id] = {**self._sent.get(external_id, {}), **call.body}
        fields.pop("external_id", None)
        return Text(_assignments(fields)) if fields else Text("nothing new", "dim")

    def _line(self, kind: str, verb: str, status: int | str | None, what: str, detail: Text) -> None:
        self._console.print(
            layout(
                f"{self._clock.now():%H:%M:%S}",
                kind,
                verb,
                status,
                what,
                detail=detail,
                width=self._console.width if self._console.is_terminal else None,
            ),
            soft_wrap=True,
        )

    def _name(self, entity_id: str) -> str:
        return self._names.get(entity_id, "")


def layout(
    at: str, kind: str, verb: str, status: int | str | None, what: str, *, detail: Text, width: int | None
) -> Text:
    """One line of columns, cut to `width`; whole when there is none. A detail is made of what is visible already."""
    verb, what = visible(verb), visible(what)
    line = Text(end="").append(f"{at} ", "dim")
    line.append(f"{kind:<7} ", _COLOURS.get(kind, ""))
    line.append(f"{verb:<6} ", "dim" if verb == "GET" else "")
    line.append(f"{status or '':<3} ", _status_colour(status))
    line.append(
        f"{what:<{_WIDE_COLUMN if width is None or width >= _WIDE else _NARROW_COLUMN}}", "dim" if verb == "GET" else ""
    )
    if detail.plain:
        line.append(" ").append_text(detail)
    line.rstrip()
    if width is not None:
        line.truncate(width, overflow="ellipsis")
    return line


def _status_colour(status: int | str | None) -> str:
    if status is None:
        return ""
    if not isinstance(status, int) or status >= _SERVER_ERROR:
        return "bold red"
    return "bold yellow" if status >= _CLIENT_ERROR else "green"


def short(text: str) -> str:
    """The text with ids cut to the end that tells them apart."""
    return _ID.sub(r"…\1", text)


def _assignments(fields: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{visible(name)}={'null' if value is None else visible(str(value))}" for name, value in fields.items()
    )
