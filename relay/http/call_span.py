"""Spans of calls, by the semantic conventions of HTTP clients: without a query, a value of a path, or a secret."""

from __future__ import annotations

from urllib.parse import urlsplit

from inbox.tracing.spans import Span
from relay.http.answer import Answer

PORTS = {"http": 80, "https": 443}


def begin_call(attempt: Span, shown: str, method: str, step: str, template: str | None) -> Span:
    """Begin the span of a call.

    Args:
        attempt: the span of the attempt, sweep or command that makes it.
        shown: the endpoint's URL, as logs show it.
        method: the method of the request.
        step: the step of the attempt.
        template: the path below the endpoint's, without values; None when it is not known.
    """
    url = urlsplit(shown)
    route = None if template is None else f"{url.path.rstrip('/')}{template}" if template else url.path or "/"
    span = attempt.child(method if route is None else f"{method} {route}", "client")
    span.attributes |= {
        "http.request.method": method,
        "inbox.step": step,
        "server.address": url.hostname or "",
        "server.port": url.port or PORTS[url.scheme],
        "url.scheme": url.scheme,
    }
    if route is not None:
        span.attributes["url.template"] = route
    return span


def end_call(span: Span, answer: Answer) -> None:
    """End it with the answer. A status from 400 on is an error, and so is no whole answer."""
    call = answer.call
    if call.status is not None:
        span.attributes["http.response.status_code"] = call.status
    span.attributes["inbox.sent"] = call.sent
    span.end(error=answer.error_class)
