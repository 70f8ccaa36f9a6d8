"""The identity service: the paths of the Trivore Management API that its clients use, and a webhook for every change.

What clients expect is taken from the vendor's own one, PyPI `trivoreid` 2.0.10. Webhooks have the classic form of
trivore.atlassian.net/wiki/spaces/TISpubdoc/pages/20515352.
"""

from __future__ import annotations

import base64
import itertools
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import falcon
from falcon.asgi import Request, Response

from inbox.clock import SystemClock
from relay.demo.scim_filter import InvalidFilterError, parse_filter
from relay.demo.web import Authorization, answer, app_with, read_object
from relay.demo.webhooks import WebhookSender

Action = Literal["create", "update", "delete"]
Document = dict[str, Any]

REPLICA_BEHIND = timedelta(seconds=5)
_API = "/api/rest/v1"
_CREDENTIALS = base64.b64encode(b"demo:demo").decode()  # RFC 7617
_DEFAULT_COUNT, _MAX_COUNT = 100, 500  # the largest page, by the docstrings of trivoreid 2.0.10


@dataclass(frozen=True, slots=True, eq=False)
class EntityType:
    """A type of entity: its name in webhooks and in paths, and the fields that its documents have in any case."""

    name: str
    path: str
    fields: Mapping[str, Any]

    def stored(self, body: Document) -> Document:
        """Return a document in the form in which it is stored, without what only the service sets.

        Null members are left out: the vendor's client (trivoreid 2.0.10, models/user.py) iterates over `emails`,
        `mobiles` and the like without asking whether they are null. The password is never kept.
        """
        dropped = ("id", "meta", "password")
        kept = {name: value for name, value in body.items() if value is not None and name not in dropped}
        return {"nsCode": "demo", **self.fields, **kept}


USER = EntityType("USER", "user", {"name": {}, "emails": [], "mobiles": [], "memberOf": []})
GROUP = EntityType("GROUP", "group", {"name": "", "memberOf": []})


class IdentityService:
    """Users and groups of the namespace `demo`, in memory. `app` is the Falcon app; methods may be called by any thread.

    Stored documents are replaced, never changed: callers only read them.
    """

    def __init__(
        self,
        webhooks: WebhookSender,
        *,
        is_slow: Callable[[], bool] = lambda: False,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        """Start without users.

        Args:
            webhooks: sends a webhook for each change; its threads run until its `close`.
            is_slow: asked at each update; true makes it `late`.
            now: the time as an aware datetime in UTC; the machine's clock without it.
        """
        self.webhooks, self._is_slow = webhooks, is_slow
        self._now, self._latest = now or SystemClock().now, datetime.min.replace(tzinfo=UTC)
        self._before: dict[str, tuple[datetime, Document]] = {}  # until when the next read gives this
        self._lock = threading.Lock()  # held while a webhook is queued: they have the order of the changes
        self._documents: dict[EntityType, dict[str, Document]] = {USER: {}, GROUP: {}}
        # As MongoDB's ObjectId: 4 bytes of seconds, 5 of the process, 3 of a counter; so ids sort by creation.
        self._process, self._counter = secrets.token_hex(5), itertools.count()
        self.app = app_with(
            Authorization("Basic", _CREDENTIALS),
            error_body=lambda message, status: {"errorMessage": message, "statusCode": status},
        )
        for entity_type in (USER, GROUP):
            resource = _EntityResource(self, entity_type)
            self.app.add_route(f"{_API}/{entity_type.path}", resource, suffix="all")
            self.app.add_route(f"{_API}/{entity_type.path}/{{entity_id}}", resource)

    def create(self, entity_type: EntityType, body: Document, *, report: bool = True) -> Document:
        """Store a new user or group, send the webhook unless told not to, and return the document."""
        fields = entity_type.stored(body)
        with self._lock:
            moment = self._tick()
            number = next(self._counter) & 0xFFFFFF
            entity_id = f"{int(moment.timestamp()) & 0xFFFFFFFF:08x}{self._process}{number:06x}"
            created, location = rfc3339_milliseconds(moment), f"{_API}/{entity_type.path}/{entity_id}"
            meta = {"created": created, "lastModified": created, "location": location}
            return self._put(entity_type, {"id": entity_id, **fields, "meta": meta}, "CREATE", report=report)

    def replace(
        self, entity_type: EntityType, entity_id: str, body: Document, *, report: bool = True, late: bool = False
    ) -> Document:
        """Replace the whole document, send the webhook and return the new one; id and creation time stay.

        When it is `late`, the first `read` within `REPLICA_BEHIND` gets the document before it. Raises as `get`.
        """
        fields = entity_type.stored(body)
        with self._lock:
            old = self.get(entity_type, entity_id)
            moment = self._tick()
            self._before.pop(entity_id, None)
            if self._is_slow() or late:
                self._before[entity_id] = (moment + REPLICA_BEHIND, old)
            meta = {**old["meta"], "lastModified": rfc3339_milliseconds(moment)}
            return self._put(entity_type, {"id": entity_id, **fields, "meta": meta}, "UPDATE", report=report)

    def delete(self, entity_type: EntityType, entity_id: str, *, report: bool = True) -> None:
        """Remove a user or group and send the webhook. Raises as `get`."""
        with self._lock:
            self.get(entity_type, entity_id)
            del self._documents[entity_type][entity_id]
            if report:
                self._send_webhook(entity_type, entity_id, "DELETE", rfc3339_milliseconds(self._tick()))

    def get(self, entity_type: EntityType, entity_id: str) -> Document:
        """Return the document of a user or group. Raises `falcon.HTTPNotFound`."""
        try:
            return self._documents[entity_type][entity_id]
        except KeyError:
            raise falcon.HTTPNotFound(description=f"There is no {entity_type.path} {entity_id}.") from None

    def read(self, entity_type: EntityType, entity_id: str) -> Document:
        """Return the document from a replica, which may lag. Raises as `get`."""
        with self._lock:
            present = self.get(entity_type, entity_id)
            until, before = self._before.pop(entity_id, (None, present))
            return present if until is None or until <= self._now() else before

    def all(self, entity_type: EntityType) -> list[Document]:
        """List every document of a type, oldest first."""
        return list(self._documents[entity_type].values())

    def _tick(self) -> datetime:
        """Return the time, at least a millisecond after the one before.

        Two changes of an entity within one millisecond would give the same webhook, byte for byte, and the receiver
        takes the second for a duplicate.
        """
        self._latest = max(self._now(), self._latest + timedelta(milliseconds=1))
        return self._latest

    def _put(self, entity_type: EntityType, document: Document, event_type: str, *, report: bool) -> Document:
        self._documents[entity_type][document["id"]] = document
        if report:
            self._send_webhook(entity_type, document["id"], event_type, document["meta"]["lastModified"])
        return document

    def _send_webhook(self, entity_type: EntityType, entity_id: str, event_type: str, at: str) -> None:
        self.webhooks.put({"id": entity_id, "entityType": entity_type.name, "eventType": event_type, "timestamp": at})


def rfc3339_milliseconds(moment: datetime) -> str:
    """Format an aware UTC datetime as the identity service does, cut to milliseconds: `2018-09-21T06:29:05.708Z`."""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


class _EntityResource:
    def __init__(self, service: IdentityService, entity_type: EntityType) -> None:
        self._service, self._type = service, entity_type

    async def on_get_all(self, req: Request, resp: Response) -> None:
        answer(resp, _page(req, self._service.all(self._type)))

    async def on_post_all(self, req: Request, resp: Response) -> None:
        document = _located(req, self._service.create(self._type, await read_object(req)))
        resp.location = document["meta"]["location"]
        answer(resp, document, 201)

    async def on_get(self, req: Request, resp: Response, entity_id: str) -> None:
        answer(resp, _located(req, self._service.read(self._type, entity_id)))

    async def on_put(self, req: Request, resp: Response, entity_id: str) -> None:
        answer(resp, _located(req, self._service.replace(self._type, entity_id, await read_object(req))))

    async def on_delete(self, _: Request, resp: Response, entity_id: str) -> None:
        self._service.delete(self._type, entity_id)
        resp.status = falcon.HTTP_NO_CONTENT


def _page(req: Request, documents: list[Document]) -> Document:
    """Cut the requested page out of the documents that pass the request's filter."""
    start = req.get_param_as_int("startIndex", min_value=0, default=0)
    count = req.get_param_as_int("count", min_value=1, max_value=_MAX_COUNT, default=_DEFAULT_COUNT)
    if text := req.get_param("filter"):
        try:
            passes = parse_filter(text)
        except InvalidFilterError as error:
            raise falcon.HTTPBadRequest(title="invalidFilter", description=f"invalidFilter: {error}.") from None
        documents = [document for document in documents if passes(document)]
    resources = [_located(req, document) for document in documents[start : start + count]]
    # itemsPerPage is the number in this page, RFC 7644 section 3.4.2.
    return {"totalResults": len(documents), "startIndex": start, "itemsPerPage": len(resources), "resources": resources}


def _located(req: Request, document: Document) -> Document:
    """Make the document's location an absolute URL."""
    meta = document["meta"]
    return {**document, "meta": {**meta, "location": f"{req.prefix}{meta['location']}"}}
