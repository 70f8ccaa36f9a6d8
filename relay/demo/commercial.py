"""The commercial service: contacts and teams that other systems know by external id, kept in step from outside.

It can be told to fail: a share of its calls, or all of them. A failed call changes nothing.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import falcon
import msgspec

from relay.demo.records import (
    CONTACT,
    TEAM,
    Applied,
    DuplicateError,
    InvalidRecordError,
    Records,
    RecordType,
    UnknownRecordError,
)
from relay.demo.server import serve_until_stopped
from relay.demo.web import JSON_TYPE, Authorization, answer, error_serializer, read_object, refuse_with

OnCall = Callable[[str, str, int, dict[str, Any] | None], None]

_MERGE_PATCH_TYPE = "application/merge-patch+json"
_KEPT_ANSWERS = 100_000


class CommercialService:
    """A commercial service. `app` is its WSGI app; while `outage` is true every call is answered with 503."""

    def __init__(
        self, app: falcon.App[falcon.Request, falcon.Response], records: dict[RecordType, Records], failures: _Failures
    ) -> None:
        self.app = app
        self._records = records
        self._failures = failures

    @property
    def outage(self) -> bool:
        """Whether every call fails."""
        return self._failures.outage

    @outage.setter
    def outage(self, value: bool) -> None:
        self._failures.outage = value

    @property
    def fail_share(self) -> float:
        """The share of calls, from 0 to 1, that fails."""
        return self._failures.share

    @fail_share.setter
    def fail_share(self, value: float) -> None:
        self._failures.share = value

    def all(self, record_type: RecordType) -> list[dict[str, Any]]:
        """Every record of a type, oldest first."""
        return self._records[record_type].all()

    def find(self, record_type: RecordType, external_id: str) -> dict[str, Any] | None:
        """The record with that external id."""
        found = self._records[record_type].find(external_id)
        return found[0] if found else None

    def history(self, record_type: RecordType, external_id: str) -> list[Applied]:
        """What was applied to records with that external id, in order; it outlives the record."""
        return self._records[record_type].history(external_id)


def create_app(
    *,
    token: str = "demo",  # noqa: S107 - a made-up one, for trying out
    fail_share: float = 0.0,
    rng: random.Random | None = None,
    retry_after: float = 0.2,
    on_call: OnCall | None = None,
) -> CommercialService:
    """A commercial service without records.

    Args:
        token: the bearer token of its clients.
        fail_share: the share of calls, from 0 to 1, that is answered with 503.
        rng: decides which; a seeded one fails the same calls every time.
        retry_after: the seconds in the Retry-After of a 503.
        on_call: told the method, the path with its query, the status and the body (None: no JSON object) of each call,
            on the thread that answers; must not raise.
    """
    failures = _Failures(fail_share, rng or random.Random(), retry_after)  # noqa: S311 - luck, not secrecy
    app = falcon.App()
    app.add_middleware(_Screen(on_call))
    app.add_middleware(failures)
    app.add_middleware(Authorization.bearer(token))
    app.set_error_serializer(error_serializer(lambda message, _: {"error": message}))
    records = {record_type: Records(record_type) for record_type in (CONTACT, TEAM)}
    for record_type, kept in records.items():
        app.add_route(f"/{record_type.path}", _Collection(kept, _FirstAnswers()))
        app.add_route(f"/{record_type.path}/{{record_id}}", _Member(kept))
    app.add_error_handler(UnknownRecordError, refuse_with(falcon.HTTPNotFound))
    app.add_error_handler(InvalidRecordError, refuse_with(falcon.HTTPUnprocessableEntity))
    app.add_error_handler(DuplicateError, refuse_with(falcon.HTTPConflict))
    return CommercialService(app, records, failures)


def run_commercial(
    port: int,
    fail_share: float = 0.0,
    *,
    rng: random.Random | None = None,
    token: str = "demo",  # noqa: S107 - a made-up one, for trying out
    on_call: OnCall | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Runs the commercial service on 127.0.0.1 until SIGTERM or SIGINT; main thread only.

    Args:
        port: where to listen; 0 takes a free port.
        fail_share: the share of calls, from 0 to 1, that is answered with 503.
        rng: decides which.
        token: the bearer token of its clients.
        on_call: told the method, path, status and body of each call; must not raise.
        on_ready: told the service's URL once it answers.

    Raises:
        OSError: the port is taken.
    """
    service = create_app(token=token, fail_share=fail_share, rng=rng, on_call=on_call)
    serve_until_stopped(service.app, port, on_ready)


class _Failures:
    """Middleware that fails calls before anything else happens to them."""

    def __init__(self, share: float, rng: random.Random, retry_after: float) -> None:
        self.share, self.outage = share, False
        self._rng, self._retry_after = rng, retry_after
        self._lock = threading.Lock()

    def process_request(self, _req: falcon.Request, resp: falcon.Response) -> None:
        with self._lock:
            fails = self._rng.random() < self.share or self.outage
        if fails:
            # RFC 9110 section 10.2.3 knows whole seconds only; fractions are seen in the field, and keep a demo short.
            resp.set_header("Retry-After", f"{self._retry_after:g}")
            raise falcon.HTTPServiceUnavailable(description="try again later")


class _Screen:
    """Middleware that tells of each call once its answer is known."""

    def __init__(self, on_call: OnCall | None) -> None:
        self._on_call = on_call

    def process_response(self, req: falcon.Request, resp: falcon.Response, _resource: object, _succeeded: bool) -> None:
        if self._on_call is not None:
            self._on_call(req.method, req.relative_uri, resp.status_code, getattr(req.context, "body", None))


class _FirstAnswers:
    """The first answer to each Idempotency-Key, for when the same POST comes again.

    A key that comes with another body is refused with 422, as draft-ietf-httpapi-idempotency-key-header asks.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while answering: two of the same at once must not both be the first
        self._answers: OrderedDict[str, tuple[bytes, int, object]] = OrderedDict()

    def recall(self, key: str, body: dict[str, Any]) -> tuple[int, object] | None:
        first = self._answers.get(key)
        if first is None:
            return None
        if first[0] != _fingerprint(body):
            raise falcon.HTTPUnprocessableEntity(description="this Idempotency-Key came with another body before")
        return first[1:]

    def keep(self, key: str, body: dict[str, Any], status: int, content: object) -> None:
        self._answers[key] = (_fingerprint(body), status, content)
        if len(self._answers) > _KEPT_ANSWERS:
            self._answers.popitem(last=False)


class _Collection:
    def __init__(self, records: Records, first_answers: _FirstAnswers) -> None:
        self._records, self._first_answers = records, first_answers

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        external_id = req.params.get("externalId")
        if isinstance(external_id, list):
            raise falcon.HTTPBadRequest(description="externalId may stand only once")
        found = self._records.all() if external_id is None else self._records.find(external_id)
        offset = req.get_param_as_int("offset", min_value=0, default=0)
        limit = req.get_param_as_int("limit", min_value=1, default=len(found))
        answer(resp, {"items": found[offset : offset + limit]})

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        body = req.context.body = read_object(req)
        key = req.get_header("Idempotency-Key")
        if key is None:
            answer(resp, *self._create(body, None))
            return
        with self._first_answers.lock:
            first = self._first_answers.recall(key, body)
            if first is None:
                content, status = self._create(body, key)
                self._first_answers.keep(key, body, status, content)
            else:
                status, content = first
                resp.set_header("Idempotent-Replayed", "true")
        answer(resp, content, status)

    def _create(self, body: dict[str, Any], key: str | None) -> tuple[object, int]:
        try:
            return self._records.create(body, key), 201
        except DuplicateError as error:
            return {"error": str(error)}, 409


class _Member:
    def __init__(self, records: Records) -> None:
        self._records = records

    def on_get(self, _: falcon.Request, resp: falcon.Response, record_id: str) -> None:
        answer(resp, self._records.get(record_id))

    def on_patch(self, req: falcon.Request, resp: falcon.Response, record_id: str) -> None:
        body = req.context.body = read_object(req, (_MERGE_PATCH_TYPE, JSON_TYPE))
        answer(resp, self._records.patch(record_id, body, req.get_header("Idempotency-Key")))

    def on_delete(self, req: falcon.Request, resp: falcon.Response, record_id: str) -> None:
        self._records.delete(record_id, req.get_header("Idempotency-Key"))
        resp.status = falcon.HTTP_NO_CONTENT


def _fingerprint(body: dict[str, Any]) -> bytes:
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).digest()
