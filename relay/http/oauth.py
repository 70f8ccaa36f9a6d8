"""Bearer tokens by client credentials (RFC 6749 §4.4): got when they are needed, kept, and renewed before they end."""

from __future__ import annotations

import base64
import re
import threading
from typing import Any

import msgspec
from oauthlib.oauth2 import BackendApplicationClient

from inbox.clock import steady
from inbox.config.model import ApiOauth2
from inbox.errors import Unreadable, UnusableAnswer
from inbox.events import strict_json
from relay.delivery.outcome import Call, ErrorClass
from relay.http.answer import Answer, Redactor
from relay.http.client import HttpClient, Limits, Request

RENEWED_BEFORE_SECONDS = 30.0
"""So long before its end a token is not used any more: the call may take its time."""
TRUSTED_SECONDS = 300.0
"""How long a token is kept whose answer does not say how long it lasts."""


class Token(msgspec.Struct, frozen=True):
    """One token; `until` is by the steady clock."""

    value: str
    until: float
    redactor: Redactor
    """Masks it in what a call with it is answered."""


class TokenClient:
    """Calls an endpoint with a token, as `HttpClient` does without. Any thread may use it; one at a time gets a token."""

    def __init__(self, calls: HttpClient, tokens: HttpClient, auth: ApiOauth2, patience: float) -> None:
        """`tokens` calls the token URL; who waits longer than `patience` seconds for another's token gets none."""
        self._patience = patience
        self._token_url = auth.token_url.partition("?")[0]
        self._calls = calls
        self._tokens = tokens
        self._client_id, self._client_secret = auth.client_id.reveal(), auth.client_secret.reveal()
        self._scope = auth.scope
        self._in_body = auth.credentials == "body"
        self._lock = threading.Lock()
        self._token: Token | None = None

    def call(self, request: Request, limits: Limits) -> Answer:
        """As `HttpClient.call`. What is wrong with the token URL is told as this call's own failure.

        A call that is answered 401 is made once more with a new token: the one at hand may have been revoked.
        """
        token = self._present(request, limits)
        if isinstance(token, Answer):
            return token
        answer = self._call(request, token, limits)
        if answer.call.status != _UNAUTHORISED:
            return answer
        self._forget(token)
        token = self._present(request, limits)
        return token if isinstance(token, Answer) else self._call(request, token, limits)

    def close(self) -> None:
        """Close the idle connections. The client can still be used."""
        self._calls.close()
        self._tokens.close()

    def _call(self, request: Request, token: Token, limits: Limits) -> Answer:
        authorised = {**request.headers, "Authorization": f"Bearer {token.value}"}
        answer = self._calls.call(msgspec.structs.replace(request, headers=authorised), limits)
        if answer.call.excerpt is None:
            return answer
        masked = token.redactor.excerpt(answer.body)  # not of the excerpt, at whose end half of it may stand
        return msgspec.structs.replace(answer, call=msgspec.structs.replace(answer.call, excerpt=masked))

    def _present(self, request: Request, limits: Limits) -> Token | Answer:
        began = steady()
        if not self._lock.acquire(timeout=self._patience):
            waited = round((steady() - began) * 1000, 2)
            why = "no token: others have waited for one too long"
            return Answer(
                Call(request.step, "POST", self._token_url, "not_sent", waited, error=why), error_class="not_sent"
            )
        try:
            if self._token is None or steady() >= self._token.until:
                found = self._ask(request, limits)
                if isinstance(found, Answer):
                    return found
                self._token = found
            return self._token
        finally:
            self._lock.release()

    def _forget(self, token: Token) -> None:
        with self._lock:
            if self._token is token:
                self._token = None

    def _ask(self, request: Request, limits: Limits) -> Token | Answer:
        client = BackendApplicationClient(self._client_id)  # told no scope, it takes an answer with another one (§3.3)
        secrets: dict[str, Any] = (
            {"include_client_id": True, "client_secret": self._client_secret} if self._in_body else {}
        )
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        if not self._in_body:
            both = f"{self._client_id}:{self._client_secret}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(both).decode()}"
        body = client.prepare_request_body(scope=self._scope, **secrets).encode()
        answer = self._tokens.call(Request(request.step, "POST", headers, body=body), limits)
        if answer.error_class is not None:
            return _failed(answer, answer.call.error or f"answered {answer.call.status}")
        try:
            value, lasts = read_token(answer.body)
        except UnusableAnswer as error:
            return msgspec.structs.replace(_failed(answer, str(error)), error_class="bad_answer")
        until = steady() + max(lasts - RENEWED_BEFORE_SECONDS, lasts / 2)
        return Token(value, until, self._calls.redactor_besides(value))


_UNAUTHORISED = 401
_VISIBLE = re.compile(r"[\x21-\x7e]+")
"""Characters that RFC 6749 §A.12 lets a token have, but for the space, so it is the value of a header, too.

RFC 6750 §2.1 lets bearer tokens have less than is issued as such: Salesforce's have a `!` in them, Meta's a `|`.
"""
_OF_THE_CLIENT: frozenset[ErrorClass] = frozenset({"rejected", "not_found", "gone", "conflict"})
"""As a token URL's answer these say that the client gets no token (400 is RFC 6749 §5.2's own), and nothing of what is called."""


def read_token(body: bytes) -> tuple[str, float]:
    """The token in the answer of a token endpoint (RFC 6749 §5.1), and how many seconds it lasts.

    Raises:
        UnusableAnswer: there is none that can be used. The text says which member is wrong, and repeats no value.
    """
    try:
        answer = strict_json.parse(body)
    except Unreadable:
        raise UnusableAnswer("the answer is not JSON") from None
    if not isinstance(answer, dict):
        raise UnusableAnswer("the answer is no JSON object")
    value = answer.get("access_token")
    if not isinstance(value, str):
        raise UnusableAnswer("the answer's access_token is missing, or no text")
    if _VISIBLE.fullmatch(value) is None:
        raise UnusableAnswer("the answer's access_token has characters that no token has (RFC 6749 §A.12), or a space")
    token_type = answer.get("token_type", "bearer")  # required by the RFC, and left out by some
    if not isinstance(token_type, str) or token_type.lower() != "bearer":
        raise UnusableAnswer("the answer's token_type is not bearer")
    return value, _seconds(answer.get("expires_in"))


def _seconds(given: object) -> float:
    """A number, or the digits of one in quotes, as some servers write it."""
    if given is None:
        return TRUSTED_SECONDS
    if isinstance(given, str) and _DIGITS.fullmatch(given):
        return float(given)
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= _LONGEST_SECONDS:
        return float(given)
    raise UnusableAnswer("the answer's expires_in is no number of seconds")


_DIGITS = re.compile(r"[0-9]{1,9}")
_LONGEST_SECONDS = 10**9
"""Some thirty years: what is longer is a mistake, and would be a number that a clock can't be added to."""


def _failed(answer: Answer, why: str) -> Answer:
    """The same, told so that it is seen that the token is meant; what was answered may hold a secret.

    A 404 of the token URL must not be taken for one of the entity, whose counterpart would be deleted.
    """
    error_class = "auth" if answer.error_class in _OF_THE_CLIENT else answer.error_class
    call = msgspec.structs.replace(answer.call, error=f"no token: {why}", excerpt=None)
    return msgspec.structs.replace(answer, call=call, body=b"", error_class=error_class)
