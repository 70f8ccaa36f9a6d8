"""Every error of both sides, and what each means to the caller.

::

    InboxRelayError
    ├── ConfigError            the configuration can't be used: the process ends (exit status 2), or keeps the old one
    ├── RequestError           what the receiver answers instead of 200; each has a `status` and a `cause`
    │   ├── Unreadable         400  the bytes are not what they claim to be
    │   ├── NotAuthenticated   401  unknown source, or not proven to be it: deliberately the same answer
    │   ├── TooLarge           413
    │   ├── UnsupportedType    415
    │   ├── InvalidEvent       422  readable, but not an event; names the field
    │   ├── Unavailable        503  not stored: send it again later
    │   │   └── StillOpen      503  stored, and not delivered yet: the repeat waits for the same event
    │   └── NotDelivered       502  stored, and given up
    ├── IllegalTransition      a fact or step that the state machine has no row for: a bug, never data
    ├── MappingError           a sync route's template or expression has no value for this event
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


class RequestError(InboxRelayError):
    """A webhook request that isn't answered with 200."""

    status: ClassVar[int]
    title: ClassVar[str]
    cause: ClassVar[str]
    """The metric label and `rejected_request.cause`."""

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


class TooLarge(RequestError):
    """The body is larger than this source may send."""

    status = 413
    title = "The body is too large"
    cause = "too_large"


class UnsupportedType(RequestError):
    """The Content-Type or Content-Encoding is not one this source's preset reads."""

    status = 415
    title = "Unsupported content type"
    cause = "unsupported_type"


class InvalidEvent(RequestError):
    """Readable, but a field that makes it an event is missing or wrong; `field` names it."""

    status = 422
    title = "Not a valid event"
    cause = "invalid_event"


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


class SweepFailed(InboxRelayError):
    """A source could not be asked to the end for what has changed. What was compared so far has been."""

    def __init__(self, detail: str, *, passes: bool = False, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.passes = passes
        """It may go by itself; `retry_after` seconds are what the source asks for."""
        self.retry_after = retry_after


class OutboundRefused(InboxRelayError):
    """The outbound guard refuses this call: its address, scheme or a header is not allowed."""


def gathered(parts: Mapping[str, Callable[[], Made]]) -> dict[str, Made]:
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
