"""Errors of the receiver and the relay, with their meaning for the caller.

Not listed here: Skip, Retry and GiveUp in `relay.handler`, which handlers raise, the `TimeoutError` of
`relay.http.guard`, and exceptions that never leave their module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

Made = TypeVar("Made")


class InboxRelayError(Exception):
    """Base class of all errors of both packages; never raised itself."""


class ConfigError(InboxRelayError):
    """The configuration can't be used: the process exits with status 2, or keeps the old one.

    The message names the key, its line and the valid values.
    """


class UnfitDatabase(ConfigError):
    """The database can't keep a guarantee: processes refuse to start, and a running receiver answers 503.

    The message has one line for each reason, with its remedy.
    """


class NotExamined(InboxRelayError):
    """`inbox doctor` can't run an examination; the message names the missing requirement."""


class HttpAnswerError(InboxRelayError):
    """An HTTP error response; the message says what to do."""

    status: ClassVar[int]
    title: ClassVar[str]
    cause: ClassVar[str]
    """The kind of error in one word."""
    retry_after_seconds: int | None = None
    """Value of the `Retry-After` header, in seconds."""

    def __init_subclass__(cls, *, status: int | None = None, cause: str = "", title: str = "") -> None:
        if status is not None:  # None: a base class
            cls.status, cls.cause, cls.title = status, cause, title

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class RequestError(HttpAnswerError):
    """A webhook request is rejected. Its cause becomes the metric's label and `rejected_request.cause`."""


class Unreadable(RequestError, status=400, cause="unreadable", title="The request can't be read"):
    """The body is not valid JSON, or its length differs from Content-Length."""


class NotAuthenticated(RequestError, status=401, cause="not_authenticated", title="Not authenticated"):
    """The source is unknown, or the sender failed to authenticate; the response doesn't say which."""

    def __init__(self, detail: str, *, why: str | None = None) -> None:
        super().__init__(detail)
        self.why = why
        """Reason, shown only to operators."""


class TooSlow(RequestError, status=408, cause="too_slow", title="The request took too long to arrive"):
    """The request took longer to arrive than allowed."""


class TooLarge(RequestError, status=413, cause="too_large", title="The body is too large"):
    """The body exceeds the source's size limit."""


class TargetTooLong(RequestError, status=414, cause="target_too_long", title="The URL is too long"):
    """The path and query are longer than any valid URL."""


class UnsupportedType(RequestError, status=415, cause="unsupported_type", title="Unsupported content type"):
    """The source's preset doesn't support this Content-Type or Content-Encoding."""


class ExpectationFailed(RequestError, status=417, cause="expectation_failed", title="The expectation can't be met"):
    """The request's `Expect` header is not supported."""


class InvalidEvent(RequestError, status=422, cause="invalid_event", title="Not a valid event"):
    """The body is readable, but a required field is missing or wrong; `field` names it."""


class TooOld(RequestError, status=422, cause="too_old", title="The event is too old"):
    """The event's own time is older than the source's `max_age`."""


class TooMany(RequestError, status=429, cause="too_many", title="Too many requests"):
    """The source exceeds its `rate`; the next request is allowed after `retry_after_seconds`."""

    def __init__(self, detail: str, *, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class HeadTooLarge(RequestError, status=431, cause="head_too_large", title="The header fields are too large"):
    """The request has too many header fields, or they are too long."""


class Unavailable(RequestError, status=503, cause="unavailable", title="Not stored, send it again"):
    """The event may not be stored; the sender must send it again."""

    retry_after_seconds = 2


class StillOpen(Unavailable, status=503, cause="still_open", title="Stored, not delivered yet"):
    """The event is stored, but its outcome is not known yet; the sender's retry waits for the same event."""


class NotDelivered(RequestError, status=502, cause="not_delivered", title="Stored, not delivered"):
    """The event is stored, but its delivery was given up; an operator can replay it."""


CAUSES = frozenset(error.cause for error in (*RequestError.__subclasses__(), *Unavailable.__subclasses__()))
"""Every value of `rejected_request.cause` and of the metrics' label."""


class PageError(HttpAnswerError):
    """An error response of the operator's page or its API. Its cause ends the URL of the problem's type."""


class BadFilter(PageError, status=400, cause="bad_filter", title="The request makes no sense"):
    """A query parameter or form field is unknown or has a wrong value; `field` names it.

    Fix the field that the response names. `/api/v1/openapi.json` lists every parameter with its type.
    """


class SignInNeeded(PageError, status=401, cause="sign_in_needed", title="Sign in first"):
    """The request has no valid session, token or trusted proxy header.

    Sign in on the page, or send `Authorization: Bearer TOKEN` to the API. `relay web token` creates a token.
    """

    def __init__(self, detail: str, *, form: str | None = None) -> None:
        super().__init__(detail)
        self.form = form
        """URL of the sign-in form, for people."""


class WrongPassword(PageError, status=401, cause="wrong_password", title="The name or the password is wrong"):
    """No user has this name and password.

    `relay web passwd` sets a new password.
    """


class NotAllowed(PageError, status=403, cause="not_allowed", title="Not allowed"):
    """The role does not allow this, or the request comes from another site or another host name of the page.

    Only operators may make changes: ask one, or use a token with the role operator. Set `origin` in `[web]` to the
    address that browsers see, and configure proxies to keep the `Host` header.
    """


class NothingThere(PageError, status=404, cause="nothing_there", title="There is no such thing"):
    """No row has this number or name.

    Retention may have deleted it, or the address is wrong. The lists show the existing rows.
    """


class NotNow(PageError, status=409, cause="not_now", title="Not possible now"):
    """There is nothing to do, or the command is in the wrong state, such as already ended.

    Nothing was changed. The page of the plan or command shows its state.
    """


class PlanChanged(PageError, status=409, cause="plan_changed", title="The plan has changed"):
    """The plan has changed since it was shown.

    Nothing was changed. Review and confirm the new plan.
    """


class TooManySignIns(PageError, status=429, cause="too_many_sign_ins", title="Too many attempts to sign in"):
    """This name or address has failed to sign in too often.

    Wait for the seconds in the `Retry-After` header.
    """

    def __init__(self, detail: str, *, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class AccessBroken(PageError, status=503, cause="access_broken", title="Nobody can sign in now"):
    """The file of the page's users can't be read, or has an invalid line.

    The page's log names the line. Until it is fixed, no user in the file can sign in: removed users can't be told from the others.
    """

    retry_after_seconds = 5


class QueryTooSlow(PageError, status=503, cause="query_too_slow", title="The query took too long"):
    """A statement reached its time limit: narrow the filter.

    Filter by route, source or start time. Narrow filters are answered from an index.
    """

    retry_after_seconds = 10


class DatabaseAway(PageError, status=503, cause="database_away", title="The database does not answer"):
    """The database is unreachable or locked.

    Try again after the seconds in the `Retry-After` header; the page does so by itself. `inbox doctor` says more.
    """

    retry_after_seconds = 5


class IllegalTransition(InboxRelayError):
    """The transition table has no row for a step or fact: a bug, never bad data. The delivery stays unchanged."""


class MappingError(InboxRelayError):
    """A sync route's template or expression gives no usable value for this event; `field` names the target's field."""

    def __init__(self, detail: str, *, field: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field


class BodyErased(InboxRelayError):
    """A template, an expression or a custom function reads the body of an event whose body was erased."""

    def __init__(self) -> None:
        super().__init__("the event's body was erased")


class PayloadGone(InboxRelayError):
    """Retention or erasure has deleted an event's headers and body, so it can't be delivered any more."""

    def __init__(self) -> None:
        super().__init__("its headers and body were deleted, by retention or erasure: cancel it")


class UnusableResponse(InboxRelayError):
    """A response of an api or destination lacks reliable information about matches or further pages."""


class UnusableCommand(InboxRelayError):
    """A row of `relay_command` is invalid or contradictory: it ends as `refused`, with the message as its answer."""

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field
        """Wrong field of the selection, if the fault is in a field."""


class NoSuchCommand(UnusableCommand):
    """No command has this id."""


class SweepFailed(InboxRelayError):
    """A sweep could not read all changes of a source. Changes compared so far stay compared."""

    def __init__(self, detail: str, *, passes: bool = False, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.passes = passes
        """True if the failure is temporary; `retry_after` is the source's `Retry-After` in seconds."""
        self.retry_after = retry_after


class CopyFailed(InboxRelayError):
    """A row can't be copied, or differs in the copy; the message names it. Nothing is kept in the target."""


class OutboundRefused(InboxRelayError):
    """The outbound guard rejects this call: its address, its scheme or a header is not allowed."""


def collect_config_errors(parts: Mapping[str, Callable[[], Made]]) -> dict[str, Made]:
    """Make each of `parts`, and raise all their errors together.

    Raises:
        ConfigError: a part raised it; the message has every distinct line.
    """
    made: dict[str, Made] = {}
    wrong: list[str] = []
    for name, make in parts.items():
        try:
            made[name] = make()
        except ConfigError as error:
            wrong += str(error).splitlines()
    if wrong:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    return made
