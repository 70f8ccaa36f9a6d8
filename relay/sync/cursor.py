"""The way through a listing: a cursor where it changes while it is read, and links to its next page. Pure."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Generic, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from inbox.errors import UnusableAnswer
from relay.sync.templates import leads_elsewhere

EVERYTHING = datetime(1970, 1, 1, tzinfo=UTC)
"""A listing since then contains everything."""
UNTOLD = datetime.min.replace(tzinfo=UTC)

Item = TypeVar("Item", bound=Hashable)
"""An item of a page; an item that changed in between is another one."""


class Listed(msgspec.Struct, frozen=True):
    """An entity, and the UTC time of its last change; `UNTOLD` where the listing has none."""

    id: str
    modified: datetime


class Repeats:
    """Notices pages that go in a circle (Brent's cycle detection). It remembers one page, that of number 1, 2, 4, 8 and so on."""

    def __init__(self) -> None:
        self._number = 0
        self._remembered: Sequence[Hashable] = ()

    def has(self, page: Sequence[Hashable]) -> bool:
        """Take the next page. Return True when it is the remembered one again."""
        if page and list(page) == list(self._remembered):
            return True
        self._number += 1
        if self._number & (self._number - 1) == 0:
            self._remembered = page
        return False


MOST_SETBACKS = 10
"""Limit of returns to the beginning, or without anything new."""


class OffsetCursor(Generic[Item]):
    """The position in a listing that is read by offsets, page after page.

    A listing in the order of changes moves while it is read. A changed entity goes to the end, and all behind it move up
    by one, so an entity could fall between two pages. So each page begins with the last entity of the one before. A page
    that has no entity of the last page unchanged has moved too far. The cursor then goes back, twice as far each time. An
    entity changed since proves nothing: it came here by way of the end.

    It remembers two pages, whatever the listing's length: the last one, and an earlier one, to notice pages that repeat.
    """

    def __init__(self, first: int, count: int) -> None:
        """Begin at `first`; `count` is the length of every page but the last."""
        self.start = first
        """Offset of the next page."""
        self.is_at_end = False
        self.connects = True
        """True when the last page connects with the one before."""
        self._first = first
        self._count = count
        self._before: Sequence[Item] = ()
        self._overlap = 0
        self._back = 1
        self._setbacks = 0
        self._repeats = Repeats()

    def advance(self, page: Sequence[Item]) -> list[Item]:
        """Return the new entities of the page at `start`, and move `start` to the next page, if there is one.

        Raises:
            UnusableAnswer: the same pages repeat, or the listing moves too fast to be followed.
        """
        known = set(self._before)
        if self._overlap and not any(each in known for each in page) and self._can_go_back():
            self.connects = False
            return []
        self.connects = True
        fresh = [each for each in page if each not in known]
        if not fresh and self._ends_with(page):
            self.is_at_end = True
            return []
        if self._back == 1:
            if self._repeats.has(page):
                raise UnusableAnswer(f"the page at {self.start} came before: does the call take {{start}}?")
        elif not fresh:
            self._set_back()
        self._back, self._before, self._overlap = 1, page, int(len(page) > 1)
        self.start += len(page) - self._overlap
        return fresh

    def _ends_with(self, page: Sequence[Item]) -> bool:
        """Return True when a page without new entities is the last. SCIM reads start 0 as 1, and gives the only page twice."""
        is_only = self.start <= self._first + 1 and len(page) < self._count
        return not page or len(page) < len(self._before) or is_only

    def _can_go_back(self) -> bool:
        """Go back. False at the beginning: nothing lies before it, so nothing is missed from there on."""
        if self.start == self._first:
            self._set_back()
            return False
        self.start = max(self.start - self._back, self._first)
        self._back *= 2
        return True

    def _set_back(self) -> None:
        self._setbacks += 1
        if self._setbacks > MOST_SETBACKS:
            raise UnusableAnswer(
                "the listing changes faster than it can be read, or starts at whole pages only: its pages don't connect; "
                'where pages have numbers, set by = "page"'
            )


# --- Links to the next page: reads the `Link` header (RFC 8288), and keeps a link within its endpoint. Pure.


LONGEST = 8192
"""Characters of a link."""
_PATH_SAFE = "%/:@!$&'()*+,;=~-._"
_QUERY_SAFE = "%!$&'()*+,;=:@/?-._~"
_PORTS = {"http": 80, "https": 443}

_TARGET = re.compile(r"[\s,]*<([^<>]*)>")
_PARAM = re.compile(r"""\s*;\s*(?:([!#$%&'*+.^_`|~\w-]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s";,]*)))?)?""", re.ASCII)
"""A parameter of RFC 8288 §3: a token, and as its value a quoted string or a token."""
_END = re.compile(r"\s*(?:,|\Z)")
_BLANK = re.compile(r"[\s,]*\Z")


def next_in_header(header: str | None) -> str | None:
    """Return the URL of `rel="next"` in a `Link` header; None without one.

    Raises:
        UnusableAnswer: the header can't be read, or names several next pages. Its end would be mistaken for the last page.
    """
    found = {target for target, relations in _links(header or "") if "next" in relations}
    if len(found) > 1:
        raise UnusableAnswer("the Link header names several next pages")
    return next(iter(found), None)


def _links(header: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the target and the relations of each link."""
    at = 0
    while _BLANK.match(header, at) is None:
        target = _TARGET.match(header, at)
        if target is None:
            raise UnusableAnswer("the Link header can't be read")
        at, relations, is_of_page = target.end(), None, True
        while parameter := _PARAM.match(header, at):
            at = parameter.end()
            name = (parameter[1] or "").lower()
            if name == "rel" and relations is None:  # the first counts (§3.3)
                quoted = parameter[2]
                value = (parameter[3] or "") if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                relations = value.lower().split()
            is_of_page = is_of_page and name != "anchor"  # a link of another resource (§3.2)
        end = _END.match(header, at)
        if end is None:
            raise UnusableAnswer("the Link header can't be read")
        at = end.end()
        if is_of_page:
            yield target[1], relations or []


def within(link: str, base: str, current: str) -> tuple[str, str]:
    """Return the path and the query of a link, for a call below `base`. A relative link is one from the URL `current`.

    The call has the endpoint's secrets, so a link to another origin, or beside the path of `base`, is never followed. The
    query of `base` comes with every call, so it is left out.

    Raises:
        UnusableAnswer: the link can't be read, or leads elsewhere. The text has a remedy, and nothing of the link.
    """
    home = urlsplit(base)
    try:
        parts = urlsplit(urljoin(current, _bounded(link)))
        origin = (parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme))
        is_plain = parts.username is None and parts.password is None
    except ValueError:
        raise UnusableAnswer("the link to the next page can't be read") from None
    if not is_plain or origin != (home.scheme, home.hostname, home.port or _PORTS.get(home.scheme)):
        raise UnusableAnswer(
            "the link to the next page leads elsewhere: it must have the scheme, host and port of base_url, and no user; "
            "correct base_url, or set query_only = true to take only the query of links"
        )
    path, prefix = quote(parts.path, safe=_PATH_SAFE), home.path.rstrip("/")
    below = path.removeprefix(prefix) or "/"
    if not path.startswith(prefix) or not below.startswith("/") or below.startswith("//"):
        raise UnusableAnswer(
            "the link to the next page leads elsewhere: its path is not below that of base_url; "
            "shorten the path of base_url, or set query_only = true to take only the query of links"
        )
    if leads_elsewhere(path):
        raise UnusableAnswer("the link to the next page has a path that could lead to another resource")
    return below, _query(parts.query, home.query)


def query_of(link: str, base: str) -> str:
    """Return the query of a link alone, whatever else the link has.

    Raises:
        UnusableAnswer: the link can't be read, or has no query, so it would lead to the first page.
    """
    try:
        query = urlsplit(_bounded(link)).query
    except ValueError:
        raise UnusableAnswer("the link to the next page can't be read") from None
    if not query:
        raise UnusableAnswer("the link to the next page has no query, and only its query is taken (query_only)")
    return _query(query, urlsplit(base).query)


def _query(query: str, known: str) -> str:
    pairs = [pair for pair in quote(query, safe=_QUERY_SAFE).split("&") if pair and pair not in known.split("&")]
    return "&".join(pairs)


def _bounded(link: str) -> str:
    if len(link) > LONGEST:
        raise UnusableAnswer(f"the link to the next page has more than {LONGEST} characters")
    try:
        link.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise UnusableAnswer("the link to the next page can't be read") from None
    return link
