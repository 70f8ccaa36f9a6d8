"""The HTTP client: the only module that makes calls.

A call goes to a configured endpoint, over a urllib3 pool of one connection per thread, and always ends. The deadline
covers name resolution, connecting, and the head and body of the response, however slowly they arrive. Its result is `answered`,
`not_sent` or `unknown`: only an unknown call may have had an effect without a response.
"""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Meta
from urllib3 import BaseHTTPResponse, HTTPConnectionPool

from inbox.clock import steady
from inbox.config.model import ApiOauth2
from inbox.errors import OutboundRefused, Unreadable, UnusableResponse
from inbox.events import strict_json
from inbox.observe.logs import format_place
from inbox.observe.traces import Span
from relay.delivery.outcome import Call, CallStep, ErrorClass, RateHold, Sent
from relay.http.connection import CallState, NotHttpError, open_pool
from relay.http.guard import WATCHDOG, CutOffError, RunningCall
from relay.http.response import (
    SEARCHED,
    CallResult,
    Redactor,
    classify_status,
    name_only,
    parse_retry_after,
    read_rate_hold,
)
from relay.http.target import Target

PORTS = {"http": 80, "https": 443}


MAX_ANSWER = 64 * 1024
"""Maximum bytes read from a response. A longer response is truncated, and its connection closed."""


class Request(msgspec.Struct, frozen=True):
    """A call to make, below the endpoint's URL."""

    step: CallStep
    method: str
    headers: Mapping[str, str]
    """Names in Title-Case, with values from `relay.http.target.header_value`. The endpoint's own headers take precedence."""
    path: str = ""
    """Percent-encoded, beginning with a slash; empty for the endpoint's URL itself."""
    query: str = ""
    """Encoded, without the question mark."""
    body: bytes | None = None
    most: int = MAX_ANSWER
    """Maximum bytes read from the response."""
    own_headers: Mapping[str, str] = {}
    """Headers configured for this call; they take precedence over those of the endpoint."""
    template: str | None = None
    """The template of the path, for traces: they must not contain the path's values."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds for the calls of an attempt."""

    lease: Callable[[], float]
    """Returns the instant of `inbox.clock.steady` until which the lease is trusted. The instant may move.

    No call starts after it, and a running one is cut. Other threads call this too, and it must not raise.
    """
    stop: threading.Event
    """Set at shutdown."""
    now: Callable[[], datetime]
    span: Span | None = None
    """The span of the attempt; None unless it is sampled."""


class HttpClient:
    """A client of one endpoint. Keep one client per api or destination. Each thread gets its own connection."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._of_thread = threading.local()  # a pool closes its connection when its thread ends

    @property
    def base(self) -> str:
        """The URL that prefixes every call, with the query that every call shares."""
        return f"{self.target.base}?{self.target.query}" if self.target.query else self.target.base

    def call(self, request: Request, limits: Limits) -> CallResult:
        """Make the call, within the endpoint's timeout and the lease.

        It never raises. Errors of the endpoint, the network and the guard are in the result, and so are bugs. A call of a
        sampled attempt has its own span, and the endpoint may continue the trace.
        """
        if limits.span is None:
            return self._call(request, limits)
        url = urlsplit(self.target.shown)
        route = f"{url.path.rstrip('/')}{(request.template or '') if request.path else ''}" or "/"
        span = limits.span.child(f"{request.method} {route}", "client")
        headers = {**request.headers, "Traceparent": span.traceparent}
        answer = self._call(msgspec.structs.replace(request, headers=headers), limits)
        span.attributes |= {
            "http.request.method": request.method,
            "inbox.step": request.step,
            "inbox.sent": answer.call.sent,
            "server.address": url.hostname or "",
            "server.port": url.port or PORTS[url.scheme],
            "url.scheme": url.scheme,
            "url.template": route,
        }
        if answer.call.status is not None:
            span.attributes["http.response.status_code"] = answer.call.status
        span.end(error=answer.error_class)
        return answer

    def _call(self, request: Request, limits: Limits) -> CallResult:
        began = steady()
        if began >= limits.lease():
            return self._lost(request, began, "not_sent")
        running = RunningCall(began + self.target.timeout, limits.lease)
        error: BaseException | None = None
        answer: CallResult | None = None
        status: int | None = None
        try:
            pool, state = self._connection()
            state.call = running
            WATCHDOG.watch(running)
            response = self._send(pool, request, running.remaining())
            status = response.status
            is_whole = False
            try:
                body = response.read(request.most + 1, decode_content=False)
                is_whole = len(body) <= request.most
                answer = self._make_answer(request, began, response, body, limits.now(), whole=is_whole)
            finally:
                if not is_whole:  # the amount read is unknown
                    response.close()
        except Exception as caught:  # noqa: BLE001  # any error is the result of this call
            error = caught
        finally:
            WATCHDOG.forget(running)
            cut_by = running.detach()
        sent: Sent = "unknown" if running.sent else "not_sent"
        if cut_by == "lease":
            return self._lost(request, began, sent, status)
        if answer is not None and cut_by is None:
            return answer
        root = CutOffError() if error is None or cut_by is not None else _root(error)
        return self._fail(request, began, sent, root, status)

    def _make_answer(
        self, request: Request, began: float, response: BaseHTTPResponse, body: bytes, now: datetime, *, whole: bool
    ) -> CallResult:
        status = response.status
        error_class = classify_status(status)
        hold = read_rate_hold(response.headers, status, now)
        if status == HTTPStatus.FORBIDDEN and hold is not None:
            error_class = "throttled"  # a rate limit of GitHub; any other 403 opens the breaker
        excerpt = None if error_class is None else self.target.redactor.excerpt(body)
        later = None if error_class is None else parse_retry_after(response.headers.get("Retry-After"), now)
        call = self._log(request, began, "answered", status, excerpt=excerpt, hold=hold)
        etag, link = response.headers.get("ETag"), response.headers.get("Link")
        return CallResult(
            call, body, whole, error_class, later, etag, link, self.target.redactor, (request.body or b"")[:SEARCHED]
        )

    def _connection(self) -> tuple[HTTPConnectionPool, CallState]:
        """Return this thread's pool of one connection."""
        own: tuple[HTTPConnectionPool, CallState] | None = getattr(self._of_thread, "own", None)
        if own is None:
            state, target = CallState(self.target.rules), self.target
            own = self._of_thread.own = open_pool(target.base, state, target.tls, target.proxy), state
        return own

    def _send(self, pool: HTTPConnectionPool, request: Request, timeout: float) -> BaseHTTPResponse:
        """Send the request and read the head of the response, without retries. The caller has checked the request's parts."""
        target = self.target
        query = f"{target.query}&{request.query}" if target.query and request.query else target.query or request.query
        headers = {**request.headers, **target.headers, **request.own_headers}
        if request.body is not None:
            headers["Content-Length"] = str(len(request.body))
        url = join_url(target.base, request.path)
        is_absolute = target.proxy is not None and url.startswith("http:")
        where = url if is_absolute else url[url.index("/", len("https://")) :]
        return pool.urlopen(
            request.method,
            f"{where}?{query}" if query else where,
            request.body,
            headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=timeout,
            preload_content=False,
            decode_content=False,
        )

    def _log(
        self,
        request: Request,
        began: float,
        sent: Sent,
        status: int | None = None,
        *,
        error: str | None = None,
        excerpt: str | None = None,
        hold: RateHold | None = None,
    ) -> Call:
        url = join_url(self.target.shown, request.path)
        names = [name_only(pair) for query in (self.target.query, request.query) if query for pair in query.split("&")]
        if names:
            url = f"{url}?{'&'.join(names)}"
        milliseconds = round((steady() - began) * 1000, 2)
        return Call(request.step, request.method, url, sent, milliseconds, status, error, excerpt, hold)

    def _lost(self, request: Request, began: float, sent: Sent, status: int | None = None) -> CallResult:
        error = "cut: the lease ended" if sent == "unknown" else "not made: the lease ended"
        return self._make_failure(request, self._log(request, began, sent, status, error=error), "lease_lost")

    def _fail(self, request: Request, began: float, sent: Sent, root: BaseException, status: int | None) -> CallResult:
        if isinstance(root, OutboundRefused):
            return self._make_failure(request, self._log(request, began, sent, error=str(root)), "refused")
        error = _describe(root, sent, self.target.timeout)
        call = self._log(request, began, sent, status, error=error)
        return self._make_failure(request, call, "unknown" if sent == "unknown" else "not_sent")

    def _make_failure(self, request: Request, call: Call, error_class: ErrorClass) -> CallResult:
        body = None if call.sent == "not_sent" else request.body
        return CallResult(
            call, error_class=error_class, redactor=self.target.redactor, request=(body or b"")[:SEARCHED]
        )


def _root(error: BaseException) -> BaseException:
    """Unwrap the original error: the texts of urllib3's wrappers contain the URL."""
    for _ in range(10):
        inner = (getattr(error, "reason", None), *error.args, error.__cause__)
        found = next((candidate for candidate in inner if isinstance(candidate, BaseException)), None)
        if found is None:
            break
        error = found
    return error


_WORDS: tuple[tuple[type[BaseException], Callable[[Any], str]], ...] = (
    (socket.gaierror, lambda root: f"the host name can't be resolved: {root.strerror}"),
    (ssl.SSLCertVerificationError, lambda root: f"the certificate is not valid: {root.verify_message}"),
    (ssl.SSLError, lambda root: f"TLS failed: {root.reason}"),
    (RemoteDisconnected, lambda _: "the connection was closed without a response"),
    (IncompleteRead, lambda _: "the response was incomplete"),
    (NotHttpError, lambda root: f"not an HTTP response: {root}"),
    (HTTPException, lambda root: f"not an HTTP response: {type(root).__name__}"),  # a proxy's, to CONNECT
    (OSError, lambda root: root.strerror or "the proxy refused the call"),
)


def _describe(root: BaseException, sent: Sent, timeout: float) -> str:
    """Describe the error without any text from the endpoint."""
    if isinstance(root, TimeoutError):
        return (
            f"no complete response within {timeout:g} s" if sent == "unknown" else f"not connected within {timeout:g} s"
        )
    for kind, words in _WORDS:
        if isinstance(root, kind):
            return words(root)
    return f"a bug in the call: {type(root).__name__} at {format_place(root) or 'an unknown place'}"


def join_url(base: str, path: str) -> str:
    """Append a path to a base URL; an empty path yields the base itself."""
    return base.rstrip("/") + path if path else base


# --- Bearer tokens from client credentials (RFC 6749 §4.4): fetched on demand, cached, and renewed before they expire.


RENEWED_BEFORE_SECONDS = 30.0
"""Time before its expiry at which a token is renewed, since a call takes some time."""
TRUSTED_SECONDS = 300.0
"""Lifetime of a token whose response states none."""


class BearerToken(msgspec.Struct, frozen=True):
    """A bearer token, valid until `until` of the steady clock."""

    value: str
    until: float
    redactor: Redactor
    """Masks the token in responses to calls with it."""


class _NoToken(Exception):
    """Raised without a token; `answer` is the failure of the call that needs one."""

    def __init__(self, answer: CallResult) -> None:
        super().__init__()
        self.answer = answer


class TokenClient(HttpClient):
    """A client that calls an endpoint with a token. It is thread-safe; one thread at a time fetches a token."""

    def __init__(self, target: Target, tokens: Target, auth: ApiOauth2) -> None:
        """Make a client of `target`, with tokens from `tokens`."""
        super().__init__(target)
        self._tokens = HttpClient(tokens)
        self._token_url = auth.token_url.partition("?")[0]
        self._one_fetches = threading.Lock()
        self._token: BearerToken | None = None
        identity, secret = auth.client_id.reveal(), auth.client_secret.reveal()
        form = {"grant_type": "client_credentials"} | ({} if auth.scope is None else {"scope": auth.scope})
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        if auth.credentials == "body":
            form |= {"client_id": identity, "client_secret": secret}
        else:
            headers["Authorization"] = f"Basic {base64.b64encode(f'{identity}:{secret}'.encode()).decode()}"
        self._asking = Request("fetch", "POST", headers, body=urlencode(form).encode())

    def call(self, request: Request, limits: Limits) -> CallResult:
        """Make the call, as `HttpClient.call`. An error of the token URL becomes this call's failure.

        After a 401 the call is made once more with a new token, since the cached one may have been revoked.
        """
        try:
            token = self._present(request, limits)
            answer = self._with(token, request, limits)
            if answer.call.status == HTTPStatus.UNAUTHORIZED:
                with self._one_fetches:
                    self._token = None if self._token is token else self._token
                answer = self._with(self._present(request, limits), request, limits)
        except _NoToken as end:
            return end.answer
        return answer

    def _with(self, token: BearerToken, request: Request, limits: Limits) -> CallResult:
        authorised = {**request.headers, "Authorization": f"Bearer {token.value}"}
        answer = super().call(msgspec.structs.replace(request, headers=authorised), limits)
        answer = msgspec.structs.replace(answer, redactor=token.redactor)
        if answer.call.excerpt is None:
            return answer
        masked = token.redactor.excerpt(answer.body)  # masked in the body, because the excerpt may end within a token
        return msgspec.structs.replace(answer, call=msgspec.structs.replace(answer.call, excerpt=masked))

    def _present(self, request: Request, limits: Limits) -> BearerToken:
        began = steady()
        if not self._one_fetches.acquire(timeout=self.target.timeout):
            waited = round((steady() - began) * 1000, 2)
            why = "no token: another call is still fetching one"
            call = Call(request.step, "POST", self._token_url, "not_sent", waited, error=why)
            raise _NoToken(CallResult(call, error_class="not_sent"))
        try:
            if self._token is None or steady() >= self._token.until:
                self._token = self._ask(request, limits)
            return self._token
        finally:
            self._one_fetches.release()

    def _ask(self, request: Request, limits: Limits) -> BearerToken:
        answer = self._tokens.call(msgspec.structs.replace(self._asking, step=request.step), limits)
        if answer.error_class is not None:
            raise _NoToken(_convert_failure(answer, answer.call.error or f"answered {answer.call.status}"))
        try:
            value, lasts = read_token(answer.body)
        except UnusableResponse as error:
            failed = msgspec.structs.replace(_convert_failure(answer, str(error)), error_class="bad_answer")
            raise _NoToken(failed) from None
        until = steady() + max(lasts - RENEWED_BEFORE_SECONDS, lasts / 2)
        return BearerToken(value, until, self.target.redactor.with_secret(value))


_OF_THE_CLIENT: frozenset[ErrorClass] = frozenset({"rejected", "not_found", "gone", "conflict"})
"""Error classes with which a token URL refuses the client (400 in RFC 6749 §5.2). They don't concern the endpoint."""


class _TokenAnswer(msgspec.Struct):
    """A response of a token endpoint (RFC 6749 §5.1)."""

    # The characters of RFC 6749 §A.12 without the space: such a token is a valid header value. RFC 6750 §2.1 allows fewer
    # than services issue: Salesforce's tokens contain a `!`, Meta's a `|`.
    access_token: Annotated[str, Meta(pattern=r"\A[\x21-\x7e]+\Z")]
    token_type: Annotated[str, Meta(pattern=r"\A(?i:bearer)\Z")] = "bearer"  # noqa: S105  # no secret
    """Required by the RFC, but some services omit it."""
    expires_in: Annotated[float, Meta(ge=0, le=10**9)] | None = None
    """Some servers send it in quotes."""


def read_token(body: bytes) -> tuple[str, float]:
    """Read the token and its lifetime in seconds from the response of a token endpoint.

    Raises:
        UnusableResponse: it has no usable token. The text names the wrong member, without its value.
    """
    try:
        answer = msgspec.convert(strict_json.parse(body), _TokenAnswer, strict=False)
    except Unreadable:
        raise UnusableResponse("the response is not JSON") from None
    except msgspec.ValidationError as error:
        raise UnusableResponse(f"the response has no usable token: {error}") from None
    return answer.access_token, TRUSTED_SECONDS if answer.expires_in is None else answer.expires_in


def _convert_failure(answer: CallResult, why: str) -> CallResult:
    """Convert a failed token request to the call's failure. Omit both bodies, as each may contain a secret.

    A 404 of the token URL must not look like a missing entity, as its counterpart would then be deleted.
    """
    error_class = "auth" if answer.error_class in _OF_THE_CLIENT else answer.error_class
    call = msgspec.structs.replace(answer.call, error=f"no token: {why}", excerpt=None)
    return msgspec.structs.replace(answer, call=call, body=b"", request=b"", error_class=error_class)
