"""The commercial service: contacts and teams that other systems know by external id, kept in sync from outside.

A share of its calls can be made to fail. A failed call changes nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import falcon
from falcon.asgi import Request, Response

from relay.demo.web import Authorization, answer, app_with, read_object

Record = dict[str, Any]

_RETRY_AFTER = (
    "0.2"  # RFC 9110 section 10.2.3 knows whole seconds only; fractions are seen in the field, and keep a demo short
)


@dataclass(frozen=True, slots=True)
class RecordType:
    """A type of record: its name in paths and the fields that a client may set, all of them text; the first is unique."""

    path: str
    fields: tuple[str, ...]


CONTACT = RecordType("contacts", ("external_id", "email", "first_name", "last_name", "phone"))
TEAM = RecordType("teams", ("external_id", "name"))


@dataclass(frozen=True, slots=True)
class CallMade:
    """A call to the commercial service, its answer's status, and its effect."""

    method: str
    path: str
    """With its query."""
    status: int
    external_id: str | None = None
    """The external id of the record that was created, changed or deleted."""
    changed: Mapping[str, str | None] = field(default_factory=dict)
    """The record's fields that have another value now."""


class CommercialService:
    """Contacts and teams. `app` is the Falcon app, whose event loop alone changes records."""

    def __init__(
        self,
        *,
        fail_share: float = 0.0,
        rng: random.Random | None = None,
        latency: float = 0.0,
        on_call: Callable[[CallMade], None] = lambda _: None,
    ) -> None:
        """Start without records.

        Args:
            fail_share: the share of calls, from 0 to 1, that is answered with 503.
            rng: decides which; a seeded one fails the same calls every time.
            latency: seconds between a call's effect and its answer.
            on_call: gets each call before it is answered, on the server's thread; must not raise.
        """
        self.fail_share = fail_share
        self._rng, self._latency, self._on_call = rng or random.Random(), latency, on_call  # noqa: S311 - luck
        bearer = Authorization("Bearer", "demo")
        self.app = app_with(self, bearer, error_body=lambda message, _: {"error": message})
        self._resources = {record_type: _RecordResource(record_type) for record_type in (CONTACT, TEAM)}
        for record_type, resource in self._resources.items():
            self.app.add_route(f"/{record_type.path}", resource, suffix="all")
            self.app.add_route(f"/{record_type.path}/{{record_id}}", resource)

    def all(self, record_type: RecordType) -> list[Record]:
        """List every record of a type, oldest first, for any thread: records are replaced, never changed."""
        return list(self._resources[record_type].records.values())

    async def process_request(self, _req: Request, resp: Response) -> None:
        """Fail a call before anything else happens to it."""
        if self._rng.random() < self.fail_share:
            resp.set_header("Retry-After", _RETRY_AFTER)
            raise falcon.HTTPServiceUnavailable(description="try again later")

    async def process_response(self, req: Request, resp: Response, _resource: object, _succeeded: bool) -> None:
        """Report a call once its answer is known."""
        self._on_call(CallMade(req.method, req.relative_uri, resp.status_code, **getattr(req.context, "effect", {})))
        await asyncio.sleep(self._latency)


class _RecordResource:
    """The records of one type, by id."""

    def __init__(self, record_type: RecordType) -> None:
        self._type = record_type
        self.records: dict[str, Record] = {}
        self._numbers = itertools.count(1)

    async def on_get_all(self, req: Request, resp: Response) -> None:
        external_id = req.get_param("externalId")
        found = [each for each in self.records.values() if external_id in {None, each["external_id"]}]
        offset = req.get_param_as_int("offset", min_value=0, default=0)
        limit = req.get_param_as_int("limit", min_value=1, default=len(found))
        answer(resp, {"items": found[offset : offset + limit]})

    async def on_post_all(self, req: Request, resp: Response) -> None:
        body = await read_object(req)
        answer(resp, self._put(req, f"{self._type.path[:-1]}-{next(self._numbers)}", {}, body), 201)

    async def on_get(self, _: Request, resp: Response, record_id: str) -> None:
        answer(resp, self._get(record_id))

    async def on_patch(self, req: Request, resp: Response, record_id: str) -> None:
        patch = await read_object(req, "application/merge-patch+json")  # RFC 7396: of a flat record, null clears
        answer(resp, self._put(req, record_id, self._get(record_id), patch))

    async def on_delete(self, req: Request, resp: Response, record_id: str) -> None:
        req.context.effect = {"external_id": self._get(record_id)["external_id"]}
        del self.records[record_id]
        resp.status = falcon.HTTP_NO_CONTENT

    def _get(self, record_id: str) -> Record:
        try:
            return self.records[record_id]
        except KeyError:
            raise falcon.HTTPNotFound(description=f"there is no {record_id} in {self._type.path}") from None

    def _put(self, req: Request, record_id: str, before: Record, changes: Record) -> Record:
        record = {"id": record_id, **dict.fromkeys(self._type.fields), **before, **changes}
        for name, value in changes.items():
            if name not in self._type.fields or not isinstance(value, str | None):
                raise falcon.HTTPUnprocessableEntity(description=f"{self._type.path} have no text field {name}")
        external_id = record["external_id"]
        others = [each["external_id"] for each in self.records.values() if each["id"] != record_id]
        if external_id is not None and external_id in others:
            raise falcon.HTTPConflict(description=f"external_id {external_id} exists already")
        self.records[record_id] = record
        changed = {name: record[name] for name in self._type.fields[1:] if record[name] != before.get(name)}
        req.context.effect = {"external_id": external_id, "changed": changed}
        return record
