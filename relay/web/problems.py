"""Error responses: problem documents (RFC 9457) for programs, a page for people."""

from __future__ import annotations

import logging
from http import HTTPStatus

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.errors import HttpAnswerError, NothingThere, SignInNeeded, TooManySignIns, WrongPassword
from inbox.observe.logs import fields, without_message
from relay.web import render

API = "/api/v1"
"""Path prefix of the API."""
PROBLEM_TYPE = "application/problem+json"

_TURNED_AWAY = (SignInNeeded, TooManySignIns, WrongPassword)

_log = logging.getLogger(__name__)


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error response in the form of RFC 9457."""

    title: str
    """The kind of problem, in a few words."""
    status: int
    """The HTTP status of this response."""
    cause: str | None = None
    """The kind of problem in one word; absent if the status suffices."""
    detail: str | None = None
    """The error in this request, and what to do about it."""
    field: str | None = None
    """The parameter of the URL or field of the body that is wrong."""


def set_status(resp: Response, error: HttpAnswerError) -> None:
    """Set the status of a problem. A refused client loses its connection, since connections are scarce."""
    resp.status = HTTPStatus(error.status)
    if isinstance(error, _TURNED_AWAY):
        resp.set_header("Connection", "close")
    if error.retry_after_seconds is not None:
        resp.retry_after = error.retry_after_seconds


def wants_json(req: Request) -> bool:
    """Return whether the client is a program, judging by the path or the Accept header."""
    return req.path.startswith(f"{API}/") or req.path.endswith(".json") or not req.client_accepts("text/html")


class ProblemAnswers:
    """Error handlers for Falcon, which respond in the form that the client accepts."""

    def __init__(self, renderer: render.Renderer) -> None:
        self._renderer = renderer

    def add_to(self, app: falcon.asgi.App[Request, Response]) -> None:
        """Register the handlers with the application."""
        app.add_error_handler(HttpAnswerError, self.answer)
        app.add_error_handler(falcon.HTTPError, self.answer_http)
        app.add_error_handler(Exception, self.answer_bug)

    async def answer(self, req: Request, resp: Response, error: HttpAnswerError, _params: object, **_: object) -> None:
        """Respond with a problem of the page; one that needs a sign-in redirects browsers to the form."""
        if isinstance(error, SignInNeeded):
            if error.form is not None and not wants_json(req):
                resp.status, resp.location = HTTPStatus.SEE_OTHER, error.form
                return
            resp.set_header("WWW-Authenticate", "Bearer")
        set_status(resp, error)
        self._write(req, resp, Problem(error.title, error.status, error.cause, error.detail or None, error.field))

    async def answer_http(
        self, req: Request, resp: Response, error: falcon.HTTPError, params: object, **_: object
    ) -> None:
        """Respond with a problem found by Falcon, such as a method that a path does not have."""
        if isinstance(error, falcon.HTTPRouteNotFound):
            await self.answer(req, resp, NothingThere("there is no page at this address"), params)
            return
        resp.status = error.status
        resp.set_headers(error.headers or {})
        title = HTTPStatus(error.status_code).phrase
        self._write(req, resp, Problem(title, error.status_code, detail=error.description))

    async def answer_bug(self, req: Request, resp: Response, error: Exception, _params: object, **_: object) -> None:
        """Respond with 500. The log gets the place of the exception but not its text, which may hold values of events."""
        text = "bug in the page %s; the answer is 500"
        _log.error(text, req.uri_template, exc_info=without_message(error), extra=fields("bug"))
        status = resp.status = HTTPStatus.INTERNAL_SERVER_ERROR
        self._write(
            req, resp, Problem(status.phrase, status, detail="this is a bug of the page; its log has the place")
        )

    def _write(self, req: Request, resp: Response, problem: Problem) -> None:
        if wants_json(req):
            resp.content_type, resp.media = PROBLEM_TYPE, problem
            return
        actor = getattr(req.context, "actor", None)
        self._renderer.show(resp, "problem.html", title=problem.title, here=req.path, problem=problem, actor=actor)
