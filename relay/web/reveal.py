"""Reveals: the headers and body of an event, to who says why; as JSON on several lines, as text, or in hex."""

from __future__ import annotations

import base64
import re
from typing import Any, Literal

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.clock import Clock
from inbox.db.reads import payload
from inbox.errors import NothingThere, PageError
from relay.store import reads
from relay.store.database import Database
from relay.web import render
from relay.web.access.accounts import Actor
from relay.web.acts import checked_reason, read_json
from relay.web.problems import set_status
from relay.web.query import FORM_TYPE, encode, of_path, parse, read_form
from relay.web.reading import Readers
from relay.web.screens.event import SCREEN, EventQuery, View

MOST_SHOWN = 256 * 1024
"""Bytes of a body that are shown."""
MOST_HEX = 16 * 1024
"""Bytes that are shown in hex, where each takes four characters."""
_DEEPEST = 60
"""A body that is nested deeper is not put on several lines: each would begin with as many spaces, so it would grow without end."""
_LONGEST_PRETTY = 4 * MOST_SHOWN
_ROW = 16


class BodyView(msgspec.Struct, frozen=True):
    """A body, or its beginning, as text."""

    form: Literal["pretty", "raw", "hex"]
    text: str
    shown_bytes: int
    is_cut: bool


def view_of(body: bytes, form: Literal["pretty", "raw", "hex"]) -> BodyView:
    """Show a body. One that can't be shown as wanted is shown in the next form: JSON, text, hex.

    A number keeps its digits, a name that occurs twice stays twice, and text keeps its line breaks.
    """
    if form == "pretty" and len(body) <= MOST_SHOWN:
        pretty = _pretty(body)
        if pretty is not None:
            return BodyView("pretty", pretty, len(body), is_cut=False)
    if form != "hex":
        part = body[:MOST_SHOWN]
        is_cut = len(part) < len(body)
        try:
            return BodyView("raw", _decoded(part, is_cut=is_cut), len(part), is_cut)
        except UnicodeDecodeError:
            pass
    part = body[:MOST_HEX]
    return BodyView("hex", _hex(part), len(part), len(part) < len(body))


def _decoded(part: bytes, *, is_cut: bool) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        if is_cut and error.end == len(part) and len(part) - error.start < 4:  # noqa: PLR2004  # a character was cut
            return part[: error.start].decode()
        raise


def _pretty(body: bytes) -> str | None:
    depth = deepest = 0
    for mark in re.finditer(rb"[\[\]{}]", body):  # those in strings count as well, which does no harm
        depth += 1 if mark[0] in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > _DEEPEST:
        return None
    try:
        pretty = msgspec.json.format(body, indent=2).decode()
    except (ValueError, RecursionError):  # neither JSON nor UTF-8
        return None
    return pretty if len(pretty) <= _LONGEST_PRETTY else None


def _hex(part: bytes) -> str:
    return "\n".join(
        f"{at:08x}  {part[at : at + _ROW].hex(' '):<47}  "
        + "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part[at : at + _ROW])  # noqa: PLR2004  # ASCII
        for at in range(0, len(part), _ROW)
    )


class RevealForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the form."""

    reason: str = ""
    view: View | None = None
    """Form in which the body is shown."""
    download: bool = False
    """The body as a file, byte for byte."""


class RevealedPayload(msgspec.Struct, frozen=True):
    """Headers and body of an event."""

    headers: dict[str, str]
    body: str | None
    """The body as text; None when it is no UTF-8."""
    body_base64: str


class RevealedPage(msgspec.Struct, frozen=True):
    """The same for people."""

    headers: dict[str, str]
    body: BodyView
    reason: str


class RevealResource:
    """Shows a payload to who says why. The row about it is committed before anything is answered."""

    def __init__(self, readers: Readers, renderer: render.Renderer, clock: Clock) -> None:
        self._readers, self._renderer, self._clock = readers, renderer, clock

    async def on_post(self, req: Request, resp: Response, seq: str) -> None:
        """Answer with the event's page that has the payload in it, or with the body as a file."""
        actor, query = req.context.actor, of_path(EventQuery, {"seq": seq}, self._clock.now())
        shown, problem = None, None
        try:
            form = parse(RevealForm, await read_form(req), self._clock.now())
            headers, body = await self._reveal(actor, query.seq, form.reason)
            if form.download:
                _attach(resp, query.seq, body)
                return
            query = msgspec.structs.replace(query, view=form.view or query.view)
            shown = RevealedPage(headers, view_of(body, query.view), form.reason.strip())
        except NothingThere:
            raise
        except PageError as error:
            problem = error
            set_status(resp, error)
        page = await self._readers.read(actor, lambda reading: SCREEN.read(reading, query))
        resp.content_type = render.TYPE
        resp.text = self._renderer.render_screen(
            SCREEN,
            now=self._clock.now(),
            query=query,
            page=page,
            problem=problem,
            config=self._readers.config,
            actor=actor,
            shown=shown,
        )

    async def on_post_json(self, req: Request, resp: Response, seq: str) -> None:
        """Answer with the payload as JSON. The request is a form, or JSON with the same fields."""
        query = of_path(EventQuery, {"seq": seq}, self._clock.now())
        form = await _form_of(req, self._clock)
        headers, body = await self._reveal(req.context.actor, query.seq, form.reason)
        if form.download:
            _attach(resp, query.seq, body)
            return
        try:
            text = body.decode()
        except UnicodeDecodeError:
            text = None
        resp.content_type = falcon.MEDIA_JSON
        resp.data = encode(RevealedPayload(headers, text, base64.b64encode(body).decode()))

    async def _reveal(self, actor: Actor, seq: int, given: str) -> tuple[dict[str, str], bytes]:
        reason = checked_reason(given)

        def make(database: Database) -> tuple[dict[str, str], bytes]:
            with database.read() as transaction:
                found = payload(transaction.connection, seq)
            if found is None:
                raise NothingThere(
                    f"there is no payload of event {seq}: retention or erasure has deleted it, or there is no such event"
                )
            reads.record_reveal(database, seq, who=actor.name, reason=reason)
            return found

        return await self._readers.write(make)


async def _form_of(req: Request, clock: Clock) -> RevealForm:
    if (req.content_type or "").partition(";")[0].strip().lower() == FORM_TYPE:
        return parse(RevealForm, await read_form(req), clock.now())
    given = await read_json(req)
    return parse(RevealForm, {name: _as_field(value) for name, value in given.items()}, clock.now())


def _as_field(value: Any) -> str:  # noqa: ANN401  # any JSON value
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _attach(resp: Response, seq: int, body: bytes) -> None:
    """Answer with a file. No browser shows it, whatever it holds."""
    resp.content_type = "application/octet-stream"
    resp.downloadable_as = f"event-{seq}.bin"
    resp.data = body
