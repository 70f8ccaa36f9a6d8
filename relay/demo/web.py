"""HTTP for both demo services: Falcon on uvicorn, authorization, JSON bodies and JSON answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import falcon
import falcon.asgi
import msgspec
import uvicorn
from falcon.asgi import Request, Response

App = falcon.asgi.App[Request, Response]

JSON_TYPE = "application/json"
_MAX_BODY = 1024 * 1024
_KEEP_ALIVE_SECONDS = 300
_GRACE_SECONDS = 5


@contextmanager
def served(app: App, port: int = 0) -> Iterator[str]:
    """Serve the app on 127.0.0.1 in a thread; yield its URL. Port 0 takes a free one.

    Leaving it finishes running requests and closes every connection.

    Raises:
        OSError: another process has the port.
    """
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="demo-server", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Authorization:
    """Falcon middleware that accepts only calls with these credentials; others get 401."""

    def __init__(self, scheme: str, credentials: str) -> None:
        self._scheme, self._credentials = scheme, credentials

    async def process_request(self, req: Request, _: Response) -> None:
        """Check a call; the scheme's case does not matter (RFC 9110 section 11.1)."""
        scheme, _space, credentials = (req.auth or "").partition(" ")
        if (scheme.capitalize(), credentials.strip()) != (self._scheme, self._credentials):
            challenge = f'{self._scheme} realm="demo"'
            raise falcon.HTTPUnauthorized(description="Authentication failed.", challenges=[challenge])


def app_with(*middleware: Any, error_body: Callable[[str, int], object]) -> App:  # noqa: ANN401  # any of Falcon's
    """Make a Falcon app; `error_body` makes the body of an error out of its message and status."""

    def serialize(_: Request, resp: Response, error: falcon.HTTPError) -> None:
        answer(resp, error_body(error.description or error.title or "Error", error.status_code), error.status_code)

    app: App = falcon.asgi.App(middleware=list(middleware))
    app.set_error_serializer(serialize)
    return app


async def read_object(req: Request, *accepted: str) -> dict[str, Any]:
    """Read the JSON object in a request's body; `accepted` are media types besides `application/json`.

    Raises:
        falcon.HTTPUnsupportedMediaType: another Content-Type.
        falcon.HTTPContentTooLarge: more than 1 MiB.
        falcon.HTTPBadRequest: not JSON, or not an object.
    """
    media_types = (*accepted, JSON_TYPE)
    if (req.content_type or "").partition(";")[0].strip().lower() not in media_types:
        raise falcon.HTTPUnsupportedMediaType(description=f"Content-Type must be {' or '.join(media_types)}.")
    raw = await req.stream.read(_MAX_BODY + 1)
    if len(raw) > _MAX_BODY:
        raise falcon.HTTPContentTooLarge(description="The body is larger than 1 MiB.")
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError):  # ValueError: bad UTF-8, a number of thousands of digits
        raise falcon.HTTPBadRequest(description="The body is not JSON.") from None
    if not isinstance(body, dict):
        raise falcon.HTTPBadRequest(description="The body is not a JSON object.")
    return body


def answer(resp: Response, value: object, status: int = 200) -> None:
    """Answer with `value` as JSON."""
    resp.status = status
    resp.content_type = JSON_TYPE
    resp.data = msgspec.json.encode(value)
