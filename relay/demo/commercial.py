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

_MERGE_PATCH_TYPE = "application/merge-patch+json"
_RETRY_AFTER = (
    "0.2"  # RFC 9110 section 10.2.3 knows whole seconds only; fractions are seen in the field, and keep a demo short
)


@dataclass(frozen=True, slots=True)
class RecordType:
    """A type of record: its name in paths and the fields that a client may set, all of them text."""

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
    """Of the record that was created, changed or deleted."""
    changed: Mapping[str, str | None] = field(default_factory=dict)
    """Its fields that have another value now."""


class CommercialService:
    """Contacts and teams in memory. `app` is the Falcon app, whose event loop alone changes records.

    Records are replaced, never changed: `all` may be called from any thread.
    """

    def __init__(
        self,
        *,
        fail_share: float = 0.0,
        rng: random.Random | None = None,
        latency: float = 0.0,
        on_call: Callable[[CallMade], None] = lambda _: None,
    ) -> None:
        """Starts the service without records.

        Args:
            fail_share: the share of calls, from 0 to 1, that is answered with 503.
            rng: decides which; a seeded one fails the same calls every time.
            latency: seconds between a call's effect and its answer.
            on_call: gets each call before it is answered, on the server's thread; must not raise.
        """
        self.fail_share = fail_share
        self._records: dict[RecordType, dict[str, Record]] = {CONTACT: {}, TEAM: {}}
        self._numbers = {record_type: itertools.count(1) for record_type in self._records}
        middleware = _Calls(self, rng or random.Random(), latency, on_call)  # noqa: S311 - luck, not secrecy
        self.app = app_with(
            middleware, Authorization("Bearer", "demo"), error_body=lambda message, _: {"error": message}
        )
        for record_type in self._records:
            resource = _RecordResource(self, record_type)
            self.app.add_route(f"/{record_type.path}", resource, suffix="all")
            self.app.add_route(f"/{record_type.path}/{{record_id}}", resource)

    def all(self, record_type: RecordType) -> list[Record]:
        """Lists every record of a type, oldest first."""
        return list(self._records[record_type].values())

    def find(self, record_type: RecordType, external_id: str) -> list[Record]:
        """Lists the record with that external id, or nothing."""
        return [record for record in self.all(record_type) if record["external_id"] == external_id]

    def get(self, record_type: RecordType, record_id: str) -> Record:
        """Returns a record. Raises `falcon.HTTPNotFound`."""
        try:
            return self._records[record_type][record_id]
        except KeyError:
            raise falcon.HTTPNotFound(description=f"there is no {record_id} in {record_type.path}") from None

    def create(self, record_type: RecordType, body: Record) -> Record:
        """Adds a record and returns it. Raises as `patch`."""
        return self._put(record_type, f"{record_type.path[:-1]}-{next(self._numbers[record_type])}", body)

    def patch(self, record_type: RecordType, record_id: str, patch: Record) -> Record:
        """Applies a JSON merge patch (RFC 7396) and returns the record; of a flat one, null clears and the rest replaces.

        Raises:
            falcon.HTTPNotFound: there is no such record.
            falcon.HTTPUnprocessableEntity: an unknown field, or one that is not text.
            falcon.HTTPConflict: another record has that external id.
        """
        return self._put(record_type, record_id, {**self.get(record_type, record_id), **patch})

    def delete(self, record_type: RecordType, record_id: str) -> Record:
        """Removes a record and returns it. Raises as `get`."""
        self.get(record_type, record_id)
        return self._records[record_type].pop(record_id)

    def _put(self, record_type: RecordType, record_id: str, body: Record) -> Record:
        given = {name: value for name, value in body.items() if value is not None and name != "id"}
        for name, value in given.items():
            if name not in record_type.fields or not isinstance(value, str):
                raise falcon.HTTPUnprocessableEntity(description=f"{record_type.path} have no text field {name}")
        external_id = given.get("external_id")
        if external_id and any(other["id"] != record_id for other in self.find(record_type, external_id)):
            raise falcon.HTTPConflict(description=f"external_id {external_id} exists already")
        record = {"id": record_id, **dict.fromkeys(record_type.fields), **given}
        self._records[record_type][record_id] = record
        return record


class _Calls:
    """Middleware that fails calls before anything else happens to them, and reports each once its answer is known."""

    def __init__(
        self, service: CommercialService, rng: random.Random, latency: float, on_call: Callable[[CallMade], None]
    ) -> None:
        self._service, self._rng, self._latency, self._on_call = service, rng, latency, on_call

    async def process_request(self, _req: Request, resp: Response) -> None:
        if self._rng.random() < self._service.fail_share:
            resp.set_header("Retry-After", _RETRY_AFTER)
            raise falcon.HTTPServiceUnavailable(description="try again later")

    async def process_response(self, req: Request, resp: Response, _resource: object, _succeeded: bool) -> None:
        self._on_call(CallMade(req.method, req.relative_uri, resp.status_code, **getattr(req.context, "effect", {})))
        await asyncio.sleep(self._latency)


class _RecordResource:
    def __init__(self, service: CommercialService, record_type: RecordType) -> None:
        self._service, self._type = service, record_type

    async def on_get_all(self, req: Request, resp: Response) -> None:
        external_id = req.params.get("externalId")
        if isinstance(external_id, list):
            raise falcon.HTTPBadRequest(description="externalId may stand only once")
        found = self._service.all(self._type) if external_id is None else self._service.find(self._type, external_id)
        offset = req.get_param_as_int("offset", min_value=0, default=0)
        limit = req.get_param_as_int("limit", min_value=1, default=len(found))
        answer(resp, {"items": found[offset : offset + limit]})

    async def on_post_all(self, req: Request, resp: Response) -> None:
        record = self._service.create(self._type, await read_object(req))
        _note_effect(req, {}, record)
        resp.location = f"/{self._type.path}/{record['id']}"
        answer(resp, record, 201)

    async def on_get(self, _: Request, resp: Response, record_id: str) -> None:
        answer(resp, self._service.get(self._type, record_id))

    async def on_patch(self, req: Request, resp: Response, record_id: str) -> None:
        patch = await read_object(req, _MERGE_PATCH_TYPE)
        before = self._service.get(self._type, record_id)
        record = self._service.patch(self._type, record_id, patch)
        _note_effect(req, before, record)
        answer(resp, record)

    async def on_delete(self, req: Request, resp: Response, record_id: str) -> None:
        record = self._service.delete(self._type, record_id)
        _note_effect(req, record, record)
        resp.status = falcon.HTTP_NO_CONTENT


def _note_effect(req: Request, before: Record, after: Record) -> None:
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    external_id = changed.pop("external_id", before.get("external_id"))
    changed.pop("id", None)
    req.context.effect = {"external_id": external_id, "changed": changed}
