"""What both demo services do at the door: who is calling, reading a JSON body, answering JSON."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from typing import Any

import falcon
import msgspec

JSON_TYPE = "application/json"
_MAX_BODY = 1024 * 1024
_MAX_DEPTH = 32


class Authorization:
    """Falcon middleware that lets in only calls whose Authorization header is exactly the expected one."""

    def __init__(self, expected: str, challenge: str) -> None:
        self._expected = expected.encode()
        self._challenge = challenge

    @classmethod
    def basic(cls, client: str, secret: str) -> Authorization:
        """HTTP Basic, RFC 7617."""
        credentials = base64.b64encode(f"{client}:{secret}".encode()).decode()
        return cls(f"Basic {credentials}", 'Basic realm="demo", charset="UTF-8"')

    @classmethod
    def bearer(cls, token: str) -> Authorization:
        """A bearer token, RFC 6750."""
        return cls(f"Bearer {token}", 'Bearer realm="demo"')

    def process_request(self, req: falcon.Request, _: falcon.Response) -> None:
        """Refuses a call from anybody else with 401."""
        given = (req.auth or "").encode("latin-1", "replace")
        scheme, _space, credentials = given.partition(b" ")
        # The scheme's case does not matter, RFC 9110 section 11.1.
        if not hmac.compare_digest(scheme.capitalize() + b" " + credentials.strip(), self._expected):
            raise falcon.HTTPUnauthorized(description="Authentication failed.", challenges=[self._challenge])


def read_object(req: falcon.Request, accepted: tuple[str, ...] = (JSON_TYPE,)) -> dict[str, Any]:
    """The JSON object in the body of the request.

    Raises:
        falcon.HTTPUnsupportedMediaType: the Content-Type is none of the accepted ones.
        falcon.HTTPContentTooLarge: more than 1 MiB.
        falcon.HTTPBadRequest: not JSON, not an object, or nested deeper than 32.
    """
    media_type = (req.content_type or "").partition(";")[0].strip().lower()
    if media_type not in accepted:
        raise falcon.HTTPUnsupportedMediaType(description=f"Content-Type must be {' or '.join(accepted)}.")
    raw = req.bounded_stream.read(_MAX_BODY + 1)
    if len(raw) > _MAX_BODY:
        raise falcon.HTTPContentTooLarge(description="The body is larger than 1 MiB.")
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError):  # ValueError: bad UTF-8, a number of thousands of digits
        raise falcon.HTTPBadRequest(description="The body is not JSON.") from None
    if not isinstance(body, dict):
        raise falcon.HTTPBadRequest(description="The body is not a JSON object.")
    if not _is_shallow(body):
        raise falcon.HTTPBadRequest(description=f"The body is nested deeper than {_MAX_DEPTH}.")
    return body


def _is_shallow(value: object) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return False


def answer(resp: falcon.Response, value: object, status: int = 200) -> None:
    """Answers with `value` as JSON."""
    resp.status = falcon.code_to_http_status(status)
    resp.content_type = JSON_TYPE
    resp.data = msgspec.json.encode(value)


def error_serializer(
    render: Callable[[str, int], object],
) -> Callable[[falcon.Request, falcon.Response, falcon.HTTPError], None]:
    """A Falcon error serializer; `render` makes the body out of the message and the status."""

    def serialize(_: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
        status = error.status_code
        answer(resp, render(error.description or error.title or "Error", status), status)

    return serialize


def refuse_with(http_error: Callable[..., falcon.HTTPError]) -> Callable[..., None]:
    """A Falcon error handler that answers with the error's own text."""

    def refuse(_req: falcon.Request, _resp: falcon.Response, error: Exception, _params: dict[str, Any]) -> None:
        raise http_error(description=str(error))

    return refuse
