"""Files for everybody: style sheet, script, icon and `/health/live`. They need no sign-in, and are read once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.errors import NothingThere

PREFIX = "/static/"
LIVE = "/health/live"
_TYPES: Mapping[str, str] = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
}
_FOR_A_YEAR = "public, max-age=31536000, immutable"


class StaticFile(msgspec.Struct, frozen=True):
    """A file of the package."""

    content: bytes
    type: str
    version: str
    """Changes with the content."""


def _read() -> Mapping[str, StaticFile]:
    found = {}
    for file in resources.files("relay.web").joinpath("static").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            content = file.read_bytes()
            found[file.name] = StaticFile(content, kind, hashlib.sha256(content).hexdigest()[:16])
    return found


FILES = _read()


def static_url(name: str) -> str:
    """Return the URL of a file, which changes with its content, so that browsers may keep it.

    Raises:
        KeyError: there is no such file.
    """
    return f"{PREFIX}{name}?v={FILES[name].version}"


class PublicFiles:
    """Falcon middleware that answers for these files, before anybody is asked who he is."""

    async def process_request(self, req: Request, resp: Response) -> None:
        """Answer where the path is one of a file; others go on."""
        if req.path == LIVE:
            resp.content_type, resp.text, resp.complete = falcon.MEDIA_JSON, '{"status":"live"}', True
        elif req.path.startswith(PREFIX):
            file = FILES.get(req.path.removeprefix(PREFIX))
            if file is None:
                raise NothingThere("no file has this address")
            resp.complete = True
            is_current = req.get_param("v") == file.version
            resp.set_header("Cache-Control", _FOR_A_YEAR if is_current else "no-cache")
            resp.etag = file.version
            if req.if_none_match and any(tag in ("*", file.version) for tag in req.if_none_match):
                resp.status = falcon.HTTP_304
                return
            resp.content_type, resp.data = file.type, file.content
