"""Planted texts and the search for them: secrets, text that harms a terminal, and personal data."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote, urlsplit

import msgspec
from sqlalchemy import ARRAY, JSON, Boolean, Column, Engine, Integer, LargeBinary, Table, Text, insert, inspect, update

from inbox.clock import SystemClock
from inbox.db.columns import UtcDateTime
from inbox.db.erasure import ErasureSubject
from inbox.db.schema import gate, metadata, relay_command
from inbox.events.event import Event
from relay.delivery.outcome import Call, Delivered, Failed, Outcome, Skipped, Unchanged
from tests.helpers.relaying import DONE, Steps
from tests.helpers.scripted import Act, ScriptedServer, Seen, raw, then_close
from tests.helpers.storing import START, an_event
from tests.helpers.tables import rows

ODD = '/+="\\&%<'
"""Characters that JSON, URLs, HTML and base64 each encode differently."""


class Planted:
    """Distinct secrets by name, each with an alphanumeric core that only base64 changes."""

    def __init__(self) -> None:
        self.cores: dict[str, str] = {}

    def plain(self, name: str) -> str:
        """Return an alphanumeric secret."""
        return self.cores.setdefault(name, f"Qz{len(self.cores):02d}{name.title().replace('-', '')}Zq")

    def odd(self, name: str) -> str:
        """Return a secret with characters of many spellings."""
        return self.plain(name) + ODD

    def leaks(self, places: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return (place, secret name) for each secret found in any spelling."""
        return [
            (place, name)
            for place, text in places.items()
            for name, core in self.cores.items()
            if any(spelling in text for spelling in spellings(core))
        ]


def spellings(core: str) -> set[str]:
    """Return the core, its hexadecimal digits, and its base64 at each of the three offsets."""
    data = core.encode()
    found = {core, data.hex(), data.hex().upper()}
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data).decode()
        found.add(whole[-(-before * 8 // 6) : (before + len(data)) * 8 // 6])
    return found


def all_text(engine: Engine) -> dict[str, str]:
    """Return all text in the database by table or view, without empty ones."""
    looked_at = inspect(engine)
    found = contents(engine, *looked_at.get_table_names(), *looked_at.get_view_names())
    return {name: "\n".join(texts) for name, texts in found.items() if texts}


def contents(engine: Engine, *names: str) -> dict[str, list[str]]:
    """Return all rows of these tables and views, or of all tables, as sorted texts."""
    return {
        name: sorted("\n".join(map(_text, row.values())) for row in rows(engine, f'SELECT * FROM "{name}"'))
        for name in names or metadata.tables
    }


def _text(value: object) -> str:
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("latin-1")
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


HEADERS = ("authorization", "proxy-authorization", "x-api-key")
FIRST, LAST = "the-echo-begins", "the-echo-ends"
"""Words at the beginning and end of each echo."""


class Reply(msgspec.Struct, frozen=True):
    """Response to calls below a path."""

    status: int = 500
    knows: tuple[str, ...] = ()
    """Secrets to reveal besides those in the call."""
    password: str = ""
    """Password to reveal under telling keys."""
    body: str | None = None
    """Body in place of the echo."""
    retry_after: str | None = None
    broken_head: bool = False
    """True to send a header line without a colon."""


def spell(secret: str) -> list[str]:
    """Return the secret in every spelling that an echo may use."""
    in_json = json.dumps(secret)[1:-1]
    data = secret.encode()
    return [
        secret,
        in_json,
        in_json.replace("/", "\\/"),
        json.dumps(in_json)[1:-1],
        quote(secret),
        quote_plus(secret),
        quote(quote(secret, safe=""), safe=""),
        html.escape(secret),
        base64.b64encode(data).decode(),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        base64.b64encode(b"user:" + data).decode(),
    ]


class Echo(ScriptedServer):
    """Answers each path with the reply of its longest prefix. `calls` counts requests by prefix."""

    def __init__(self, replies: Mapping[str, Reply]) -> None:
        self.calls: dict[str, int] = dict.fromkeys(replies, 0)
        self._replies = replies
        super().__init__()

    def act_for(self, seen: Seen) -> Act:
        """Answer with everything in the call."""
        path = urlsplit(seen.target).path
        prefix = max((known for known in self._replies if path.startswith(known)), key=len)
        self.calls[prefix] += 1
        reply = self._replies[prefix]
        shown = [seen.headers[name] for name in HEADERS if name in seen.headers]
        body = self._echo(seen.target, reply, [*shown, *reply.knows]) if reply.body is None else reply.body
        head = [f"HTTP/1.1 {reply.status} Whatever", f"Content-Length: {len(body.encode())}", "Connection: close"]
        if reply.retry_after is not None:
            head.append(f"Retry-After: {reply.retry_after}")
        if reply.broken_head:
            head.append("this line has no colon")
        return then_close(raw("\r\n".join([*head, "", body]).encode()))

    def _echo(self, target: str, reply: Reply, secrets: list[str]) -> str:
        shown = [target, unquote(target), *(text for secret in secrets for text in spell(secret))]
        told = json.dumps({"you_sent": secrets, "password": reply.password, "more": {"clientSecret": reply.password}})
        return "\n".join([FIRST, told, *shown, LAST])


@contextlib.contextmanager
def echoing(replies: Mapping[str, Reply]) -> Iterator[Echo]:
    """Serve echoes for the block."""
    with contextlib.closing(Echo(replies)) as made:
        yield made


MARK = "Qz-hostile-Zq"
HOSTILE = (
    f"{MARK} \\[/] [/] \\[link=https://evil.example]x[/link] [link=https://evil.example]y [red] :warning: \\"
    "\x1b]8;;https://evil.example\x1b\\z\x1b]8;;\x07 \x1b[2J\x9b31m\x9d\x7f\x08\r\nall is well\t"
    "\u202e\u2066\u200f\u061c\u200b\ufeff\u2028\u2029\U000e0041\u3164"
)
"""All hostile characters that both databases can store."""

NOT_FILLED = {"order_lock", "route_lock", "payload_lock", "write_probe"}
"""Tables without external text."""
ONE_ROW = {"pruner"}
"""Tables whose only row always exists."""

WORDS: Mapping[str, Mapping[str, object]] = {
    "inbox": {"seq": 1000, "action": "update"},
    "inbox_payload": {"seq": 1000},
    "duplicate_request": {"seq": 1000},
    "open_delivery": {"seq": 1000, "state": "dead", "due_at": None, "lease_until": None, "lease_token": None},
    "delivery_log": {"seq": 1000, "kind": "dead", "state": "dead"},
    "throughput_minute": {"kind": "source"},
    "relay_node": {"stopped_at": None},
    "route_failure": {"kind": "api"},
    "gate": {"kind": "destination", "breaker": "open"},
    "relay_command": {"kind": "replay", "state": "failed"},
    "rejected_request": {"readmitted_at": None, "readmitted_seq": None},
}
"""Columns restricted to certain words, or whose value decides whether listings show the row."""

_COLOURS_AND_CURSOR = re.compile(r"\x1b\[(?:[\d;]*m|\?25[lh]|\d*[AKG])|\r")
"""Sequences that rich itself writes to a terminal: colours, and positions of its bars."""
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def plant(engine: Engine) -> set[str]:
    """Insert a row into every table with the hostile text in every text column, and return these columns."""
    planted = set()
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            if table.name in NOT_FILLED:
                continue
            row = {
                column.name: _value(column)
                for column in table.columns
                if column.name != "id" or not isinstance(column.type, Integer)
            }
            row |= WORDS.get(table.name, {})
            connection.execute(update(table).values(row) if table.name in ONE_ROW else insert(table).values(row))
            planted |= {f"{table.name}.{name}" for name, value in row.items() if MARK in repr(value)}
        gates = metadata.tables["gate"]
        for kind in ("source", "route", "api", "entity"):
            row = {column.name: _value(column) for column in gates.columns} | {"kind": kind, "breaker": "closed"}
            connection.execute(insert(gates).values(row))
    return planted


def text_columns() -> set[str]:
    """Return every column for text of any form, except those restricted to certain words."""
    return {
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        if table.name not in NOT_FILLED
        for column in table.columns
        if isinstance(column.type, Text | JSON | ARRAY | LargeBinary) and column.name not in _words_of(table)
    }


def _words_of(table: Table) -> set[str]:
    return {name for name, value in WORDS.get(table.name, {}).items() if isinstance(value, str)}


def _value(column: Column[object]) -> object:
    if isinstance(column.type, ARRAY):
        return [HOSTILE]
    values: tuple[tuple[type, object], ...] = (
        (Boolean, False),
        (UtcDateTime, SystemClock().now().replace(microsecond=0)),
        (Integer, 1),
        (LargeBinary, HOSTILE.encode()),
        (JSON, dict.fromkeys(("cause", "error", "who", "why", HOSTILE), HOSTILE)),
    )
    return next((value for kind, value in values if isinstance(column.type, kind)), HOSTILE)


def harm_of(output: str, *, terminal: bool = False) -> list[str]:
    """Return the invisible characters of `output` as escapes."""
    if terminal:
        output = _COLOURS_AND_CURSOR.sub("", output)
    return sorted({ascii(c) for c in output if unicodedata.category(c) in HIDDEN and c != "\n"})


ID = "IDNUMBER4711"
PERSON = ErasureSubject("trivore", "USER", ID)
TRACES = (ID, "maria.meier@example.com", "Maria Meier", "maria-header", "0af7651916cd43dd8448eb211c80319c")
"""Texts of the person that an erasure must remove everywhere."""
BODY = json.dumps({"id": ID, "email": "maria.meier@example.com", "name": "Maria Meier"}).encode()
OTHER = "IDNUMBER4712"


def make_personal_event(number: int, *routes: str, body: bytes = BODY) -> Event:
    """Make an event of the person."""
    return msgspec.structs.replace(
        an_event(number, ID, routes=routes or ("strict", "latest")),
        dedup_key=f"{number:08d}",  # without the id, as inbox.events.event.dedup_key makes it
        event_id=f"evt-{ID}-{number}",
        headers={"content-type": "application/json", "x-note": "maria-header"},
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def _call(status: int, *, excerpt: str | None = None) -> Call:
    url = f"https://crm.example.com/contacts/{ID}"
    return Call("update", "PATCH", url, "answered", 12.5, status, excerpt=excerpt)


DELIVERED = Delivered((_call(200),), "updated", START, START, b"\x01" * 32)
FAILED = Failed((_call(503, excerpt="no maria.meier@example.com"),), "server_error", f"{ID}: answered 503")
UNCHANGED = Unchanged((_call(200),))
SKIPPED = Skipped((_call(404),), f"{ID} is missing")


def live(steps: Steps) -> None:
    """Fill the tables: all deliveries of the person have ended, one of another person waits.

    Seqs: 1 to 4 and 7 are the person's, and 7 has no route; 5, 6 and 8 are the other's, and 8 is open.
    """
    steps.arrive(
        *(make_personal_event(number) for number in range(1, 5)),
        an_event(5, OTHER),
        an_event(6, OTHER, routes=["latest"]),
    )
    steps.receive(msgspec.structs.replace(make_personal_event(7), enrolments=()))
    for outcome in (DELIVERED, FAILED, SKIPPED, UNCHANGED, DELIVERED):
        _attempt(steps, outcome, "strict")
    for outcome in (FAILED, DELIVERED):
        _attempt(steps, outcome, "latest")
    changed = BODY.replace(b"Maria", b"Marie Maria")
    again = msgspec.structs.replace(make_personal_event(1), body=changed, body_sha256=hashlib.sha256(changed).digest())
    steps.intake.repeat(again, make_personal_event(2))
    _plant(steps.database.engine)
    steps.arrive(an_event(8, OTHER))


def _attempt(steps: Steps, outcome: Outcome, route: str) -> None:
    """Make an attempt of each lane, with this outcome for the person and success for the other."""
    steps.record([(one, outcome if one.entity_id == ID else DONE) for one in steps.claim_due(100, route)])
    steps.advance(3600)


def _plant(engine: Engine) -> None:
    """Add the rows that only operators write."""
    paused = {"name": PERSON.gate, "pause_reason": "Maria Meier called", "paused_at": START, "paused_by": "kim"}
    asked = {"kind": "replay", "reason": "asked", "asked_by": "kim", "asked_at": START}
    about = {"selection": {"source": "trivore", "entity_type": "USER", "entity_id": ID}, "sample": {"first": ID}}
    with engine.begin() as connection:
        connection.execute(insert(gate).values(kind="entity", breaker="closed", **paused))
        connection.execute(insert(relay_command).values(state="done", finished_at=START, **asked, **about))


def traces_in(engine: Engine) -> list[tuple[str, str]]:
    """Return table and row of every trace of the person."""
    return [
        (table, row)
        for table, rows in contents(engine).items()
        for row in rows
        if any(trace in row for trace in TRACES)
    ]
