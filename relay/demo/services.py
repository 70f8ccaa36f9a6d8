"""The demo services, with their state in memory: identity sends webhooks, commercial is kept in sync.

Identity has the paths of the Trivore Management API as the vendor's client reads them (PyPI `trivoreid` 2.0.10), and
webhooks of the classic form (trivore.atlassian.net/wiki/spaces/TISpubdoc/pages/20515352).
"""

from __future__ import annotations

import itertools
import queue
import random
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import falcon
import falcon.asgi
import msgspec
import urllib3
import uvicorn
from falcon.asgi import Request, Response

from inbox.clock import SystemClock
from inbox.events.timestamps import parse_rfc3339, rfc3339

App = falcon.asgi.App[Request, Response]
Document = dict[str, Any]

USER, GROUP = "user", "group"
CONTACT, TEAM = "contacts", "teams"
_DEFAULTS: dict[str, Document] = {
    USER: {"nsCode": "demo", "name": {}, "emails": [], "mobiles": [], "memberOf": []},
    GROUP: {"nsCode": "demo", "name": "", "memberOf": []},
}
_FIELDS = {CONTACT: ("external_id", "email", "first_name", "last_name", "phone"), TEAM: ("external_id", "name")}
_OWN = ("id", "meta", "password")
_SINCE = 'meta.lastModified ge "'
_DEFAULT_COUNT, _MAX_COUNT = 100, 500  # the largest page, by the docstrings of trivoreid 2.0.10
_RETRY_AFTER = "0.2"  # RFC 9110 §10.2.3 allows only whole seconds, but some services send fractions
_FIRST_PAUSE, _LONGEST_PAUSE, _TIMEOUT = 0.05, 1.0, 10.0
_SUCCESSES = range(200, 300)


@contextmanager
def serve(app: App, port: int = 0) -> Iterator[str]:
    """Serve the app on 127.0.0.1 in a thread and yield its URL. Port 0 uses a free port.

    On exit, running requests finish and every connection is closed.

    Raises:
        OSError: another process has the port.
    """
    listener = socket.create_server(("127.0.0.1", port))
    options = {"lifespan": "off", "ws": "none", "log_config": None, "access_log": False, "proxy_headers": False}
    server = uvicorn.Server(uvicorn.Config(app, timeout_keep_alive=300, timeout_graceful_shutdown=5, **options))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="demo-server", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


async def read_object(req: Request) -> Document:
    """Read the JSON object in a request's body. Raises `falcon.HTTPBadRequest`."""
    try:
        return msgspec.json.decode(await req.stream.read(), type=dict[str, Any])
    except (
        msgspec.MsgspecError,
        ValueError,
        RecursionError,
    ):  # ValueError: invalid UTF-8, or a number with thousands of digits
        raise falcon.HTTPBadRequest(description="The body is not a JSON object.") from None


def answer(resp: Response, value: object, status: int = 200) -> None:
    """Respond with `value` as JSON."""
    resp.status, resp.content_type, resp.data = status, "application/json", msgspec.json.encode(value)


class _Service:
    """Documents in memory, served over HTTP by the Falcon `app`. Documents are replaced, never modified."""

    prefix = ""
    authorization: str
    """Required value of the Authorization header; other calls get 401."""

    def __init__(self, *kinds: str) -> None:
        """Start without documents."""
        self._documents: dict[str, dict[str, Document]] = {kind: {} for kind in kinds}
        self.app: App = falcon.asgi.App(middleware=[self])
        self.app.add_route(f"{self.prefix}/{{kind}}", self, suffix="all")
        self.app.add_route(f"{self.prefix}/{{kind}}/{{key}}", self)

    def all(self, kind: str) -> list[Document]:
        """List every document of a kind, oldest first. Raises `falcon.HTTPNotFound`."""
        if kind not in self._documents:
            raise falcon.HTTPNotFound(description=f"There is no {kind}.")
        return list(self._documents[kind].values())

    def get(self, kind: str, key: str) -> Document:
        """Return one document. Raises `falcon.HTTPNotFound`."""
        if key not in self._documents.get(kind, {}):
            raise falcon.HTTPNotFound(description=f"There is no {kind} {key}.")
        return self._documents[kind][key]

    async def process_request(self, req: Request, _: Response) -> None:
        """Refuse a call without the credentials."""
        scheme, _space, credentials = (req.auth or "").partition(" ")
        if f"{scheme.capitalize()} {credentials.strip()}" != self.authorization:
            challenges = [f'{self.authorization.split()[0]} realm="demo"']
            raise falcon.HTTPUnauthorized(description="Authentication failed.", challenges=challenges)

    async def on_get(self, _: Request, resp: Response, kind: str, key: str) -> None:
        """Read one."""
        answer(resp, self.get(kind, key))


class WebhookSender:
    """Sends webhooks in order in the background, and retries each one until it is accepted or `close` is called."""

    def __init__(
        self,
        url: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        on_webhook: Callable[[Mapping[str, str], int | None], None] = lambda _payload, _status: None,
        loses_answer: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the thread.

        Args:
            url: target of the webhooks. A new target also gets the queued ones; without a target, no webhook is queued.
            headers: headers of each webhook, such as a token.
            on_webhook: called on the thread with each try and its status, or None without a response; must not raise.
            loses_answer: called after each accepted webhook; True has it sent again.
        """
        self.url = url
        self._on_webhook, self._loses_answer = on_webhook, loses_answer
        # urllib3 alone uses no proxy of the environment.
        json = {"User-Agent": "identity-demo", "Content-Type": "application/json"}
        self._http = urllib3.PoolManager(retries=False, timeout=_TIMEOUT, headers={**(headers or {}), **json})
        self._waiting: queue.Queue[Mapping[str, str] | None] = queue.Queue()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._thread.start()

    def put(self, payload: Mapping[str, str]) -> None:
        """Queue a webhook; do nothing without a URL."""
        if self.url is not None:
            self._waiting.put(payload)

    def pending(self) -> int:
        """Count the webhooks not yet accepted."""
        return self._waiting.unfinished_tasks

    def close(self) -> None:
        """End the thread and drop the queued webhooks."""
        self._is_closed.set()
        self._waiting.put(None)
        self._thread.join()
        self._http.clear()

    def _run(self) -> None:
        while (payload := self._waiting.get()) is not None and not self._is_closed.is_set():
            pause = _FIRST_PAUSE
            while not self._send(payload) and not self._is_closed.wait(pause):
                pause = min(2 * pause, _LONGEST_PAUSE)
            self._waiting.task_done()

    def _send(self, payload: Mapping[str, str]) -> bool:
        status = None
        with suppress(urllib3.exceptions.HTTPError):  # no answer
            status = self._http.request("POST", self.url or "", json=payload, redirect=False).status
        self._on_webhook(payload, status)
        return status in _SUCCESSES and not self._loses_answer()


class IdentityService(_Service):
    """Users and groups; thread-safe."""

    prefix = "/api/rest/v1"
    authorization = "Basic ZGVtbzpkZW1v"  # demo:demo, RFC 7617

    def __init__(self, webhooks: WebhookSender, now: Callable[[], datetime] | None = None) -> None:
        """Start without users. `webhooks` sends one for each change."""
        super().__init__(*_DEFAULTS)
        self.webhooks = webhooks
        self._now, self._latest = now or SystemClock().now, datetime.min.replace(tzinfo=UTC)
        self._lock = threading.Lock()  # held while a webhook is queued, so that webhooks keep the order of the changes
        self._process, self._counter = secrets.token_hex(5), itertools.count()

    def create(self, entity_type: str, body: Document) -> Document:
        """Store a new user or group, send the webhook, and return the document."""
        with self._lock:
            moment, at = self._tick()
            # As MongoDB's ObjectId: seconds, process, counter; so ids sort by creation.
            entity_id = f"{int(moment.timestamp()):08x}{self._process}{next(self._counter):06x}"
            return self._put(entity_type, entity_id, body, {"created": at, "lastModified": at}, "CREATE")

    def replace(self, entity_type: str, entity_id: str, body: Document, *, report: bool = True) -> Document:
        """Replace the whole document, send the webhook unless told not to, and return the new one. Raises as `get`."""
        with self._lock:
            meta = {**self.get(entity_type, entity_id)["meta"], "lastModified": self._tick()[1]}
            return self._put(entity_type, entity_id, body, meta, "UPDATE", report=report)

    def delete(self, entity_type: str, entity_id: str, *, report: bool = True) -> None:
        """Remove a user or group, and send the webhook unless told not to. Raises as `get`."""
        with self._lock:
            self.get(entity_type, entity_id)
            del self._documents[entity_type][entity_id]
            self._report(entity_type, entity_id, "DELETE", self._tick()[1], report=report)

    def _tick(self) -> tuple[datetime, str]:
        """Return the time, at least a millisecond after the previous one: otherwise two webhooks could have equal bytes."""
        self._latest = max(self._now(), self._latest + timedelta(milliseconds=1))
        return self._latest, rfc3339(self._latest, "milliseconds")

    def _put(
        self, entity_type: str, entity_id: str, body: Document, meta: Document, event_type: str, *, report: bool = True
    ) -> Document:
        # Without null members: the vendor's client iterates over `emails` without asking.
        kept = {name: value for name, value in body.items() if value is not None and name not in _OWN}
        document = {"id": entity_id, **_DEFAULTS[entity_type], **kept, "meta": meta}
        self._documents[entity_type][entity_id] = document
        self._report(entity_type, entity_id, event_type, meta["lastModified"], report=report)
        return document

    def _report(self, entity_type: str, entity_id: str, event_type: str, at: str, *, report: bool) -> None:
        if report:
            named = {"id": entity_id, "entityType": entity_type.upper(), "eventType": event_type}
            self.webhooks.put({**named, "timestamp": at})

    async def on_get_all(self, req: Request, resp: Response, kind: str) -> None:
        """List a page, optionally with the one supported filter."""
        documents = self.all(kind)
        start = req.get_param_as_int("startIndex", min_value=0, default=0)
        count = req.get_param_as_int("count", min_value=1, max_value=_MAX_COUNT, default=_DEFAULT_COUNT)
        if text := req.get_param("filter"):
            try:
                since = parse_rfc3339(text.removeprefix(_SINCE).removesuffix('"'))
            except ValueError:
                raise falcon.HTTPBadRequest(description=f'invalidFilter: only `{_SINCE}TIME"` is supported.') from None
            documents = [each for each in documents if parse_rfc3339(each["meta"]["lastModified"]) >= since]
        page = documents[start : start + count]
        numbers = {"totalResults": len(documents), "startIndex": start, "itemsPerPage": len(page)}
        answer(resp, {**numbers, "resources": page})

    async def on_post_all(self, req: Request, resp: Response, kind: str) -> None:
        """Create one."""
        self.all(kind)
        answer(resp, self.create(kind, await read_object(req)), 201)

    async def on_put(self, req: Request, resp: Response, kind: str, key: str) -> None:
        """Replace one."""
        answer(resp, self.replace(kind, key, await read_object(req)))

    async def on_delete(self, _: Request, resp: Response, kind: str, key: str) -> None:
        """Delete one."""
        self.delete(kind, key)
        resp.status = falcon.HTTP_NO_CONTENT


OnCall = Callable[[str, str, int, Mapping[str, str | None]], None]
"""Called for each call to the commercial service, with its method, path and query, status, and changed fields."""


class CommercialService(_Service):
    """Contacts and teams, found by external id. The app's event loop alone changes records."""

    authorization = "Bearer demo"

    def __init__(self, *, fail_share: float = 0.0, on_call: OnCall = lambda *_: None) -> None:
        """Start without records.

        Args:
            fail_share: share of calls, from 0 to 1, that get 503 and change nothing.
            on_call: called before each response, on the server's thread; must not raise.
        """
        super().__init__(*_FIELDS)
        self.fail_share, self._on_call = fail_share, on_call
        self._numbers = {kind: itertools.count(1) for kind in _FIELDS}

    async def process_request(self, req: Request, resp: Response) -> None:
        """Fail a random share of the calls, before they have an effect."""
        if random.random() < self.fail_share:  # noqa: S311  # luck
            resp.set_header("Retry-After", _RETRY_AFTER)
            raise falcon.HTTPServiceUnavailable(description="try again later")
        await super().process_request(req, resp)

    async def process_response(self, req: Request, resp: Response, _resource: object, _succeeded: bool) -> None:
        """Report a call with its status."""
        self._on_call(req.method, req.relative_uri, resp.status_code, getattr(req.context, "changed", {}))

    async def on_get_all(self, req: Request, resp: Response, kind: str) -> None:
        """List all records, or the one with an external id."""
        external_id = req.get_param("externalId")
        answer(resp, {"items": [each for each in self.all(kind) if external_id in {None, each["external_id"]}]})

    async def on_post_all(self, req: Request, resp: Response, kind: str) -> None:
        """Create one."""
        self.all(kind)
        body = await read_object(req)
        answer(resp, self._put(req, kind, f"{kind[:-1]}-{next(self._numbers[kind])}", {}, body), 201)

    async def on_patch(self, req: Request, resp: Response, kind: str, key: str) -> None:
        """Change one."""
        before = self.get(kind, key)
        answer(resp, self._put(req, kind, key, before, await read_object(req)))

    async def on_delete(self, _: Request, resp: Response, kind: str, key: str) -> None:
        """Delete one."""
        self.get(kind, key)
        del self._documents[kind][key]
        resp.status = falcon.HTTP_NO_CONTENT

    def _put(self, req: Request, kind: str, key: str, before: Document, changes: Document) -> Document:
        fields = _FIELDS[kind]
        for name, value in changes.items():
            if name not in fields or not isinstance(value, str | None):
                raise falcon.HTTPUnprocessableEntity(description=f"{kind} have no text field {name}")
        record = {"id": key, **dict.fromkeys(fields), **before, **changes}
        external_id = record["external_id"]
        if external_id and external_id in {each["external_id"] for each in self.all(kind) if each["id"] != key}:
            raise falcon.HTTPConflict(description=f"external_id {external_id} exists already")
        self._documents[kind][key] = record
        req.context.changed = {name: record[name] for name in fields[1:] if record[name] != before.get(name)}
        return record
