"""The people and programs that may use the page: lines of `NAME:ROLE:HASH` in two files, read again while the page runs.

A person chooses a password, so its hash is Argon2id: slow, and in much memory. A token is 32 random bytes, which nobody can
guess, so SHA-256 is enough for it.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shlex
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

import argon2
import msgspec
from argon2.exceptions import InvalidHashError, VerificationError

from inbox.config.model import Web
from inbox.config.values import Secret
from inbox.errors import AccessBroken, ConfigError
from inbox.observe.logs import fields
from inbox.observe.visible import visible

Role = Literal["viewer", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "operator")


class Actor(msgspec.Struct, frozen=True):
    """The person or program that asks."""

    name: str
    role: Role
    by: Literal["session", "token", "proxy"] = "session"

    @property
    def may_act(self) -> bool:
        """Tell whether it may change something."""
        return self.role == "operator"


# --- hashes

SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 1_000
"""Characters. NIST SP 800-63B asks for 8 where another factor helps, and for 15 without; there is a rate limit here."""
TOKEN_PREFIX = "irw_"  # noqa: S105  # no token, only its beginning
"""A scanner of repositories recognises a token by it."""
LONGEST_TOKEN = 200
HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""One of OWASP's equal settings for Argon2id, with the least memory."""
_MOST_MEMORY, _MOST_WORK = 256 * 1024, 16
_PASSWORD_HASH = re.compile(  # salt and hash in the only form of their base64
    r"\$argon2id\$v=19\$m=(\d{1,7}),t=(\d{1,2}),p=(\d{1,2})\$[A-Za-z\d+/]{21}[AQgw]\$[A-Za-z\d+/]{42}[AEIMQUYcgkosw048]",
    re.ASCII,
)
_TOKEN_HASH = re.compile(r"sha256\$[0-9a-f]{64}")


def check_password_hash(text: str) -> None:
    """Require the hash of a password.

    Raises:
        ValueError: no such hash, or one that needs too much memory or time. The message does not repeat it.
    """
    match = _PASSWORD_HASH.fullmatch(text)
    if match is None:
        raise ValueError("the hash is none of `relay web passwd`")
    memory, passes, lanes = map(int, match.groups())
    if not (1 <= lanes and 8 * lanes <= memory <= _MOST_MEMORY and 1 <= passes <= _MOST_WORK and lanes <= _MOST_WORK):
        raise ValueError("the hash needs too much memory or time; make it anew with `relay web passwd`")


def _normalised(password: str) -> bytes:
    """Normalise a password, as keyboards write `é` in two ways."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def hash_password(password: str, hasher: argon2.PasswordHasher = HASHER) -> str:
    """Hash a new password.

    Raises:
        ValueError: it is too short or too long.
    """
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise ValueError(f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    return hasher.hash(_normalised(password))


def is_password(password: str, hashed: str) -> bool:
    """Tell whether the password is the one. Slow by design."""
    if len(password) > LONGEST_PASSWORD:  # before it is normalised, whose time grows by the square
        return False
    try:
        return HASHER.verify(hashed, _normalised(password))
    except (VerificationError, InvalidHashError):
        return False


def new_token() -> str:
    """Return a new token, with 32 random bytes in it."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return the text that stands for a token in the tokens file."""
    return f"sha256${hashlib.sha256(token.encode('utf-8', 'surrogatepass')).hexdigest()}"


def check_token_hash(text: str) -> None:
    """Require the hash of a token.

    Raises:
        ValueError: no such hash. The message does not repeat it.
    """
    if not _TOKEN_HASH.fullmatch(text):
        raise ValueError("the hash is none of `relay web token`")


# --- lines and files

LONGEST_NAME = 64
_NAME = re.compile(rf"[\w.@+-]{{1,{LONGEST_NAME}}}")
NAMES = f"letters, digits and . @ + - _, at most {LONGEST_NAME}"
_PARTS = 3
Check = Callable[[str], None]


class Entry(msgspec.Struct, frozen=True):
    """A line: a person or program, its role, and the hash of its password or token."""

    name: str
    role: Role
    hash: str
    line: str
    """The whole line. A session is bound to it, so that any change of it ends the session."""

    def __repr__(self) -> str:
        return f"Entry({self.name!r}, {self.role!r}, …)"


Entries = Mapping[str, Entry]
NOBODY = Entry("", "viewer", "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$" + "A" * 43, "")
"""Nobody's password has this hash."""


def is_name(name: str) -> bool:
    """Tell whether a person or program may have this name."""
    return _NAME.fullmatch(name) is not None


def parse_entries(text: str, where: str, check: Check) -> dict[str, Entry]:
    """Parse a file. Empty lines and those that begin with `#` say nothing.

    Raises:
        ConfigError: a line is wrong, or a name stands twice. The message has the number of each such line in the file that
            `where` names, and no hash.
    """
    found: dict[str, Entry] = {}
    numbers: dict[str, int] = {}
    mistakes: list[str] = []
    for number, given in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = given.strip()
        if not line or line.startswith("#"):
            continue
        try:
            entry = _entry(line, check)
        except ValueError as error:
            mistakes.append(f"{where}, line {number}: {error}")
            continue
        if entry.name in found:
            mistakes.append(f"{where}, line {number}: {entry.name} stands in line {numbers[entry.name]} already")
        found[entry.name], numbers[entry.name] = entry, number
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return found


def _entry(line: str, check: Check) -> Entry:
    """Parse a line. A message repeats neither its hash nor anything of a line without the two colons."""
    parts = line.split(":")
    if len(parts) != _PARTS:
        raise ValueError("expected NAME:ROLE:HASH, as `relay web passwd` and `relay web token` write it")
    name, role, hashed = parts
    if not is_name(name):
        raise ValueError(f"a name has {NAMES}")
    if role not in ROLES:
        raise ValueError(f"the role of {name} must be {' or '.join(ROLES)}")
    check(hashed)
    return Entry(name, role, hashed, line)


def write_entry(path: Path, name: str, line: str, check: Check) -> None:
    """Put a line in the place of the one with the same name, or at the end of a file; comments and other lines stay.

    A new file can be read by its owner alone. One that is there keeps its owner and group, and gives nothing to others.
    It is written in its place, as a container may have this very file mounted. Of two writers one waits for the other, and
    `AccountFile` reads between two of them. The room that it needs is taken first, so that a full disk leaves the file as it was.

    Raises:
        ConfigError: the file can't be read or written, or has a wrong line.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(handle, "r+", encoding="utf-8") as file:
            fcntl.flock(handle, fcntl.LOCK_EX)
            text = file.read().removeprefix("\ufeff")
            parse_entries(text, str(path), check)
            lines = text.removesuffix("\n").split("\n") if text else []
            place = next((at for at, old in enumerate(lines) if old.strip().partition(":")[0] == name), len(lines))
            lines[place : place + 1] = [line]
            os.fchmod(handle, stat.S_IMODE(os.fstat(handle).st_mode) & 0o640)
            new = "\n".join([*lines, ""]).encode()
            size = os.fstat(handle).st_size
            _take_room(handle, size, len(new) - size)
            os.pwrite(handle, new.ljust(size, b"\n"), 0)
            os.ftruncate(handle, len(new))
            os.fsync(handle)
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't write {visible(str(path))}: {error}") from None


def _take_room(handle: int, size: int, more: int) -> None:
    """Make a file longer by empty lines, or leave it as it is."""
    if more > 0 and os.pwrite(handle, b"\n" * more, size) < more:
        os.ftruncate(handle, size)
        raise OSError("there is no room for it")


# --- while the page runs

RECHECK_SECONDS = 2.0
"""A file is read again at most so often. So a person who was removed is out after this time."""
FileKey = Literal["users", "tokens"]
"""The key of `[web]` that names a file."""
_log = logging.getLogger("gunicorn.error")  # it goes where gunicorn's settings send it


class AccountFile:
    """One file, read again while the process runs; without a secret nobody is in it."""

    def __init__(self, secret: Secret | None, key: FileKey, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Prepare it. `key` is that of `[web]` which names the file."""
        self._secret, self._key, self._monotonic = secret, key, monotonic
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._error: str | None = None
        self._entries: Entries = {}

    async def entries(self, *, fresh: bool = False) -> Entries:
        """Return the entries as they are now, or were `RECHECK_SECONDS` ago; `fresh` reads the file in any case.

        Raises:
            AccessBroken: the file can't be used. Nobody in it is let in, as who was removed can't be told.
        """
        async with self._lock:
            now, error = self._monotonic(), None
            if fresh or now - self._read_at >= RECHECK_SECONDS:
                try:
                    self._entries = await asyncio.to_thread(_read, self._secret, self._key)
                except ConfigError as found:
                    error = str(found)
                    if error != self._error:
                        _log.error("nobody can sign in: %s", error, extra=fields("nobody_can_sign_in"))
                self._error, self._read_at = error, now
        if self._error is not None:
            raise AccessBroken("the file of those who may use this page can't be read; its log says why")
        return self._entries


def _read(secret: Secret | None, key: FileKey) -> Entries:
    """Read one of the files, between two writes.

    Raises:
        ConfigError: it can't be read, or has a wrong line.
    """
    if secret is None:
        return {}
    kind, _, place = secret.reference.partition(":")
    with ExitStack() as stack:
        if kind == "file":
            with suppress(OSError, ValueError):  # reveal tells why it can't be read
                fcntl.flock(stack.enter_context(Path(place).open("rb")), fcntl.LOCK_SH)
        content = secret.reveal(at=f"[web] {key}", as_file=True)
    where = secret.reference.removeprefix("file:") if secret.names_a_place else "its text"
    return parse_entries(content, where, check_password_hash if key == "users" else check_token_hash)


def _mistakes_in(secret: Secret, key: FileKey) -> Iterator[str]:
    """Yield the mistakes in a file, with the command that mends them."""
    command = f"`relay web {'passwd' if key == 'users' else 'token'} NAME --role operator"
    try:
        if not _read(secret, key):
            yield f"[web] {key}: has no line; add one with {command}`"
    except ConfigError as error:
        text = "\n".join(
            each if each.startswith("[web]") else f"[web] {key}: {each}" for each in str(error).splitlines()
        )
        kind, _, place = secret.reference.partition(":")
        if kind == "file" and Path(place).parent.is_dir() and not Path(place).exists():
            text += f"; write it with {command} --into {shlex.quote(place)}`"
        yield text


def check_accounts(web: Web) -> None:
    """Require that somebody may use the page, and that the files say who.

    Raises:
        ConfigError: nobody may, or a file can't be read, is empty or has a wrong line. The text has a line for each.
    """
    if web.users is None and web.tokens is None and web.proxy is None:
        raise ConfigError(
            "[web] lets nobody use the page: write a users file with `relay web passwd NAME --role operator --into FILE`,"
            ' and give users = "file:/path" of it, or tokens or a proxy'
        )
    check_files(web)


def check_files(web: Web) -> None:
    """Require that the files of `[web]` that are given can be used.

    Raises:
        ConfigError: as `check_accounts`.
    """
    given: tuple[tuple[Secret | None, FileKey], ...] = ((web.users, "users"), (web.tokens, "tokens"))
    if mistakes := [each for secret, key in given if secret is not None for each in _mistakes_in(secret, key)]:
        raise ConfigError("\n".join(mistakes))
