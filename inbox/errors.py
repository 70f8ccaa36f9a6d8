"""Every error of both sides, and what each means to the caller.

::

    InboxRelayError
    ├── ConfigError            the configuration can't be used: the process ends (exit status 2), or keeps the old one
    │   └── UnfitDatabase      the database lets a guarantee not be kept: a process does not start, a receiver answers 503
    ├── RequestError           what the receiver answers instead of 200; each has a `status` and a `cause`
    │   ├── Unreadable         400  the bytes are not what they claim to be
    │   ├── NotAuthenticated   401  unknown source, or not proven to be it: deliberately the same answer
    │   ├── TooSlow            408  did not arrive in time
    │   ├── TooLarge           413
    │   ├── TargetTooLong      414
    │   ├── UnsupportedType    415
    │   ├── ExpectationFailed  417
    │   ├── InvalidEvent       422  readable, but not an event; names the field
    │   ├── TooMany            429  more than this source may send in a second: send it again later
    │   ├── HeadTooLarge       431
    │   ├── Unavailable        503  not stored: send it again later
    │   │   └── StillOpen      503  stored, and not delivered yet: the repeat waits for the same event
    │   └── NotDelivered       502  stored, and given up
    ├── IllegalTransition      a fact or step that the state machine has no row for: a bug, never data
    ├── MappingError           a sync route's template or expression has no value for this event
    ├── UnusableAnswer         an answer can't be relied on
    ├── UnusableCommand        what an operator asked for can't be understood, or can't be meant: it ends `failed`
    ├── UnreadableLog          a delivery's facts can't be read: it alone is left as it is
    ├── OutboundRefused        the guard refuses to send this call at all
    └── SweepFailed            a source could not be asked to the end for what has changed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

Made = TypeVar("Made")


class InboxRelayError(Exception):
    """The base of all errors of this package; never raised itself."""


class ConfigError(InboxRelayError):
    """The configuration can't be used. The text says which key, where it stands, and what would be valid."""


class UnfitDatabase(ConfigError):
    """The database doesn't let the guarantees be kept. The text has a line for each reason, with what to do."""


class RequestError(InboxRelayError):
    """A webhook request that isn't answered with 200."""

    status: ClassVar[int]
    title: ClassVar[str]
    cause: ClassVar[str]
    """The metric label and `rejected_request.cause`."""
    retry_after_seconds: int | None = None
    """When it is worth another try, for the header `Retry-After`."""

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class Unreadable(RequestError):
    """The body is not the JSON, or not the length, that the request says it is."""

    status = 400
    title = "The request can't be read"
    cause = "unreadable"


class NotAuthenticated(RequestError):
    """The source is unknown or the sender did not prove to be it; the answer doesn't tell which."""

    status = 401
    title = "Not authenticated"
    cause = "not_authenticated"

    def __init__(self, detail: str, *, why: str | None = None) -> None:
        super().__init__(detail)
        self.why = why
        """For the operator alone."""


class TooSlow(RequestError):
    """The request did not arrive in the time that it may take."""

    status = 408
    title = "The request took too long to arrive"
    cause = "too_slow"


class TooLarge(RequestError):
    """The body is larger than this source may send."""

    status = 413
    title = "The body is too large"
    cause = "too_large"


class TargetTooLong(RequestError):
    """The path and query are longer than any URL of ours."""

    status = 414
    title = "The URL is too long"
    cause = "target_too_long"


class UnsupportedType(RequestError):
    """The Content-Type or Content-Encoding is not one this source's preset reads."""

    status = 415
    title = "Unsupported content type"
    cause = "unsupported_type"


class ExpectationFailed(RequestError):
    """The request expects what is not done here."""

    status = 417
    title = "The expectation can't be met"
    cause = "expectation_failed"


class InvalidEvent(RequestError):
    """Readable, but a field that makes it an event is missing or wrong; `field` names it."""

    status = 422
    title = "Not a valid event"
    cause = "invalid_event"


class TooOld(RequestError):
    """A valid event, but its own time is further back than its source may send."""

    status = 422
    title = "The event is too old"
    cause = "too_old"


class TooMany(RequestError):
    """The source sends more than its `rate`; after `retry_after_seconds` there is room for one more."""

    status = 429
    title = "Too many requests"
    cause = "too_many"

    def __init__(self, detail: str, *, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class HeadTooLarge(RequestError):
    """There are more header fields, or longer ones, than are read."""

    status = 431
    title = "The header fields are too large"
    cause = "head_too_large"


class Unavailable(RequestError):
    """The event could not be stored for certain; the sender must send it again."""

    status = 503
    title = "Not stored, send it again"
    cause = "unavailable"
    retry_after_seconds = 2


class StillOpen(Unavailable):
    """The event is stored, and its outcome is not known yet; a repeat waits for the same event."""

    title = "Stored, not delivered yet"
    cause = "still_open"


class NotDelivered(RequestError):
    """The event is stored, and its delivery was given up; a person can take it up again."""

    status = 502
    title = "Stored, not delivered"
    cause = "not_delivered"


CAUSES = frozenset(
    {
        *(error.cause for error in RequestError.__subclasses__()),
        *(error.cause for error in Unavailable.__subclasses__()),
    }
)
"""Every word that `rejected_request.cause` and the metrics have."""


class IllegalTransition(InboxRelayError):
    """A step or fact for which the table of transitions has no row. The delivery is left untouched."""


class MappingError(InboxRelayError):
    """A template or expression of a sync route has no usable value for this event; `field` names the target field."""

    def __init__(self, detail: str, *, field: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field


class UnusableAnswer(InboxRelayError):
    """An answer is not what it has to be: what it says of matches, or of further pages, can't be relied on."""


class UnusableCommand(InboxRelayError):
    """A row of `relay_command` can't be understood, or can't be meant. The text is its answer."""


class UnreadableLog(InboxRelayError):
    """A fact of one delivery is none that this version can read; the text names the fact and what to do."""


class SweepFailed(InboxRelayError):
    """A source could not be asked to the end for what has changed. What was compared so far has been."""

    def __init__(self, detail: str, *, passes: bool = False, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.passes = passes
        """It may go by itself; `retry_after` seconds are what the source asks for."""
        self.retry_after = retry_after


class OutboundRefused(InboxRelayError):
    """The outbound guard refuses this call: its address, scheme or a header is not allowed."""


def collect_config_errors(parts: Mapping[str, Callable[[], Made]]) -> dict[str, Made]:
    """What each of `parts` makes.

    Raises:
        ConfigError: some of them raised one; the text has the lines of all, each once.
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
