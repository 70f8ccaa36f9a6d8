"""Accounts of the page: lines of `NAME:ROLE:HASH` in two files, which the running page rereads.

People choose their passwords, so they are hashed with Argon2id, which is slow and memory-hard. A token is 32 random
bytes, which can't be guessed, so SHA-256 suffices.
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
from collections.abc import Callable, Mapping
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
    """The person or program that makes a request."""

    name: str
    role: Role
    by: Literal["session", "token", "proxy"] = "session"

    @property
    def may_act(self) -> bool:
        """Return whether the actor may make changes."""
        return self.role == "operator"


# --- hashes

SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 1_000
"""Lengths in characters. NIST SP 800-63B requires 8 with a second factor and 15 without; here, a rate limit also helps."""
TOKEN_PREFIX = "irw_"  # noqa: S105  # only the prefix of a token
"""Prefix by which secret scanners recognise a token."""
LONGEST_TOKEN = 200
HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""One of OWASP's equivalent settings for Argon2id, with little memory."""
FileKey = Literal["users", "tokens"]
"""The key of `[web]` that names a file."""
_HASHES: Mapping[FileKey, tuple[re.Pattern[str], str]] = {
    "users": (  # salt and hash in canonical base64
        re.compile(
            r"\$argon2id\$v=19\$m=\d{1,6},t=\d{1,2},p=\d{1,2}\$[A-Za-z\d+/]{21}[AQgw]\$[A-Za-z\d+/]{42}[AEIMQUYcgkosw048]",
            re.ASCII,
        ),
        "relay web passwd",
    ),
    "tokens": (re.compile(r"sha256\$[0-9a-f]{64}"), "relay web token"),
}
"""Format of the hashes in each file, and the command that writes its lines."""


def _normalise(password: str) -> bytes:
    """Normalise a password, since keyboards encode `é` in two ways."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def hash_password(password: str, hasher: argon2.PasswordHasher = HASHER) -> str:
    """Hash a new password.

    Raises:
        ValueError: it is too short or too long.
    """
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise ValueError(f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    return hasher.hash(_normalise(password))


def is_password(password: str, hashed: str) -> bool:
    """Return whether the password matches the hash. Slow by design."""
    if len(password) > LONGEST_PASSWORD:  # normalising takes quadratic time
        return False
    try:
        return HASHER.verify(hashed, _normalise(password))
    except (VerificationError, InvalidHashError):
        return False


def new_token() -> str:
    """Return a new token of 32 random bytes."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return the text that stands for a token in the tokens file."""
    return f"sha256${hashlib.sha256(token.encode('utf-8', 'surrogatepass')).hexdigest()}"


# --- lines and files

LONGEST_NAME = 64
_NAME = re.compile(rf"[\w.@+-]{{1,{LONGEST_NAME}}}")
NAMES = f"letters, digits and . @ + - _, at most {LONGEST_NAME}"
_PARTS = 3


class Entry(msgspec.Struct, frozen=True):
    """A line: a person or program, its role, and the hash of its password or token."""

    name: str
    role: Role
    hash: str
    line: str
    """The whole line. Sessions are bound to it, so any change to the line ends them."""

    def __repr__(self) -> str:
        return f"Entry({self.name!r}, {self.role!r}, …)"


Entries = Mapping[str, Entry]
NOBODY = Entry("", "viewer", "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$" + "A" * 43, "")
"""An entry whose hash matches no password; passwords of unknown names are compared with it."""


def is_name(name: str) -> bool:
    """Return whether a person or program may have this name."""
    return _NAME.fullmatch(name) is not None


def parse_entries(text: str, where: str, key: FileKey) -> dict[str, Entry]:
    """Parse a file. Empty lines and comments, which begin with `#`, are ignored.

    Raises:
        ConfigError: a line is wrong, or a name is repeated. The message has the number of each such line in the file
            `where`, but no hash.
    """
    found: dict[str, Entry] = {}
    numbers: dict[str, int] = {}
    mistakes: list[str] = []
    for number, given in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = given.strip()
        if not line or line.startswith("#"):
            continue
        try:
            entry = _entry(line, key)
        except ValueError as error:
            mistakes.append(f"{where}, line {number}: {error}")
            continue
        if entry.name in found:
            mistakes.append(f"{where}, line {number}: {entry.name} is already in line {numbers[entry.name]}")
        found[entry.name], numbers[entry.name] = entry, number
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return found


def _entry(line: str, key: FileKey) -> Entry:
    """Parse a line. Error messages contain neither its hash nor any part of a line without two colons."""
    parts = line.split(":")
    if len(parts) != _PARTS:
        raise ValueError("expected NAME:ROLE:HASH, as written by `relay web passwd` and `relay web token`")
    name, role, hashed = parts
    if not is_name(name):
        raise ValueError(f"a name has {NAMES}")
    if role not in ROLES:
        raise ValueError(f"the role of {name} must be {' or '.join(ROLES)}")
    form, command = _HASHES[key]
    if not form.fullmatch(hashed):
        raise ValueError(f"the hash was not made by `{command}`")
    return Entry(name, role, hashed, line)


def write_entry(path: Path, name: str, line: str, key: FileKey) -> None:
    """Replace the line with the same name, or append one to the file; comments and other lines stay.

    A new file is readable only by its owner. An existing file keeps its owner and group, but all other users lose
    access. It is written in place, because a container may have this file mounted. Writers and readers lock the file.
    Empty lines reserve the space first, so that a full disk leaves the accounts unchanged.

    Raises:
        ConfigError: the file can't be read or written, or has a wrong line.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            old = file.read()
            text = old.decode().removeprefix("\ufeff")
            parse_entries(text, str(path), key)
            lines = text.removesuffix("\n").split("\n") if text else []
            place = next((at for at, each in enumerate(lines) if each.strip().partition(":")[0] == name), len(lines))
            lines[place : place + 1] = [line]
            new = "\n".join([*lines, ""]).encode()
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o640)
            file.write(b"\n" * (len(new) - len(old)))
            file.flush()
            file.seek(0)
            file.write(new)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't write {visible(str(path))}: {error}") from None


# --- while the page runs

RECHECK_SECONDS = 2.0
"""Time between reads of a file, and thus the time until a removed person loses access."""
_log = logging.getLogger("gunicorn.error")  # its handler is set by gunicorn's settings


class AccountFile:
    """A file of accounts, reread while the process runs; without a secret it has no accounts."""

    def __init__(self, secret: Secret | None, key: FileKey, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Prepare the file without reading it. `key` is its key in `[web]`."""
        self._secret, self._key, self._monotonic = secret, key, monotonic
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._error: str | None = None
        self._entries: Entries = {}

    async def entries(self, *, fresh: bool = False) -> Entries:
        """Return the entries, which are at most `RECHECK_SECONDS` old; `fresh` always reads the file.

        Raises:
            AccessBroken: the file is unusable. All accounts are refused, because removed ones can't be recognised.
        """
        async with self._lock:
            now = self._monotonic()
            if fresh or now - self._read_at >= RECHECK_SECONDS:
                self._read_at = now
                try:
                    self._entries, self._error = await asyncio.to_thread(_read, self._secret, self._key), None
                except ConfigError as error:
                    if str(error) != self._error:
                        _log.error("sign-in is impossible: %s", error, extra=fields("nobody_can_sign_in"))
                    self._error = str(error)
        if self._error is not None:
            raise AccessBroken("the accounts file of this page can't be read; the page's log has the reason")
        return self._entries


def _read(secret: Secret | None, key: FileKey) -> Entries:
    """Read one of the files while no write is in progress.

    Raises:
        ConfigError: the file can't be read, or has a wrong line.
    """
    if secret is None:
        return {}
    kind, _, place = secret.reference.partition(":")
    with ExitStack() as stack:
        if kind == "file":
            with suppress(OSError, ValueError):  # reveal reports why it can't be read
                fcntl.flock(stack.enter_context(Path(place).open("rb")), fcntl.LOCK_SH)
        content = secret.reveal(at=f"[web] {key}", as_file=True)
    where = secret.reference.removeprefix("file:") if secret.names_a_place else "its text"
    return parse_entries(content, where, key)


def check_accounts(web: Web) -> None:
    """Require that access to the page is configured, and that the files are usable.

    Raises:
        ConfigError: no access is configured, or a file can't be read, is empty or has a wrong line. The text has a line for
            each mistake.
    """
    if web.users is None and web.tokens is None and web.proxy is None:
        raise ConfigError(
            "[web] configures no access to the page: write a users file with `relay web passwd NAME --role operator --into FILE`,"
            ' and set users = "file:/path", or set tokens or proxy'
        )
    check_files(web)


def check_files(web: Web) -> None:
    """Require that the configured files of `[web]` are usable.

    Raises:
        ConfigError: as `check_accounts`.
    """
    mistakes: list[str] = []
    files: Mapping[FileKey, Secret | None] = {"users": web.users, "tokens": web.tokens}
    for key, secret in files.items():
        command = f"`{_HASHES[key][1]} NAME --role operator"
        try:
            if secret is not None and not _read(secret, key):
                mistakes.append(f"[web] {key}: has no account; add one with {command}`")
        except ConfigError as error:
            lines = str(error).splitlines()
            mistakes += [each if each.startswith("[web]") else f"[web] {key}: {each}" for each in lines]
            kind, _, place = secret.reference.partition(":") if secret else ("", "", "")
            if kind == "file" and Path(place).parent.is_dir() and not Path(place).exists():
                mistakes[-1] += f"; write it with {command} --into {shlex.quote(place)}`"
    if mistakes:
        raise ConfigError("\n".join(mistakes))
