"""Sessions: a signed cookie says who has signed in, and until when. Pure.

The key is made from the person's line of the users file. So a new password, another role and a removed line end the
sessions of that person, and of nobody else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping

import msgspec

from relay.web.access.actor import Role
from relay.web.access.credentials import PasswordHash
from relay.web.access.entries import Entry

LONGEST_COOKIE = 1_000
"""Characters; a name of 64 takes about 500."""
COOKIE, SECURE_COOKIE = "inbox-relay", "__Host-inbox-relay"
"""Names of the cookie behind http and https. No other host can set one that begins with `__Host-`."""
_PURPOSE = b"inbox-relay web session 1\0"
MOST_ENDED = 10_000


class Session(msgspec.Struct, frozen=True, array_like=True):
    """The content of a cookie."""

    name: str
    role: Role
    until: int
    """Seconds since 1970 at which it ends."""
    number: str
    """Random, so that a sign-out can name it."""


People = Mapping[str, Entry[PasswordHash]]


def cookie_name(*, is_https: bool) -> str:
    """Return the name of the cookie."""
    return SECURE_COOKIE if is_https else COOKIE


def write(session: Session, line: str) -> str:
    """Return the cookie of a session: its content and a signature. `line` is the person's line of the users file."""
    content = base64.urlsafe_b64encode(_encoder.encode(session)).decode().rstrip("=")
    return f"{content}.{_signature(content, line)}"


def read(cookie: str, people: People, now: float) -> Session | None:
    """Return the session of a cookie; None unless it is signed with the person's present line and lasts still."""
    if len(cookie) > LONGEST_COOKIE or not cookie.isascii():
        return None
    content, _, signature = cookie.partition(".")
    try:
        session = _decoder.decode(base64.urlsafe_b64decode(content + "=" * (-len(content) % 4)))
    except (binascii.Error, msgspec.DecodeError, ValueError):
        return None
    entry = people.get(session.name)
    # The signature covers the content as it was sent, and is compared as text: no bit of either has a second form.
    if entry is None or not hmac.compare_digest(signature, _signature(content, entry.line)):
        return None
    return session if now < session.until and session.role == entry.role else None


def _signature(content: str, line: str) -> str:
    key = hmac.digest(_PURPOSE, line.encode(), hashlib.sha256)
    return hmac.new(key, content.encode(), hashlib.sha256).hexdigest()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Session)


class EndedSessions:
    """Sessions that a sign-out has ended before their time. It keeps at most `MOST_ENDED`; a restart forgets them."""

    def __init__(self) -> None:
        self._until: dict[str, int] = {}

    def end(self, session: Session, now: float) -> None:
        """End a session."""
        if len(self._until) >= MOST_ENDED:
            self._until = {number: until for number, until in self._until.items() if until > now}
        while len(self._until) >= MOST_ENDED:
            del self._until[next(iter(self._until))]
        self._until[session.number] = session.until

    def __contains__(self, session: Session) -> bool:
        return session.number in self._until
