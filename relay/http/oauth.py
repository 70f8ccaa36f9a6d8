"""Bearer tokens by client credentials (RFC 6749 §4.4): fetched on demand, cached, and renewed before they expire."""

from __future__ import annotations

import base64
import threading
from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from inbox.clock import steady
from inbox.config.model import ApiOauth2
from inbox.errors import Unreadable, UnusableAnswer
from inbox.events import strict_json
from relay.delivery.outcome import Call, ErrorClass
from relay.http.answer import Answer, Redactor
from relay.http.client import HttpClient, Limits, Request
from relay.http.target import Target

RENEWED_BEFORE_SECONDS = 30.0
"""A token is renewed so long before it expires: a call with it may take some time."""
TRUSTED_SECONDS = 300.0
"""Lifetime of a token whose answer states none."""


class BearerToken(msgspec.Struct, frozen=True):
    """A bearer token; `until` is by the steady clock."""

    value: str
    until: float
    redactor: Redactor
    """Masks the token in the answers of calls with it."""


class _NoToken(Exception):
    """There is no token; the answer is the failure of the call that needs one."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class TokenClient(HttpClient):
    """Calls an endpoint with a token. It is thread-safe; one thread at a time fetches a token."""

    def __init__(self, target: Target, tokens: Target, auth: ApiOauth2) -> None:
        """Take the endpoint, and that of the tokens."""
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

    def call(self, request: Request, limits: Limits) -> Answer:
        """Make the call, as `HttpClient.call`. An error of the token URL becomes this call's own failure.

        After a 401 the call is made once more with a new token: the cached one may have been revoked.
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

    def _with(self, token: BearerToken, request: Request, limits: Limits) -> Answer:
        authorised = {**request.headers, "Authorization": f"Bearer {token.value}"}
        answer = super().call(msgspec.structs.replace(request, headers=authorised), limits)
        answer = msgspec.structs.replace(answer, redactor=token.redactor)
        if answer.call.excerpt is None:
            return answer
        masked = token.redactor.excerpt(answer.body)  # from the body: the excerpt may end with half a token
        return msgspec.structs.replace(answer, call=msgspec.structs.replace(answer.call, excerpt=masked))

    def _present(self, request: Request, limits: Limits) -> BearerToken:
        began = steady()
        if not self._one_fetches.acquire(timeout=self.target.timeout):
            waited = round((steady() - began) * 1000, 2)
            why = "no token: another call has waited too long for one"
            call = Call(request.step, "POST", self._token_url, "not_sent", waited, error=why)
            raise _NoToken(Answer(call, error_class="not_sent"))
        try:
            if self._token is None or steady() >= self._token.until:
                self._token = self._ask(request, limits)
            return self._token
        finally:
            self._one_fetches.release()

    def _ask(self, request: Request, limits: Limits) -> BearerToken:
        answer = self._tokens.call(msgspec.structs.replace(self._asking, step=request.step), limits)
        if answer.error_class is not None:
            raise _NoToken(_failed(answer, answer.call.error or f"answered {answer.call.status}"))
        try:
            value, lasts = read_token(answer.body)
        except UnusableAnswer as error:
            failed = msgspec.structs.replace(_failed(answer, str(error)), error_class="bad_answer")
            raise _NoToken(failed) from None
        until = steady() + max(lasts - RENEWED_BEFORE_SECONDS, lasts / 2)
        return BearerToken(value, until, self.target.redactor.besides(value))


_OF_THE_CLIENT: frozenset[ErrorClass] = frozenset({"rejected", "not_found", "gone", "conflict"})
"""Classes that mean, from a token URL, that the client gets no token (400 in RFC 6749 §5.2). They say nothing of the endpoint."""


class _TokenAnswer(msgspec.Struct):
    """An answer of a token endpoint (RFC 6749 §5.1)."""

    # The characters of RFC 6749 §A.12 without the space: such a token is a valid header value. RFC 6750 §2.1 allows fewer
    # than services issue: Salesforce's tokens contain a `!`, Meta's a `|`.
    access_token: Annotated[str, Meta(pattern=r"\A[\x21-\x7e]+\Z")]
    token_type: Annotated[str, Meta(pattern=r"\A(?i:bearer)\Z")] = "bearer"  # noqa: S105  # no secret
    """Required by the RFC, and left out by some."""
    expires_in: Annotated[float, Meta(ge=0, le=10**9)] | None = None
    """Some servers write it in quotes."""


def read_token(body: bytes) -> tuple[str, float]:
    """Read the token and its lifetime in seconds from the answer of a token endpoint.

    Raises:
        UnusableAnswer: it has no usable token. The text names the wrong member, and repeats no value.
    """
    try:
        answer = msgspec.convert(strict_json.parse(body), _TokenAnswer, strict=False)
    except Unreadable:
        raise UnusableAnswer("the answer is not JSON") from None
    except msgspec.ValidationError as error:
        raise UnusableAnswer(f"the answer has no usable token: {error}") from None
    return answer.access_token, TRUSTED_SECONDS if answer.expires_in is None else answer.expires_in


def _failed(answer: Answer, why: str) -> Answer:
    """Turn a failed token request into the call's failure, without its body, which may hold a secret.

    A 404 of the token URL must not be read as that of the entity: its counterpart would be deleted.
    """
    error_class = "auth" if answer.error_class in _OF_THE_CLIENT else answer.error_class
    call = msgspec.structs.replace(answer.call, error=f"no token: {why}", excerpt=None)
    return msgspec.structs.replace(answer, call=call, body=b"", error_class=error_class)
