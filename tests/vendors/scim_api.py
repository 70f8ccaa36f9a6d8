"""An independent SCIM 2.0 service (RFC 7643, RFC 7644): PyPI scim2-server, in memory, on a real socket.

It filters, sorts and pages by `startIndex` and `count`, patches, and has an ETag for each resource.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from scim2_server.memory import InMemoryStorage
from scim2_server.testserver.application import BearerTokenApplication
from scim2_server.utils import load_default_provider

from tests.helpers.scripted import Seen

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

TOKEN = "scim-token"


class Scim:
    """A running service, with its URL and its requests."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.url = ""
        self._application = BearerTokenApplication(InMemoryStorage(), load_default_provider(), bearer_tokens=[TOKEN])

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Record a request and respond."""
        target = environ["PATH_INFO"] + (f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else "")
        headers = {name[5:].lower().replace("_", "-"): value for name, value in environ.items() if name[:5] == "HTTP_"}
        headers["content-type"] = environ.get("CONTENT_TYPE", "")
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        self.seen.append(Seen(environ["REQUEST_METHOD"], target, headers, body, 0))
        return self._application({**environ, "wsgi.input": BytesIO(body)}, start_response)

    @property
    def asked(self) -> list[str]:
        """Method and target of each request, in order."""
        return [f"{seen.method} {seen.target}" for seen in self.seen]


class _Threading(ThreadingMixIn, WSGIServer):
    """A server with a thread for each request; closing waits for all."""


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name is the library's
        """Write no access log."""


class AtRoot:
    """A running service at the URL without its version."""

    def __init__(self, service: Scim) -> None:
        self.url, self.seen = service.url.removesuffix("/v2"), service.seen


@contextmanager
def serving_scim() -> Iterator[Scim]:
    """Run a SCIM service for the block."""
    service = Scim()
    with make_server("127.0.0.1", 0, service, server_class=_Threading, handler_class=_Silent) as server:
        service.url = f"http://127.0.0.1:{server.server_port}/v2"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
