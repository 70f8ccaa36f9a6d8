"""Error answers: problem documents (RFC 9457) and their headers."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
from falcon.asgi import Request, Response

from inbox.errors import NotAuthenticated, RequestError
from inbox.observe.logs import fields, without_message

PROBLEM_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)


def problem(status: int, title: str, detail: str | None, field: str | None = None) -> bytes:
    """Return a problem document (RFC 9457)."""
    members: dict[str, object] = {"type": "about:blank", "title": title, "status": status}
    if detail:
        members["detail"] = detail
    if field:
        members["field"] = field
    return msgspec.json.encode(members)


def problem_of(error: RequestError) -> bytes:
    """Return the problem document of an error."""
    return problem(error.status, error.title, error.detail, error.field)


def problem_headers(error: RequestError) -> dict[str, str]:
    """Return the headers of an error answer."""
    headers = {"Content-Type": PROBLEM_TYPE}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = 'Bearer, Basic realm="webhooks"'  # RFC 9110 §11.6.1 wants one
    return headers


async def answer_problem(
    _req: Request, resp: Response, error: RequestError, _params: Mapping[str, object], **_: object
) -> None:
    """Handle RequestError for Falcon."""
    resp.status = error.status
    resp.data = problem_of(error)
    resp.set_headers(problem_headers(error))


async def answer_bug(
    _req: Request, resp: Response, error: Exception, _params: Mapping[str, object], **_: object
) -> None:
    """Handle an unexpected exception for Falcon, whose own handler logs the text, which may hold values."""
    _log.error("bug in the receiver; the sender gets 500", exc_info=without_message(error), extra=fields("bug"))
    resp.status, resp.data = 500, problem(500, "Internal Server Error", None)
    resp.content_type = PROBLEM_TYPE
