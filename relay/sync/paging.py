"""The paging rule of sweeps: turns an answer into the request for the next page. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from inbox.config.sync import POSITIONS, Paging, Sweep, paging_of
from inbox.errors import ConfigError, UnusableAnswer, collect_config_errors
from relay.sync.calls import CallPlan, compile_call, compile_query, evaluated
from relay.sync.expressions import Expression, Scope
from relay.sync.templates import SearchTemplate, Template, leads_elsewhere

Item = TypeVar("Item", bound=Hashable)
"""An item of a page; an item that changed in between is another one."""
MOST_SETBACKS = 10
"""Limit of returns to the beginning, or without anything new."""


class PagesPlan(msgspec.Struct, frozen=True):
    """A listing that is read page by page, compiled."""

    paging: Paging | None
    """None: one answer has everything."""
    first: CallPlan
    """The call for the first page, which knows no `next`."""
    further: CallPlan
    next: Expression | None = None
    more: Expression | None = None
    total: Expression | None = None

    def total_in(self, document: object) -> int | None:
        """Return the number of all items that a page states; None without one."""
        total = evaluated(self.total, document)
        return total if isinstance(total, int) and not isinstance(total, bool) else None


def compile_pages(table: Sweep, where: str) -> PagesPlan:
    """Compile the listing of a sweep; `where` names its table.

    Raises:
        ConfigError: a template or an expression is wrong, or every page would be the first.
    """
    paging = paging_of(table.pages)
    position = None if paging is None else POSITIONS.get(paging.by)
    names = {"since"} if paging is None else {"since", "count", *filter(None, [position])}
    call = compile_call(where, names, table, table.method, texts=SearchTemplate)
    if paging is None:
        return PagesPlan(None, call, call)
    given = paging.query(has_position=position is not None and call.looks_into(position))
    parts: dict[str, Callable[[], Any]] = {"params": partial(compile_query, given, f"{where}.pages.params", names)}
    for key in ("next", "more", "total"):
        text = getattr(paging, key)
        if text is not None:
            parts[key] = partial(Expression, text, f"{where}.pages.{key}", None)
    made = collect_config_errors(parts)
    further = first = msgspec.structs.replace(call, params=call.params + made.pop("params"))
    if position is not None and not further.looks_into(position):
        raise ConfigError(
            f"{where}.pages: no param has {{{position}}}, so that each page would be the first; "
            f'write params = {{ NAME = "{{{position}}}" }}'
        )
    if position == "next":
        params = tuple(each for each in further.params if not each[1].looks_into("next"))
        first = msgspec.structs.replace(further, params=params, body=_pruned(further.body))
    return PagesPlan(paging, first, further, **made)


def _pruned(body: Any) -> Any:  # noqa: ANN401  # JSON with templates
    if isinstance(body, Mapping):
        return {key: _pruned(inner) for key, inner in body.items() if not _reads_next(inner)}
    if isinstance(body, list):
        return [_pruned(inner) for inner in body if not _reads_next(inner)]
    return body


def _reads_next(value: object) -> bool:
    return isinstance(value, Template) and value.looks_into("next")


class Paginator(Generic[Item]):
    """The way through the pages of one listing: `call`, `at` and `body` describe the request for its next page.

    A listing in the order of changes moves while it is read. A changed entity goes to the end, and all behind it move up
    by one, so an entity could fall between two pages. So where pages go by start, each begins with the last
    entity of the one before. A page that has no entity of the last page unchanged has moved too far: then it goes back,
    twice as far each time. An entity changed since proves nothing: it came here by way of the end.
    """

    def __init__(self, plan: PagesPlan, scope: Scope, base: str) -> None:
        """Prepare the first request. The call's templates read `scope`; no link leaves `base`, the URL of the endpoint."""
        self.number = 1
        """Number of the next page, from 1."""
        self.is_at_end = False
        self.call = plan.first
        self._plan = plan
        self._base = base
        paging = plan.paging or Paging(by="page")
        self._by = "none" if plan.paging is None else paging.by
        self._first, self._count, self._most = paging.first_position, paging.count, paging.most
        self._scope = {**scope, "count": self._count}
        if self._by in {"page", "start"}:
            self._scope[self._by] = self._first
        self._link: tuple[str, str] | None = None
        self._seen: set[int] = set()
        """Hashes of the positions and pages so far: of any length, and there may be many."""
        self._before: Sequence[Item] = ()
        self._read = 0
        self._back = 1
        self._setbacks = 0

    @property
    def at(self) -> tuple[str, str]:
        """Path and query, encoded; MappingError when a template has no value."""
        return self._link or (self.call.path.expand(self._scope), self.call.query(self._scope))

    @property
    def body(self) -> bytes | None:
        """The body, encoded; MappingError when a template has no value."""
        return self.call.json(self._scope)

    @property
    def headers(self) -> dict[str, str]:
        """The call's own headers; MappingError when a template has no usable value."""
        return self.call.own_headers(self._scope)

    def take(self, document: object, link: str | None, items: Sequence[Item]) -> list[Item]:
        """Take a page: its JSON, its `Link` header and its items. Return its new items, and turn to the next page.

        Raises:
            UnusableAnswer: the pages can't be followed. The text names the reason and a remedy.
        """
        known, went_back = set(self._before), self._back > 1
        has_moved = self._by == "start" and len(known) > 1 and known.isdisjoint(items)
        if has_moved and self._scope["start"] > self._first:
            fresh = []
            self._scope["start"] = max(self._scope["start"] - self._back, self._first)
            self._back *= 2
        else:
            # What was added meanwhile moves others to the next page.
            fresh = [item for item in items if item not in known]
            self._read += len(items)
            self.is_at_end = not self._turn(document, link, len(items), has_new=bool(fresh))
            if not self.is_at_end:
                if has_moved or (went_back and not fresh):  # before the first page nothing lies, so nothing is missed
                    self._set_back()
                elif items and not went_back:
                    self._never_again(("page", *items), "came before: does the call take what pages says?")
            self._before, self._back = items, 1
        if not self.is_at_end and self.number >= self._most:
            raise UnusableAnswer(
                f"no end after {self.number} pages, so that it is not known what there is; "
                "narrow the call down by its params, or raise pages.most"
            )
        self.number += not self.is_at_end
        self.call = self._plan.further
        return fresh

    def _set_back(self) -> None:
        self._seen.clear()
        self._setbacks += 1
        if self._setbacks > MOST_SETBACKS:
            raise UnusableAnswer(
                "the listing changes faster than it can be read, or starts at whole pages only: its pages don't connect; "
                'where pages have numbers, set by = "page"'
            )

    def _turn(self, document: object, link: str | None, length: int, *, has_new: bool) -> bool:
        """Turn to the next page; False when there is none."""
        match self._by:
            case "none":
                return False
            case "link":
                return self._follow(next_in_header(link))
            case "url":
                return self._follow(self._next(document))
            case "cursor":
                return self._turn_by_cursor(document)
        return self._turn_by_number(document, length, has_new=has_new)

    def _turn_by_number(self, document: object, length: int, *, has_new: bool) -> bool:
        more, left = self._more(document), self._left(document, length)
        if not length and left:
            raise UnusableAnswer(
                f"page {self.number} is empty, and {left} items are said to be left; "
                "where total counts items that no page has, remove it"
            )
        if self._by == "page":  # an empty page that is not the last has been filtered by the service
            self._scope["page"] += 1
            return more is not False and left != 0 and (length > 0 or more is True)
        # SCIM reads start 0 as 1, and gives the only page twice.
        is_only = self._scope["start"] <= self._first + 1 and length < self._count
        has_ended = not has_new and (length < max(len(self._before), 1) or is_only)
        if has_ended and more is True:
            raise UnusableAnswer(f"page {self.number} has nothing new, and the answer says that there are more")
        self._scope["start"] += length - (length > 1)
        # Behind the first page, `total` is no reason to end: items that moved were counted twice.
        return not (has_ended or more is False or (left == 0 and self.number == 1))

    def _left(self, document: object, length: int) -> int | None:
        """Return the number of items behind this page by `total`; None without it."""
        if self._plan.total is None:
            return None
        total = self._plan.total_in(document)
        if total is None:
            raise UnusableAnswer(f"the answer has no number at {self._plan.total.text}")
        read = self._read if self._by == "page" else self._scope["start"] - self._first + length
        return max(total - read, 0)

    def _turn_by_cursor(self, document: object) -> bool:
        more = self._more(document)
        following = None if more is False else self._next(document)
        if following is None:
            if more is True:
                raise UnusableAnswer("the answer says that there are more, and has nothing at next")
            return False
        self._never_again(("position", str(following)))
        self._scope["next"] = following
        return True

    def _follow(self, link: str | int | None) -> bool:
        if link is None:
            return False
        path, query = self.at
        base = self._base.partition("?")[0].rstrip("/")
        self._seen.add(hash(("position", path, query)))
        self._link = within(str(link), self._base, f"{base}{path}{'?' if query else ''}{query}")
        self._never_again(("position", *self._link))
        return True

    def _never_again(
        self, seen: Hashable, problem: str = "names one as the next that was asked for already: it has no end"
    ) -> None:
        if hash(seen) in self._seen:
            raise UnusableAnswer(f"page {self.number} {problem}")
        self._seen.add(hash(seen))

    def _more(self, document: object) -> bool | None:
        more: bool | None = evaluated(self._plan.more, document)
        if self._plan.more is not None and not isinstance(more, bool):
            raise UnusableAnswer(f"the answer has neither true nor false at {self._plan.more.text}")
        return more

    def _next(self, document: object) -> str | int | None:
        following = evaluated(self._plan.next, document)
        if following is None or following is False or following == "":
            return None
        if not isinstance(following, str | int) or following is True:
            raise UnusableAnswer("next finds neither a text nor a number in the answer")
        if len(str(following)) > LONGEST:
            raise UnusableAnswer(f"next finds more than {LONGEST} characters in the answer")
        return following


# --- Links to the next page: reads the `Link` header (RFC 8288), and keeps a link within its endpoint.


LONGEST = 8192
"""Characters of a link."""
_PATH_SAFE = "%/:@!$&'()*+,;=~-._"
_QUERY_SAFE = "%!$&'()*+,;=:@/?-._~"
_PORTS = {"http": 80, "https": 443}


_LINK = re.compile(r"""[\s,]*+<([^<>]*+)>\s*+((?:;(?:[^;,"<>]++|"(?:[^"\\]++|\\.)*+")*+)*+)(?:,|\Z)""")
"""A link of RFC 8288 §3, and its parameters."""
_REL = re.compile(r""";\s*rel\s*=\s*(?:"([^"]*)"|([^\s;,"]*))""", re.IGNORECASE)
_ANCHOR = re.compile(r";\s*anchor\s*=", re.IGNORECASE)


def next_in_header(header: str | None) -> str | None:
    """Return the URL of `rel="next"` in a `Link` header; None without one.

    Raises:
        UnusableAnswer: the header can't be read, or names several next pages. Its end would be mistaken for the last page.
    """
    text, at, found = (header or "").rstrip(" \t,"), 0, set()
    while at < len(text):
        link = _LINK.match(text, at)
        if link is None:
            raise UnusableAnswer("the Link header can't be read")
        relations = _REL.search(link[2])  # the first counts (§3.3)
        if relations and "next" in (relations[1] or relations[2] or "").lower().split() and not _ANCHOR.search(link[2]):
            found.add(link[1])  # none with an anchor: it is a link of another resource (§3.2)
        at = link.end()
    if len(found) > 1:
        raise UnusableAnswer("the Link header names several next pages")
    return next(iter(found), None)


def within(link: str, base: str, current: str) -> tuple[str, str]:
    """Return the path and the query of a link, for a call below `base`. A relative link is one from the URL `current`.

    The call has the endpoint's secrets, so a link to another origin, or beside the path of `base`, is never followed. The
    query of `base` comes with every call, so it is left out.

    Raises:
        UnusableAnswer: the link can't be read, or leads elsewhere. The text has a remedy, and nothing of the link.
    """
    home = urlsplit(base)
    if len(link) > LONGEST:
        raise UnusableAnswer(f"the link to the next page has more than {LONGEST} characters")
    try:
        link.encode()  # half of a surrogate pair raises a ValueError
        parts = urlsplit(urljoin(current, link))
        origin = (parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme))
        is_plain = parts.username is None and parts.password is None
    except ValueError:
        raise UnusableAnswer("the link to the next page can't be read") from None
    if not is_plain or origin != (home.scheme, home.hostname, home.port or _PORTS.get(home.scheme)):
        raise UnusableAnswer(
            "the link to the next page leads elsewhere: it must have the scheme, host and port of base_url, and no user; "
            "correct base_url"
        )
    path, prefix = quote(parts.path, safe=_PATH_SAFE), home.path.rstrip("/")
    below = path.removeprefix(prefix) or "/"
    if not path.startswith(prefix) or not below.startswith("/") or below.startswith("//"):
        raise UnusableAnswer(
            "the link to the next page leads elsewhere: its path is not below that of base_url; "
            "shorten the path of base_url"
        )
    if leads_elsewhere(path):
        raise UnusableAnswer("the link to the next page has a path that could lead to another resource")
    known = home.query.split("&")
    return below, "&".join(
        pair for pair in quote(parts.query, safe=_QUERY_SAFE).split("&") if pair and pair not in known
    )
