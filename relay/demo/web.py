"""HTTP for both demo services: Falcon on uvicorn, authorization, JSON bodies and JSON answers."""

from __future__ import annotations

import base64
import hmac
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

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


class LocalServer:
    """An app on 127.0.0.1, served by a thread of its own from construction to `close`."""

    def __init__(self, app: App, port: int = 0) -> None:
        """Starts it. Port 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self._thread = threading.Thread(
            target=self._uvicorn.run, kwargs={"sockets": [listener]}, name="demo-server", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops accepting, finishes running requests, closes every connection. A second call does nothing."""
        self._uvicorn.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Authorization:
    """Falcon middleware that accepts only calls with exactly the expected Authorization header."""

    def __init__(self, scheme: str, credentials: str) -> None:
        self._expected = f"{scheme} {credentials}".encode()
        self._challenge = f'{scheme} realm="demo"'

    @classmethod
    def basic(cls, client: str, secret: str) -> Authorization:
        """HTTP Basic, RFC 7617."""
        return cls("Basic", base64.b64encode(f"{client}:{secret}".encode()).decode())

    async def process_request(self, req: Request, _: Response) -> None:
        """Answers any other call with 401."""
        scheme, _space, credentials = (req.auth or "").encode("latin-1", "replace").partition(b" ")
        # The scheme's case does not matter, RFC 9110 section 11.1.
        if not hmac.compare_digest(scheme.capitalize() + b" " + credentials.strip(), self._expected):
            raise falcon.HTTPUnauthorized(description="Authentication failed.", challenges=[self._challenge])


def app_with(*middleware: Any, error_body: Callable[[str, int], object]) -> App:  # noqa: ANN401  # any of Falcon's
    """Makes a Falcon app; `error_body` makes the body of an error out of its message and status."""

    def serialize(_: Request, resp: Response, error: falcon.HTTPError) -> None:
        answer(resp, error_body(error.description or error.title or "Error", error.status_code), error.status_code)

    app: App = falcon.asgi.App(middleware=list(middleware))
    app.set_error_serializer(serialize)
    return app


async def read_object(req: Request, *accepted: str) -> dict[str, Any]:
    """Reads the JSON object in a request's body; `accepted` are media types besides `application/json`.

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
    """Answers with `value` as JSON."""
    resp.status = status
    resp.content_type = JSON_TYPE
    resp.data = msgspec.json.encode(value)
