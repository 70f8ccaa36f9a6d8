"""The people and programs that may use the page, as the files say now."""

from __future__ import annotations

import asyncio
import hmac
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Generic

from inbox.config.types import Secret
from inbox.config.web import Web
from inbox.errors import AccessBroken, ConfigError
from inbox.logs.fields import fields
from relay.web.access.actor import Actor
from relay.web.access.credentials import PasswordHash, check_token_hash, hash_token
from relay.web.access.entries import Entries, Hash, parse

RECHECK_SECONDS = 2.0
"""A file is read again at most so often. So a person who was removed is out after this time."""

_log = logging.getLogger("gunicorn.error")  # it goes where gunicorn's settings send it


class AccountFile(Generic[Hash]):
    """One file, read again while the process runs."""

    def __init__(
        self, secret: Secret, key: str, hash_of: Callable[[str], Hash], monotonic: Callable[[], float]
    ) -> None:
        self._secret, self._key, self._hash_of, self._monotonic = secret, key, hash_of, monotonic
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._content: str | None = None
        self._error: str | None = None
        self._entries: Entries[Hash] = {}

    @property
    def missing(self) -> Path | None:
        """The path of the file, where nobody has written it yet."""
        kind, _, place = self._secret.reference.partition(":")
        path = Path(place)
        return path if kind == "file" and path.parent.is_dir() and not path.exists() else None

    def load(self) -> Entries[Hash]:
        """Read the file.

        Raises:
            ConfigError: it can't be read, or has a wrong line.
        """
        content = self._secret.reveal(at=self._key, as_file=True)
        if content != self._content:
            where = self._secret.reference if self._secret.names_a_place else "its text"
            self._entries, self._content = parse(content, where.removeprefix("file:"), self._hash_of), content
        return self._entries

    async def entries(self, *, fresh: bool = False) -> Entries[Hash]:
        """Return the entries as they are now, or were `RECHECK_SECONDS` ago; `fresh` reads the file in any case.

        Raises:
            AccessBroken: the file can't be used. Nobody in it is let in, as who was removed can't be told.
        """
        async with self._lock:
            now = self._monotonic()
            if fresh or now - self._read_at >= RECHECK_SECONDS:
                await self._read_again()
                self._read_at = now
        if self._error is not None:
            raise AccessBroken("the file of those who may use this page can't be read; its log says why")
        return self._entries

    async def _read_again(self) -> None:
        try:
            await asyncio.to_thread(self.load)
        except ConfigError as error:
            if str(error) != self._error:
                _log.error("nobody can sign in: %s", error, extra=fields("nobody_can_sign_in"))  # the text says it all
            self._error, self._content = str(error), None
        else:
            self._error = None


class Accounts:
    """Both files of `[web]`."""

    def __init__(self, web: Web, monotonic: Callable[[], float]) -> None:
        self.users = None if web.users is None else AccountFile(web.users, "[web] users", PasswordHash.parse, monotonic)
        self.tokens = (
            None if web.tokens is None else AccountFile(web.tokens, "[web] tokens", check_token_hash, monotonic)
        )

    async def people(self, *, fresh: bool = False) -> Entries[PasswordHash]:
        """Return the people with a password.

        Raises:
            AccessBroken: as `AccountFile.entries`.
        """
        return {} if self.users is None else await self.users.entries(fresh=fresh)

    async def of_token(self, token: str) -> Actor | None:
        """Return the program with a token.

        Raises:
            AccessBroken: as `AccountFile.entries`.
        """
        if self.tokens is None or not token:
            return None
        hashed, found = hash_token(token), None
        for entry in (await self.tokens.entries()).values():
            if hmac.compare_digest(hashed, entry.hash):
                found = Actor(entry.name, entry.role, "token")
        return found


def _remedy(missing: Path | None, command: str) -> str:
    if missing is None:
        return ""
    return f"; write it with `relay web {command} NAME --role operator --into {shlex.quote(str(missing))}`"


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
    accounts = Accounts(web, lambda: 0.0)
    mistakes: list[str] = []
    for key, file, command in (("users", accounts.users, "passwd"), ("tokens", accounts.tokens, "token")):
        if file is None:
            continue
        try:
            if not file.load():
                mistakes.append(f"[web] {key}: has no line; add one with `relay web {command} NAME --role operator`")
        except ConfigError as error:
            mistakes += [
                each if each.startswith("[web]") else f"[web] {key}: {each}" for each in str(error).splitlines()
            ]
            mistakes[-1] += _remedy(file.missing, command)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
