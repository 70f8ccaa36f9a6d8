"""Access control: middleware in front of every screen and act, sessions, and `/sign-in` and `/sign-out`."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import math
import mmap
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import urlencode, urlsplit

import falcon
import itsdangerous
import msgspec
from falcon.asgi import Request, Response

from inbox.clock import Clock
from inbox.config.model import Web, WebProxy
from inbox.config.values import Network
from inbox.errors import BadFilter, NotAllowed, PageError, SignInNeeded, TooManySignIns, WrongPassword
from inbox.observe.logs import fields
from inbox.observe.visible import visible
from inbox.sources.credentials import parse_ip_address as parse_address
from relay.accounts import (
    LONGEST_NAME,
    LONGEST_PASSWORD,
    LONGEST_TOKEN,
    NOBODY,
    AccountFile,
    Actor,
    Entries,
    Entry,
    hash_token,
    is_password,
)
from relay.web import render
from relay.web.problems import set_status
from relay.web.query import read_form

_log = logging.getLogger("gunicorn.error")  # its handler is set by gunicorn's settings

# --- headers

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LONGEST_PROXY_NAME, _LONGEST_HOST = 200, 300
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:/@\[\]]+))(?::\d*)?", re.IGNORECASE)
_LOCAL = re.compile(r"/(?!/)[!-\[\]-~]{0,4000}")
"""A path on this host. Browsers strip control characters and read a backslash as a slash, so `/\\example.com` is another host."""


def get_values(req: Request, name: str) -> list[str]:
    """Return every value of a header, as Falcon would join repeated headers. Bytes that are not UTF-8 become U+FFFD."""
    wanted = name.lower().encode()
    return [value.decode("utf-8", "replace").strip() for key, value in req.scope["headers"] if key == wanted]


def get_peer(req: Request) -> str | None:
    """Return the address of the connection's peer; None for a Unix socket.

    This requires uvicorn's `proxy_headers` to be off: otherwise a client could pose as a proxy with `X-Forwarded-For`.
    """
    client = req.scope.get("client")
    return str(client[0]) if client else None


def is_own_host(req: Request, origin: str | None) -> bool:
    """Return whether `Host` is the page's own: the host of `[web] origin`, an IP address or `localhost`.

    Otherwise another site's name could resolve to the page's address, and its scripts would share the page's origin.
    """
    hosts = get_values(req, "host")
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 and len(hosts[0]) <= _LONGEST_HOST else None
    if match is None:
        return False
    name = (match[1] or match[2]).lower()
    return name in {"localhost", urlsplit(origin or "").hostname} or parse_address(name) is not None


def is_same_origin(req: Request, configured: str | None) -> bool:
    """Return whether a page of this origin sent the request, judging by headers that browsers set and scripts can't.

    The origin is the host of the request, or `configured`, which is `[web] origin`.
    """
    sites = get_values(req, "sec-fetch-site")
    if sites:
        return sites == ["same-origin"]
    own = f"{req.scheme}://{''.join(get_values(req, 'host'))}"
    origins = get_values(req, "origin")
    return len(origins) == 1 and origins[0].lower() in {each.lower() for each in (own, configured) if each}


def bearer_token(req: Request) -> str | None:
    """Return the token of `Authorization: Bearer`; None without one."""
    scheme, _, token = (req.get_header("Authorization") or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def read_proxy_actor(req: Request, proxy: WebProxy) -> Actor | None:
    """Return the person signed in by the proxy. None if the request comes from another address or has not exactly one name."""
    peer, names = get_peer(req), get_values(req, proxy.header)
    if peer is None or not is_listed(peer, proxy.networks) or len(names) != 1:
        return None
    (name,) = names
    if not 0 < len(name) <= _LONGEST_PROXY_NAME or not name.isprintable() or "\ufffd" in name:
        return None
    return Actor(name, "operator" if name in proxy.operators else "viewer", "proxy")


def find_address(req: Request, proxies: Iterable[Network]) -> str:
    """Return the address of the client, which may be behind proxies.

    A listed proxy, or one at a Unix socket, is trusted for its part of `X-Forwarded-For`. So the client is the last address
    that is not a listed proxy. Clients can forge all earlier addresses.
    """
    peer = get_peer(req)
    if peer is not None and not is_listed(peer, proxies):
        return peer
    for given in reversed(",".join(get_values(req, "x-forwarded-for")).split(",")):
        address = given.strip()
        if "%" in address or parse_address(address) is None:
            break
        if not is_listed(address, proxies):
            return address
    return peer or "a socket"


def is_listed(peer: str, networks: Iterable[Network]) -> bool:
    """Return whether an address is in one of the networks."""
    address = parse_address(peer)
    return address is not None and any(address in ipaddress.ip_network(network) for network in networks)


def get_network(address: str) -> str:
    """Return the network that one person may control: a single IPv4 address, or the /64 of an IPv6 address."""
    given = parse_address(address)
    if isinstance(given, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((given, 64), strict=False))
    return address if given is None else str(given)


def local_path(given: str) -> str:
    """Return a path on this host to redirect to; `/` if a browser could read it as another host."""
    return given if _LOCAL.fullmatch(given) and given.partition("?")[0] not in {SIGN_IN, SIGN_OUT} else "/"


# --- sessions

COOKIE, SECURE_COOKIE = "inbox-relay", "__Host-inbox-relay"
"""Names of the cookie: over http, and over https. No other host can set a cookie whose name begins with `__Host-`."""
_A_COOKIE = re.compile(r"[\w.-]{1,300}", re.ASCII)
_PLACES = 4096


class Sessions:
    """Signed cookies with the person and the time of the sign-in.

    The key is random and never stored, so a reader of the users file can't sign a cookie. gunicorn's master makes one
    object, and its workers share the key and the sign-outs. A restart ends every session. A cookie is a time, signed with
    the person's line and number of sign-outs. So a new password or role, a removed line or a sign-out ends all sessions of that
    person, and of no other.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._sign_outs = memoryview(mmap.mmap(-1, 8 * _PLACES)).cast("Q")  # shared with forked processes
        """Number of sign-outs by a hash of the name. Two people with the same hash sign out together, which is harmless."""

    def begin(self, person: Entry, now: float) -> str:
        """Return the cookie of a new session."""
        return self._signer(person).sign(str(int(now))).decode()

    def find_person(self, cookie: str, people: Entries, now: float, seconds: float) -> Entry | None:
        """Return the person of a session; None if the cookie is older than `seconds`, or the person's line has changed."""
        if _A_COOKIE.fullmatch(cookie):
            for person in people.values():
                with suppress(itsdangerous.BadSignature):
                    return person if 0 <= now - int(self._signer(person).unsign(cookie)) < seconds else None
        return None

    def end(self, name: str) -> None:
        """End all sessions of a person."""
        self._sign_outs[_hash_place(name)] += 1

    def _signer(self, person: Entry) -> itsdangerous.Signer:
        line = f"{self._sign_outs[_hash_place(person.name)]} {person.line}"
        # the 48 bytes of SHA-384 fill their base64 without unused bits
        return itsdangerous.Signer(self._key, line, key_derivation="hmac", digest_method=hashlib.sha384)


def _hash_place(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % _PLACES


# --- limits of attempts to sign in


class Limit(msgspec.Struct, frozen=True):
    """A token bucket of failures: `burst` at once, and one more after each pause."""

    burst: int
    pause_seconds: float


BY_NAME = Limit(burst=10, pause_seconds=30)
"""Limit by name: about 2,900 guesses a day."""
BY_ADDRESS = Limit(burst=30, pause_seconds=5)
"""Limit by address: higher, since many people may share the address of a proxy or an office."""
MOST_WAITING = 10
"""Maximum number of attempts that wait for their hash, not counting those from known places."""
MOST_PLACES = 100
"""Maximum number of known places per person."""
_BUSY_SECONDS = 5
Keys = tuple[tuple[Limit, str], ...]


class SignInLimits:
    """Failed attempts by name and by address, until they expire. Each one cost a hash, so their number stays small. Pure.

    An address from which a person has signed in is a known place. Attempts from there are counted separately, so that
    attacks from elsewhere don't lock the person out.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._known: dict[str, deque[str]] = {}
        self._over: dict[tuple[Limit, str], float] = {}
        """The time when all failures of a key have expired: each failure adds one pause."""

    def begin(self, name: str, address: str, now: float) -> tuple[Keys, float]:
        """Count an attempt, and return its keys and 0. If it is not allowed, return the seconds until the next one is."""
        place = get_network(address)
        is_known = place in self._known.get(name, ())
        keys: Keys = ((BY_NAME, f"{place}\n{name}"),) if is_known else ((BY_NAME, name), (BY_ADDRESS, place))
        over = {key: max(self._over.get(key, now), now) + key[0].pause_seconds for key in keys}
        wait = max(end - now - limit.burst * limit.pause_seconds for (limit, _), end in over.items())
        if wait <= 0 and not is_known and self.waiting >= MOST_WAITING:
            wait = _BUSY_SECONDS
        if wait <= 0:
            self._over = {key: end for key, end in self._over.items() if end > now} | over
        return keys, max(wait, 0.0)

    def forgive(self, keys: Keys, name: str, address: str) -> None:
        """Remove a successful attempt from the count, and remember its place."""
        for key in keys:
            self._over[key] = self._over.get(key, 0.0) - key[0].pause_seconds
        known, place = self._known.setdefault(name, deque(maxlen=MOST_PLACES)), get_network(address)
        if place not in known:
            known.append(place)


# --- access

SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"
_PUBLIC = re.compile(r"/static/.*|/health/live")
_OF_VIEWERS = re.compile(r"/sign-out|(/api/v1)?/events/[0-9]+/reveal")
"""Paths that viewers may also use with unsafe methods."""


class Guard:
    """Middleware that admits people and programs as `[web]` configures. It belongs to one event loop."""

    def __init__(
        self,
        web: Web,
        clock: Clock,
        sessions: Sessions,
        *,
        forwarding: Sequence[Network] = (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare without reading a file: see `check_accounts`. `X-Forwarded-For` from `forwarding` proxies is trusted."""
        self.web, self.clock, self.sessions, self.monotonic = web, clock, sessions, monotonic
        self.forwarding = forwarding
        self.users = AccountFile(web.users, "users", monotonic)
        self._tokens = AccountFile(web.tokens, "tokens", monotonic)
        self.is_https = (web.origin or "").lower().startswith("https:")
        """True if browsers use https, which a proxy terminates."""
        self.cookie = SECURE_COOKIE if self.is_https else COOKIE

    async def process_request(self, req: Request, _resp: Response) -> None:
        """Set `req.context.actor`; None only on the sign-in page.

        Raises:
            SignInNeeded: the request has no session, the session has ended, or the token is unknown.
            NotAllowed: the role does not allow the request, another site sent it, or the page has another host name.
            AccessBroken: the accounts file can't be read.
        """
        req.context.actor = None
        is_safe = req.method in SAFE_METHODS
        if is_safe and _PUBLIC.fullmatch(req.path):
            return
        token = bearer_token(req)
        if token is None:
            self._require_own_site(req, is_safe=is_safe)
        actor = req.context.actor = await (
            self._find_session_actor(req) if token is None else self._find_token_actor(token)
        )
        if req.path in {SIGN_IN, SIGN_OUT}:
            return
        if actor is None:
            raise self._sign_in(req, is_safe=is_safe)
        if not is_safe and not actor.may_act and not _OF_VIEWERS.fullmatch(req.path):
            raise NotAllowed(f"{actor.name} is a viewer, and only an operator may do this")

    async def process_response(self, _req: Request, resp: Response, _resource: object, _succeeded: bool) -> None:
        """Tell browsers to use only https, if a proxy serves the page over https."""
        if self.is_https:
            resp.set_header("Strict-Transport-Security", "max-age=31536000")

    async def find_person(self, req: Request) -> Entry | None:
        """Return the person named by the cookie, if the session is still valid."""
        cookies = req.get_cookie_values(self.cookie) or []
        if self.web.users is None or len(cookies) != 1:
            return None
        people = await self.users.entries()
        return self.sessions.find_person(cookies[0], people, self.clock.now().timestamp(), self.web.session)

    def _require_own_site(self, req: Request, *, is_safe: bool) -> None:
        """Refuse requests that a browser sends for another site. Requests with a token pass, as browsers never add one."""
        if not is_own_host(req, self.web.origin):
            raise NotAllowed(
                "the page does not have the name that the browser used: open it by its IP address or localhost, or set"
                " [web] origin, and have the proxy keep the Host header"
            )
        if not is_safe and not is_same_origin(req, self.web.origin):
            raise NotAllowed(
                "the request comes from another site; if the page itself sent it, set [web] origin to the address that the"
                " browser uses"
            )

    async def _find_token_actor(self, token: str) -> Actor:
        if len(token) <= LONGEST_TOKEN:
            hashed = hash_token(token)
            for entry in (await self._tokens.entries()).values():
                if hmac.compare_digest(hashed, entry.hash):
                    return Actor(entry.name, entry.role, "token")
        raise SignInNeeded("the bearer token is unknown; create one with `relay web token`")

    async def _find_session_actor(self, req: Request) -> Actor | None:
        if person := await self.find_person(req):
            return Actor(person.name, person.role)
        return None if self.web.proxy is None else read_proxy_actor(req, self.web.proxy)

    def _sign_in(self, req: Request, *, is_safe: bool) -> SignInNeeded:
        if self.web.users is None:
            person = "use the proxy that signs people in, or " if self.web.proxy is not None else ""
            return SignInNeeded(f"{person}send a bearer token")
        if not is_safe:
            return SignInNeeded("the session has ended; sign in in another tab, then send this again")
        return SignInNeeded(
            "sign in, or send a bearer token", form=f"{SIGN_IN}?{urlencode({'next': req.relative_uri})}"
        )


class SignIn:
    """The sign-in form, the sign-in and the sign-out."""

    def __init__(self, guard: Guard, renderer: render.Renderer) -> None:
        self._guard, self._renderer = guard, renderer
        self._limits = SignInLimits()
        # a hash takes some hundredths of a second and 19 MiB: one at a time, in a thread of its own
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="web-sign-in")

    async def on_get(self, req: Request, resp: Response) -> None:
        """Show the form; redirect a person who is signed in."""
        given = req.params.get("next", "")
        following = local_path(given if isinstance(given, str) else "")
        if req.context.actor is not None:
            raise falcon.HTTPSeeOther(following)
        if req.get_header("Sec-Fetch-Site") in {"cross-site", "same-site"}:
            # Browsers don't send the cookie when they follow another site's link. This page reloads itself, with the cookie.
            resp.set_header("Refresh", "0")
        self._show(resp, following)

    on_head = on_get

    async def on_post(self, req: Request, resp: Response) -> None:
        """Check the password, and begin a session."""
        form = await read_form(req)
        name, password, following = form.get("name", "").strip(), form.get("password", ""), form.get("next", "")
        following = local_path(following)
        try:
            if len(name) > LONGEST_NAME or len(password) > LONGEST_PASSWORD:  # before any costly work
                raise BadFilter(f"a name has at most {LONGEST_NAME} characters, a password {LONGEST_PASSWORD}")
            person = await self._person(name, password, find_address(req, self._guard.forwarding))
        except PageError as error:
            set_status(resp, error)
            self._show(resp, following, name[:LONGEST_NAME], error)
            return
        resp.set_cookie(
            self._guard.cookie,
            self._guard.sessions.begin(person, self._guard.clock.now().timestamp()),
            max_age=int(self._guard.web.session),
            path="/",
            secure=self._guard.is_https,
            http_only=True,
            same_site="Strict",
        )
        resp.status, resp.location = HTTPStatus.SEE_OTHER, following

    async def on_post_out(self, req: Request, resp: Response) -> None:
        """End all sessions of a person, and clear the browser's data."""
        person = await self._guard.find_person(req)
        if person is not None:
            self._guard.sessions.end(person.name)
            _log.info("%s has signed out", visible(person.name), extra=fields("signed_out", subject=person.name))
        resp.unset_cookie(self._guard.cookie, path="/", same_site="Strict")
        resp.set_header("Clear-Site-Data", '"cache"')  # despite no-store, Chromium keeps pages for its back button
        resp.status, resp.location = HTTPStatus.SEE_OTHER, SIGN_IN

    async def _person(self, name: str, password: str, address: str) -> Entry:
        """Return the person with this name and password. For an unknown name, compare the password with a decoy hash.

        Raises:
            TooManySignIns: this name or address has too many failed attempts.
            WrongPassword: the name or the password is wrong; both take the same time.
        """
        by = (visible(name), visible(address))
        keys, wait = self._limits.begin(name, address, self._guard.monotonic())
        if wait:
            text = "too many sign-in attempts, the last as %s from %s"
            _log.warning(text, *by, extra=fields("sign_in_held", subject=name))
            seconds = math.ceil(wait)
            raise TooManySignIns(f"wait {seconds} s, and try again", retry_after_seconds=seconds)
        self._limits.waiting += 1
        try:
            people = await self._guard.users.entries(fresh=True)
            person = people.get(name)
            hashed = (person or next(iter(people.values()), NOBODY)).hash
            is_right = await asyncio.get_running_loop().run_in_executor(self._hashing, is_password, password, hashed)
        finally:
            self._limits.waiting -= 1
        if person is None or not is_right:
            _log.warning("failed sign-in as %s from %s", *by, extra=fields("sign_in_failed", subject=name))
            raise WrongPassword("try again; repeated failures cause a pause")
        self._limits.forgive(keys, name, address)
        _log.info("%s has signed in from %s as %s", *by, person.role, extra=fields("signed_in", subject=name))
        return person

    def _show(self, resp: Response, following: str, name: str = "", problem: PageError | None = None) -> None:
        shown = {"name": name, "following": following, "problem": problem, "actor": None}
        self._renderer.show(resp, "sign-in.html", title="Sign in", here=SIGN_IN, **shown)
