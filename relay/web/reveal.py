"""Reveals: shows the headers and body of an event to an actor who gives a reason, with JSON formatted.

Edits: stores an edited body, and leads to the plan of its replay.
"""

from __future__ import annotations

import base64
import re
from itertools import accumulate

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.clock import Clock
from inbox.db.reads import payload
from inbox.errors import BadFilter, NotAllowed, NothingThere, UnusableCommand
from relay.accounts import Actor
from relay.store import reads
from relay.store.database import Database
from relay.store.operator import edits
from relay.web import render
from relay.web.acts import Reason, check_reason
from relay.web.problems import API, set_status, wants_json
from relay.web.query import convert, read_form, read_json, url
from relay.web.reading import Readers
from relay.web.screens import EVENT
from relay.web.screens.event import EventQuery, event

MOST_SHOWN = 256 * 1024
"""Maximum bytes shown of a body."""
MOST_EDITED = 16 * MOST_SHOWN
"""Maximum bytes of a request with an edited body, as indentation and a form's percent signs each take their share."""
_DEEPEST = 60
"""Maximum depth of formatted JSON. Indentation grows with each level, so deeper bodies would become too large."""
_LONGEST_PRETTY = 4 * MOST_SHOWN


class RevealedPage(msgspec.Struct, frozen=True):
    """Headers, and the body or its beginning as readable text."""

    headers: dict[str, str]
    text: str
    shown_bytes: int
    reason: str
    is_editable: bool = False
    """True if the text is the whole body."""


def decode_text(body: bytes) -> tuple[str, int]:
    """Return a body as text, and the number of bytes shown. JSON is formatted; bytes that are not UTF-8 are escaped.

    Numbers keep their digits, repeated names stay, and text keeps its line breaks.
    """
    if len(body) <= MOST_SHOWN and (pretty := _pretty(body)) is not None:
        return pretty, len(body)
    part = body[:MOST_SHOWN]
    return part.decode(errors="backslashreplace"), len(part)


def _pretty(body: bytes) -> str | None:
    marks = re.findall(rb"[\[\]{}]", body)  # brackets in strings count too, which is harmless
    if max(accumulate(1 if mark in b"[{" else -1 for mark in marks), default=0) > _DEEPEST:
        return None
    try:
        pretty = msgspec.json.format(body, indent=2).decode()
    except (ValueError, RecursionError):  # neither JSON nor UTF-8
        return None
    return pretty if len(pretty) <= _LONGEST_PRETTY else None


class RevealOrder(msgspec.Struct, frozen=True):
    """A request for the headers and body of an event. Each request is recorded with the event."""

    reason: Reason


class RevealedPayload(msgspec.Struct, frozen=True):
    """Headers and body of an event."""

    headers: dict[str, str]
    body: str | None
    """The body as text; None if it is not UTF-8."""
    body_base64: str


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


class RevealResource:
    """Shows a payload to an actor who gives a reason. The reveal is committed before the response."""

    def __init__(self, readers: Readers, renderer: render.Renderer, clock: Clock) -> None:
        self._readers, self._renderer, self._clock = readers, renderer, clock

    async def on_post(self, req: Request, resp: Response, seq: int) -> None:
        """Respond with the payload as JSON or in the event's page, or with the body as a file."""
        is_json, actor = wants_json(req), req.context.actor
        given = await (read_json if is_json else read_form)(req)
        is_file = given.pop("download", None) is not None and not is_json
        reason = check_reason(convert(RevealOrder, given, self._clock.now(), strict=True).reason)
        headers, body = await self._reveal(actor, seq, reason)
        if is_json:
            resp.media = RevealedPayload(headers, _text(body), base64.b64encode(body).decode())
        elif is_file:
            resp.content_type = "application/octet-stream"  # no browser renders it
            resp.downloadable_as, resp.data = f"event-{seq}.bin", body
        else:
            page = await self._readers.read(actor, lambda reading: event(reading, EventQuery(seq=seq)))
            shown_text, size = decode_text(body)
            is_editable = actor.may_act and size == len(body) and _text(body) is not None
            shown = RevealedPage(headers, shown_text, size, reason, is_editable)
            self._renderer.show_screen(resp, EVENT, given={"seq": seq}, page=page, actor=actor, shown=shown)

    async def _reveal(self, actor: Actor, seq: int, reason: str) -> tuple[dict[str, str], bytes]:
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


class EditOrder(msgspec.Struct, frozen=True):
    """An edited body of an event. Its differences show values of the event, so the reason is recorded like that of a reveal."""

    body: str
    reason: Reason
    route: str | None = None
    """Route for `href`; needed if the event has several."""


class EditAnswer(msgspec.Struct, frozen=True):
    """The number of the stored body. It is delivered by the replay that names it as `edited_body`."""

    edited_body: int
    href: str
    """Path of the plan of that replay in the API; it lists the differences."""


class EditResource(RevealResource):
    """Stores an edited body, and redirects to the plan of its replay. It delivers nothing."""

    async def on_post(self, req: Request, resp: Response, seq: int) -> None:
        """Respond with the number of the stored body as JSON, or redirect. The event's page shows an unusable body again."""
        is_json, actor = wants_json(req), req.context.actor
        if not actor.may_act:
            raise NotAllowed("only operators may edit; viewers are read-only")
        given = await (read_json if is_json else read_form)(req, MOST_EDITED)
        text = given.get("body")
        if not isinstance(text, str):
            raise BadFilter("body: give the edited body as text", field="body")
        order = convert(EditOrder, {**given, "body": ""}, self._clock.now(), strict=True)  # it may be long
        reason = check_reason(order.reason)
        headers, own = await self._reveal(actor, seq, reason)
        body = text if is_json else text.replace("\r\n", "\n")  # as browsers send lines

        def store(database: Database) -> int:
            edits.examine(self._readers.config, edits.read_editable(database, seq), body.encode())
            return edits.add(database, seq, body.encode())

        try:
            number = await self._readers.write(store)
        except UnusableCommand as error:
            problem = BadFilter(str(error), field="body")
            if is_json:
                raise problem from None
            page = await self._readers.read(actor, lambda reading: event(reading, EventQuery(seq=seq)))
            shown = RevealedPage(headers, body, len(own), reason, is_editable=True)
            set_status(resp, problem)
            self._renderer.show_screen(
                resp, EVENT, given={"seq": seq}, page=page, actor=actor, shown=shown, problem=problem
            )
            return
        href = url("/acts/replay", {"seq": seq, "route": order.route, "edited_body": number})
        if is_json:
            resp.media = EditAnswer(number, API + href)
        else:
            resp.status, resp.location = falcon.HTTP_303, href
