"""Errors of both sides, and their meaning for the caller.

Beside these there are `relay.handler`'s public Skip, Retry and GiveUp, which a handler raises, the `TimeoutError` of
`relay.http.guard`, and exceptions that never leave their module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

Made = TypeVar("Made")


class InboxRelayError(Exception):
    """Base of all errors of both packages; never raised itself."""


class ConfigError(InboxRelayError):
    """The configuration can't be used: the process exits with status 2, or keeps the old one.

    The message names the key, its place and the valid values.
    """


class UnfitDatabase(ConfigError):
    """The database can't keep a guarantee: a process does not start, a receiver answers 503.

    The message has a line with a remedy for each reason.
    """


class NotExamined(InboxRelayError):
    """An examination of `inbox doctor` can't be made; the message says what it needs."""


class HttpAnswerError(InboxRelayError):
    """An answer over HTTP that is no success; the message says what to do."""

    status: ClassVar[int]
    title: ClassVar[str]
    cause: ClassVar[str]
    """The kind of answer in one word."""
    retry_after_seconds: int | None = None
    """Seconds for the header `Retry-After`."""

    def __init_subclass__(cls, *, status: int | None = None, cause: str = "", title: str = "") -> None:
        if status is not None:  # None: a base of others
            cls.status, cls.cause, cls.title = status, cause, title

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class RequestError(HttpAnswerError):
    """An answer other than 200 to a webhook request. Its cause is the metric's label, and `rejected_request.cause`."""


class Unreadable(RequestError, status=400, cause="unreadable", title="The request can't be read"):
    """The body is not valid JSON, or has another length than announced."""


class NotAuthenticated(RequestError, status=401, cause="not_authenticated", title="Not authenticated"):
    """The source is unknown, or the sender failed to authenticate; the answer doesn't say which."""

    def __init__(self, detail: str, *, why: str | None = None) -> None:
        super().__init__(detail)
        self.why = why
        """Reason, for the operator only."""


class TooSlow(RequestError, status=408, cause="too_slow", title="The request took too long to arrive"):
    """The request took longer to arrive than allowed."""


class TooLarge(RequestError, status=413, cause="too_large", title="The body is too large"):
    """The body is larger than this source may send."""


class TargetTooLong(RequestError, status=414, cause="target_too_long", title="The URL is too long"):
    """The path and query are longer than any valid URL."""


class UnsupportedType(RequestError, status=415, cause="unsupported_type", title="Unsupported content type"):
    """The source's preset doesn't read this Content-Type or Content-Encoding."""


class ExpectationFailed(RequestError, status=417, cause="expectation_failed", title="The expectation can't be met"):
    """The request has an `Expect` header that is not supported."""


class InvalidEvent(RequestError, status=422, cause="invalid_event", title="Not a valid event"):
    """The body is readable, but a required field of an event is missing or wrong; `field` names it."""


class TooOld(RequestError, status=422, cause="too_old", title="The event is too old"):
    """The event's own time is older than the source's `max_age`."""


class TooMany(RequestError, status=429, cause="too_many", title="Too many requests"):
    """The source exceeds its `rate`; after `retry_after_seconds` one more request is allowed."""

    def __init__(self, detail: str, *, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class HeadTooLarge(RequestError, status=431, cause="head_too_large", title="The header fields are too large"):
    """The request has more or longer header fields than allowed."""


class Unavailable(RequestError, status=503, cause="unavailable", title="Not stored, send it again"):
    """The event is not certainly stored; the sender must send it again."""

    retry_after_seconds = 2


class StillOpen(Unavailable, status=503, cause="still_open", title="Stored, not delivered yet"):
    """The event is stored, and its outcome is not known yet; the sender's retry waits for the same event."""


class NotDelivered(RequestError, status=502, cause="not_delivered", title="Stored, not delivered"):
    """The event is stored, and its delivery was given up; an operator can replay it."""


CAUSES = frozenset(error.cause for error in (*RequestError.__subclasses__(), *Unavailable.__subclasses__()))
"""Every value of `rejected_request.cause` and of the metrics' label."""


class PageError(HttpAnswerError):
    """An answer of the operator's page or its API that is no result. Its cause ends the URL that names the type of problem."""


class BadFilter(PageError, status=400, cause="bad_filter", title="The filter makes no sense"):
    """A parameter of the URL or a field of the form is unknown or has a wrong value; `field` names it.

    Mend the field that the answer names. `/api/v1/openapi.json` has every parameter with its type.
    """


class SignInNeeded(PageError, status=401, cause="sign_in_needed", title="Sign in first"):
    """The request has no valid session, token or header of a trusted proxy.

    Sign in on the page, or send `Authorization: Bearer TOKEN` to the API. `relay web token` makes a token.
    """

    def __init__(self, detail: str, *, form: str | None = None) -> None:
        super().__init__(detail)
        self.form = form
        """URL of the form that a person may go to instead."""


class WrongPassword(PageError, status=401, cause="wrong_password", title="The name or the password is wrong"):
    """There is nobody with this name and password.

    `relay web passwd` gives a new password to somebody who has forgotten it.
    """


class NotAllowed(PageError, status=403, cause="not_allowed", title="Not allowed"):
    """The role does not allow this, or the request comes from another site or by another name of the page.

    Only operators change something: ask one, or use a token with the role operator. Set `origin` in `[web]` to the address
    that browsers see, and let a proxy keep the header `Host`.
    """


class NothingThere(PageError, status=404, cause="nothing_there", title="There is no such thing"):
    """No row has this number or name.

    It may have been deleted by retention, or the address is wrong. Lists have the numbers of what exists.
    """


class NotNow(PageError, status=409, cause="not_now", title="Not possible now"):
    """The act has nothing to do, or the command is in another state than it needs, such as one that has ended.

    Nothing was done. The page of the plan or of the command says where it stands.
    """


class PlanChanged(PageError, status=409, cause="plan_changed", title="The plan has changed"):
    """The plan is no longer the one that was shown.

    Nothing was done. Look at the new plan, and confirm that one.
    """


class TooManySignIns(PageError, status=429, cause="too_many_sign_ins", title="Too many attempts to sign in"):
    """A name or address has failed to sign in too often.

    Wait for as many seconds as the header `Retry-After` says.
    """

    def __init__(self, detail: str, *, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class AccessBroken(PageError, status=503, cause="access_broken", title="Nobody can sign in now"):
    """The file of those who may use the page can't be read, or has a wrong line.

    The log of the page names the line. Until it is mended, nobody in the file is let in: who was removed from it can't be
    told from the others.
    """

    retry_after_seconds = 5


class QueryTooSlow(PageError, status=503, cause="query_too_slow", title="The query took too long"):
    """A statement was ended after its time limit: narrow the filter.

    Give a route, a source or a time since which to look. A list that was asked for little is answered by its index.
    """

    retry_after_seconds = 10


class DatabaseAway(PageError, status=503, cause="database_away", title="The database does not answer"):
    """The database is gone, or locked.

    Ask again after the seconds of the header `Retry-After`; the page does so by itself. `inbox doctor` says more.
    """

    retry_after_seconds = 5


class IllegalTransition(InboxRelayError):
    """The table of transitions has no row for a step or fact: a bug, never data. The delivery stays unchanged."""


class MappingError(InboxRelayError):
    """A template or expression of a sync route has no usable value for this event; `field` names the target's field."""

    def __init__(self, detail: str, *, field: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field


class BodyErased(InboxRelayError):
    """A template, an expression or a function of yours looks into the body of an event, and the body was erased."""

    def __init__(self) -> None:
        super().__init__("the event's body was erased")


class PayloadGone(InboxRelayError):
    """Retention or erasure has deleted the headers and body of an event, so that it can't be delivered any more."""

    def __init__(self) -> None:
        super().__init__("its headers and body were deleted, by retention or erasure: cancel it")


class UnusableAnswer(InboxRelayError):
    """An answer of an api or destination lacks reliable information about matches or further pages."""


class UnusableCommand(InboxRelayError):
    """A row of `relay_command` is invalid or contradictory: it ends `refused`. The message becomes its answer."""


class NoSuchCommand(UnusableCommand):
    """No row of `relay_command` has this id."""


class SweepFailed(InboxRelayError):
    """A sweep could not read all changes of a source. Changes that it compared so far stay compared."""

    def __init__(self, detail: str, *, passes: bool = False, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.passes = passes
        """The failure is temporary; `retry_after` is the source's `Retry-After` in seconds."""
        self.retry_after = retry_after


class CopyFailed(InboxRelayError):
    """A row can't be copied, or differs in the copy. The message names it; what was copied so far stays copied."""


class OutboundRefused(InboxRelayError):
    """The outbound guard rejects this call: its address, scheme or a header is not allowed."""


def collect_config_errors(parts: Mapping[str, Callable[[], Made]]) -> dict[str, Made]:
    """Make all of `parts`, and collect the errors of those that fail.

    Raises:
        ConfigError: one or more of them raised it; the message has the lines of all, each once.
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
