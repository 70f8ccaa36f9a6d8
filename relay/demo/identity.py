"""The identity service: the paths of the Trivore Management API that its clients use, and a webhook for every change.

What clients expect is taken from the vendor's own one, PyPI `trivoreid` 2.0.10; the filter language is in
`scim_filter`, the form of webhooks in `webhooks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import falcon

from inbox.clock import SystemClock
from relay.demo.documents import InvalidDocumentError
from relay.demo.entities import API, GROUP, USER, AlreadyTakenError, Entities, EntityType, UnknownEntityError
from relay.demo.people import sample_user
from relay.demo.scim_filter import InvalidFilterError, parse_filter
from relay.demo.server import serve_until_stopped
from relay.demo.web import Authorization, answer, error_serializer, read_object, refuse_with
from relay.demo.webhooks import Change, Form, WebhookSender, payload

_DEFAULT_COUNT = 100
_MAX_COUNT = 500  # the largest page, by the docstrings of trivoreid 2.0.10


class IdentityService:
    """An identity service. `app` is its WSGI app; the methods do in the process what the HTTP calls do from outside."""

    def __init__(
        self, app: falcon.App[falcon.Request, falcon.Response], entities: Entities, sender: WebhookSender
    ) -> None:
        self.app = app
        self._entities = entities
        self._sender = sender

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, no webhook tells of a change, now or later."""
        self._sender.silent = True
        try:
            yield
        finally:
            self._sender.silent = False

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Inside, whoever asks first after an update gets the document as it was before."""
        self._entities.slow = True
        try:
            yield
        finally:
            self._entities.slow = False

    def create(self, entity_type: EntityType, document: dict[str, Any]) -> dict[str, Any]:
        """Stores a new user or group, returns its document, sends the webhook. Raises as `Entities.create`."""
        return self._entities.create(entity_type, document)

    def replace(self, entity_type: EntityType, entity_id: str, document: dict[str, Any]) -> dict[str, Any]:
        """Replaces the whole document, returns the new one, sends the webhook. Raises as `Entities.replace`."""
        return self._entities.replace(entity_type, entity_id, document)

    def delete(self, entity_type: EntityType, entity_id: str) -> None:
        """Removes a user or group and sends the webhook. Raises as `Entities.delete`."""
        self._entities.delete(entity_type, entity_id)

    def get(self, entity_type: EntityType, entity_id: str) -> dict[str, Any]:
        """The document of a user or group. Raises as `Entities.get`."""
        return self._entities.get(entity_type, entity_id)

    def all(self, entity_type: EntityType) -> list[dict[str, Any]]:
        """Every document of a type, oldest first; for reading only."""
        return self._entities.all(entity_type)

    def send_webhooks_to(self, url: str | None) -> None:
        """From now on webhooks go to `url`, those still waiting too; None sends none for later changes."""
        self._sender.url = url

    def pending_webhooks(self) -> int:
        """How many webhooks the receiver has not accepted yet."""
        return self._sender.pending()

    def wait_until_sent(self, timeout: float | None = None) -> bool:
        """Waits until every webhook has been accepted; False if that took longer than `timeout` seconds."""
        return self._sender.wait_until_sent(timeout)

    def close(self) -> None:
        """Stops sending; webhooks that are still waiting are given up."""
        self._sender.close()


def create_app(
    webhook_url: str | None = None,
    *,
    form: Form = "classic",
    webhook_headers: Mapping[str, str] | None = None,
    on_webhook: Callable[[Mapping[str, str], int | None], None] | None = None,
    client: str = "demo",
    secret: str = "demo",  # noqa: S107 - a made-up one, for trying out
    now: Callable[[], datetime] | None = None,
    senders: int = 4,
    loses_answer: Callable[[], bool] = lambda: False,
    is_slow: Callable[[], bool] = lambda: False,
) -> IdentityService:
    """An identity service without users, in the namespace `demo`. Its sending threads run until `close`.

    Args:
        webhook_url: where webhooks go; without one, none are sent.
        form: the form of their payload.
        webhook_headers: sent with each webhook, such as a token.
        on_webhook: told the payload and the status (None: no answer) of each try, on a sending thread; must not raise.
        client: the user name of HTTP Basic authentication.
        secret: its password.
        now: the time as an aware datetime in UTC; the machine's clock without it.
        senders: how many webhooks of different entities may be under way at once.
        loses_answer: asked after each accepted webhook, on a sending thread; true has it sent again.
        is_slow: asked at each update; true gives whoever asks first for that entity the document as it was before.
    """
    sender = WebhookSender(
        webhook_url, headers=webhook_headers, senders=senders, on_webhook=on_webhook, loses_answer=loses_answer
    )

    def announce(change: Change) -> None:
        sender.put(f"{change.entity_type}/{change.entity_id}", payload(change, form))

    entities = Entities(now or SystemClock().now, announce, is_slow=is_slow)
    app = falcon.App(middleware=[Authorization.basic(client, secret)])
    app.set_error_serializer(error_serializer(lambda message, status: {"errorMessage": message, "statusCode": status}))
    app.add_error_handler(UnknownEntityError, refuse_with(falcon.HTTPNotFound))
    app.add_error_handler(InvalidDocumentError, refuse_with(falcon.HTTPBadRequest))
    app.add_error_handler(InvalidFilterError, refuse_with(falcon.HTTPBadRequest))
    app.add_error_handler(AlreadyTakenError, refuse_with(falcon.HTTPConflict))
    for entity_type in (USER, GROUP):
        app.add_route(f"{API}/{entity_type.path}", _Collection(entities, entity_type))
        app.add_route(f"{API}/{entity_type.path}/{{entity_id}}", _Member(entities, entity_type))
    app.add_route(f"{API}/namespace", _Namespaces(entities))
    app.add_route(f"{API}/namespace/{{id_or_code}}", _Namespace(entities))
    return IdentityService(app, entities, sender)


def run_identity(
    port: int,
    webhook_url: str | None = None,
    *,
    form: Form = "classic",
    webhook_headers: Mapping[str, str] | None = None,
    users: int = 0,
    on_webhook: Callable[[Mapping[str, str], int | None], None] | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Runs the identity service on 127.0.0.1 until SIGTERM or SIGINT; main thread only.

    Args:
        port: where to listen; 0 takes a free port.
        webhook_url: where webhooks go; without one, none are sent.
        form: the form of their payload.
        webhook_headers: sent with each webhook, such as a token.
        users: how many made-up users there are from the start; no webhooks tell of them.
        on_webhook: told the payload and the status (None: no answer) of each try; must not raise.
        on_ready: told the service's URL once it answers.

    Raises:
        OSError: the port is taken.
    """
    service = create_app(form=form, webhook_headers=webhook_headers, on_webhook=on_webhook)
    try:
        for number in range(users):
            service.create(USER, sample_user(number))
        service.send_webhooks_to(webhook_url)
        serve_until_stopped(service.app, port, on_ready)
    finally:
        service.close()


class _Collection:
    def __init__(self, entities: Entities, entity_type: EntityType) -> None:
        self._entities, self._entity_type = entities, entity_type

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        answer(resp, _page(req, self._entities.all(self._entity_type)))

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        document = self._entities.create(self._entity_type, read_object(req))
        resp.location = document["meta"]["location"]
        answer(resp, _located(req, document), 201)


class _Member:
    def __init__(self, entities: Entities, entity_type: EntityType) -> None:
        self._entities, self._entity_type = entities, entity_type

    def on_get(self, req: falcon.Request, resp: falcon.Response, entity_id: str) -> None:
        answer(resp, _located(req, self._entities.read(self._entity_type, entity_id)))

    def on_put(self, req: falcon.Request, resp: falcon.Response, entity_id: str) -> None:
        answer(resp, _located(req, self._entities.replace(self._entity_type, entity_id, read_object(req))))

    def on_delete(self, _: falcon.Request, resp: falcon.Response, entity_id: str) -> None:
        self._entities.delete(self._entity_type, entity_id)
        resp.status = falcon.HTTP_NO_CONTENT


class _Namespaces:
    def __init__(self, entities: Entities) -> None:
        self._entities = entities

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        answer(resp, _page(req, self._entities.namespaces()))


class _Namespace:
    def __init__(self, entities: Entities) -> None:
        self._entities = entities

    def on_get(self, req: falcon.Request, resp: falcon.Response, id_or_code: str) -> None:
        for namespace in self._entities.namespaces():
            if id_or_code in {namespace["id"], namespace["code"]}:
                answer(resp, _located(req, namespace))
                return
        raise falcon.HTTPNotFound(description=f"There is no namespace {id_or_code}.")


def _page(req: falcon.Request, documents: list[dict[str, Any]]) -> dict[str, Any]:
    """One page of the documents that pass the request's filter."""
    start = _number(req, "startIndex", 0, least=0, most=None)
    count = _number(req, "count", _DEFAULT_COUNT, least=1, most=_MAX_COUNT)
    text = req.get_param("filter")
    accepts = parse_filter(text) if text else None
    found = [document for document in documents if accepts is None or accepts(document)]
    resources = [_located(req, document) for document in found[start : start + count]]
    # itemsPerPage is what this page holds, RFC 7644 section 3.4.2.
    return {"totalResults": len(found), "startIndex": start, "itemsPerPage": len(resources), "resources": resources}


def _number(req: falcon.Request, name: str, default: int, *, least: int, most: int | None) -> int:
    try:
        number = req.get_param_as_int(name, default=default)
    except falcon.HTTPInvalidParam:
        number = -1
    if number < least or (most is not None and number > most):
        limits = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise falcon.HTTPBadRequest(description=f"{name} must be a whole number {limits}.")
    return number


def _located(req: falcon.Request, document: dict[str, Any]) -> dict[str, Any]:
    """The document with its location as an absolute URL."""
    meta = document["meta"]
    return {**document, "meta": {**meta, "location": f"{req.prefix}{meta['location']}"}}
