"""The paging rules of sweeps: derive the request for the next page from a response. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from inbox.config.sync import POSITIONS, Paging, Sweep, resolve_paging
from inbox.errors import ConfigError, UnusableResponse, collect_config_errors
from relay.sync.calls import CallPlan, compile_call, compile_query, evaluate
from relay.sync.expressions import Expression, Scope
from relay.sync.templates import SearchTemplate, Template, leads_elsewhere

Item = TypeVar("Item", bound=Hashable)
"""An item of a page. An item that changes between pages becomes a different one."""
MOST_SETBACKS = 10
"""Maximum number of setbacks that reach the beginning or yield nothing new."""


class PagesPlan(msgspec.Struct, frozen=True):
    """A compiled listing that is read page by page."""

    paging: Paging | None
    """None: a single response has everything."""
    first: CallPlan
    """The call for the first page, without `next`."""
    further: CallPlan
    next: Expression | None = None
    more: Expression | None = None
    total: Expression | None = None

    def total_in(self, document: object) -> int | None:
        """Return the total number of items that a page states; None without one."""
        total = evaluate(self.total, document)
        return total if isinstance(total, int) and not isinstance(total, bool) else None


def compile_pages(table: Sweep, where: str) -> PagesPlan:
    """Compile the listing of a sweep; `where` names its table.

    Raises:
        ConfigError: a template or an expression is wrong, or every page would be the first.
    """
    paging = resolve_paging(table.pages)
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
            f"{where}.pages: no param has {{{position}}}, so every request would return the first page; "
            f'write params = {{ NAME = "{{{position}}}" }}'
        )
    if position == "next":
        params = tuple(each for each in further.params if not each[1].looks_into("next"))
        first = msgspec.structs.replace(further, params=params, body=_prune(further.body))
    return PagesPlan(paging, first, further, **made)


def _prune(body: Any) -> Any:  # noqa: ANN401  # JSON with templates
    if isinstance(body, Mapping):
        return {key: _prune(inner) for key, inner in body.items() if not _reads_next(inner)}
    if isinstance(body, list):
        return [_prune(inner) for inner in body if not _reads_next(inner)]
    return body


def _reads_next(value: object) -> bool:
    return isinstance(value, Template) and value.looks_into("next")


class Paginator(Generic[Item]):
    """Walks through the pages of one listing: `call`, `at` and `body` describe the request for the next page.

    A listing in the order of changes shifts while it is read. A changed entity moves to the end, and all entities after its
    old place move up by one, so an entity could be missed between two pages. With paging by start, each page therefore
    begins with the last entity of the previous one. If a page has no unchanged entity of the previous page, the listing
    has shifted too far, and the paginator goes back, twice as far each time. Seeing a
    changed entity again proves nothing, since it moved to the end.
    """

    def __init__(self, plan: PagesPlan, scope: Scope, base: str) -> None:
        """Prepare the first request. The call's templates read `scope`; links must stay below `base`, the endpoint's URL."""
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
        """Hashes of the previous positions and pages; the originals may be long and many."""
        self._before: Sequence[Item] = ()
        self._read = 0
        self._back = 1
        self._setbacks = 0

    @property
    def at(self) -> tuple[str, str]:
        """Path and query, encoded; MappingError if a template has no value."""
        return self._link or (self.call.path.expand(self._scope), self.call.query(self._scope))

    @property
    def body(self) -> bytes | None:
        """The body, encoded; MappingError if a template has no value."""
        return self.call.json(self._scope)

    @property
    def headers(self) -> dict[str, str]:
        """The call's own headers; MappingError if a template has no usable value."""
        return self.call.own_headers(self._scope)

    def take(self, document: object, link: str | None, items: Sequence[Item]) -> list[Item]:
        """Accept a page by its JSON, `Link` header and items; return the new items, and advance to the next page.

        Raises:
            UnusableResponse: the pages can't be followed. The text has the reason and a remedy.
        """
        known, went_back = set(self._before), self._back > 1
        has_moved = self._by == "start" and len(known) > 1 and known.isdisjoint(items)
        if has_moved and self._scope["start"] > self._first:
            fresh = []
            self._scope["start"] = max(self._scope["start"] - self._back, self._first)
            self._back *= 2
        else:
            # Entities added meanwhile push others to the next page.
            fresh = [item for item in items if item not in known]
            self._read += len(items)
            self.is_at_end = not self._turn(document, link, len(items), has_new=bool(fresh))
            if not self.is_at_end:
                if has_moved or (went_back and not fresh):  # nothing can be missed before the first page
                    self._set_back()
                elif items and not went_back:
                    self._never_again(
                        ("page", *items), "repeats an earlier page: check that the call applies pages.params"
                    )
            self._before, self._back = items, 1
        if not self.is_at_end and self.number >= self._most:
            raise UnusableResponse(
                f"no end after {self.number} pages, so the listing is incomplete; "
                "narrow the call by its params, or raise pages.most"
            )
        self.number += not self.is_at_end
        self.call = self._plan.further
        return fresh

    def _set_back(self) -> None:
        self._seen.clear()
        self._setbacks += 1
        if self._setbacks > MOST_SETBACKS:
            raise UnusableResponse(
                "the pages don't connect: the listing changes faster than it can be read, or starts only at whole pages; "
                'if its pages have numbers, set by = "page"'
            )

    def _turn(self, document: object, link: str | None, length: int, *, has_new: bool) -> bool:
        """Advance to the next page; return False if there is none."""
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
            raise UnusableResponse(
                f"page {self.number} is empty, although total says that {left} items are left; "
                "if total counts items that no page has, remove it"
            )
        if self._by == "page":  # a filter of the service may empty a page that is not the last
            self._scope["page"] += 1
            return more is not False and left != 0 and (length > 0 or more is True)
        # SCIM reads start 0 as 1, and would return a single page twice.
        is_only = self._scope["start"] <= self._first + 1 and length < self._count
        has_ended = not has_new and (length < max(len(self._before), 1) or is_only)
        if has_ended and more is True:
            raise UnusableResponse(
                f"page {self.number} has no new items, although the response says that there are more"
            )
        self._scope["start"] += length - (length > 1)
        # After the first page, `total` does not end the listing: items that moved were counted twice.
        return not (has_ended or more is False or (left == 0 and self.number == 1))

    def _left(self, document: object, length: int) -> int | None:
        """Return the number of items after this page according to `total`; None without it."""
        if self._plan.total is None:
            return None
        total = self._plan.total_in(document)
        if total is None:
            raise UnusableResponse(f"the response has no number at {self._plan.total.text}")
        read = self._read if self._by == "page" else self._scope["start"] - self._first + length
        return max(total - read, 0)

    def _turn_by_cursor(self, document: object) -> bool:
        more = self._more(document)
        following = None if more is False else self._next(document)
        if following is None:
            if more is True:
                raise UnusableResponse("the response says that there are more items, but has no value at next")
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
        self._link = resolve_link(str(link), self._base, f"{base}{path}{'?' if query else ''}{query}")
        self._never_again(("position", *self._link))
        return True

    def _never_again(
        self, seen: Hashable, problem: str = "refers to an earlier page as the next: the listing is endless"
    ) -> None:
        if hash(seen) in self._seen:
            raise UnusableResponse(f"page {self.number} {problem}")
        self._seen.add(hash(seen))

    def _more(self, document: object) -> bool | None:
        more: bool | None = evaluate(self._plan.more, document)
        if self._plan.more is not None and not isinstance(more, bool):
            raise UnusableResponse(f"the response has neither true nor false at {self._plan.more.text}")
        return more

    def _next(self, document: object) -> str | int | None:
        following = evaluate(self._plan.next, document)
        if following is None or following is False or following == "":
            return None
        if not isinstance(following, str | int) or following is True:
            raise UnusableResponse("next finds neither a text nor a number in the response")
        if len(str(following)) > LONGEST:
            raise UnusableResponse(f"next finds more than {LONGEST} characters in the response")
        return following


# --- Links to the next page: reads the `Link` header (RFC 8288), and keeps a link within its endpoint.


LONGEST = 8192
"""Maximum characters in a link."""
_PATH_SAFE = "%/:@!$&'()*+,;=~-._"
_QUERY_SAFE = "%!$&'()*+,;=:@/?-._~"
_PORTS = {"http": 80, "https": 443}


_LINK = re.compile(r"""[\s,]*+<([^<>]*+)>\s*+((?:;(?:[^;,"<>]++|"(?:[^"\\]++|\\.)*+")*+)*+)(?:,|\Z)""")
"""A link and its parameters (RFC 8288 §3)."""
_REL = re.compile(r""";\s*rel\s*=\s*(?:"([^"]*)"|([^\s;,"]*))""", re.IGNORECASE)
_ANCHOR = re.compile(r";\s*anchor\s*=", re.IGNORECASE)


def next_in_header(header: str | None) -> str | None:
    """Return the URL of `rel="next"` in a `Link` header; None without one.

    Raises:
        UnusableResponse: the header can't be read, or has several next pages. Ignoring it would look like the listing's end.
    """
    text, at, found = (header or "").rstrip(" \t,"), 0, set()
    while at < len(text):
        link = _LINK.match(text, at)
        if link is None:
            raise UnusableResponse("the Link header can't be read")
        relations = _REL.search(link[2])  # only the first `rel` counts (§3.3)
        if relations and "next" in (relations[1] or relations[2] or "").lower().split() and not _ANCHOR.search(link[2]):
            found.add(link[1])  # a link with an anchor belongs to another resource (§3.2)
        at = link.end()
    if len(found) > 1:
        raise UnusableResponse("the Link header has several next pages")
    return next(iter(found), None)


def resolve_link(link: str, base: str, current: str) -> tuple[str, str]:
    """Return the path and query of a link, for a call below `base`. Relative links are resolved against `current`.

    Calls carry the endpoint's secrets, so links to another origin, or outside the path of `base`, are never followed. The
    query of `base` is omitted, because every call gets it.

    Raises:
        UnusableResponse: the link can't be read, or leads elsewhere. The text has a remedy, but no part of the link.
    """
    home = urlsplit(base)
    if len(link) > LONGEST:
        raise UnusableResponse(f"the link to the next page has more than {LONGEST} characters")
    try:
        link.encode()  # half of a surrogate pair raises a ValueError
        parts = urlsplit(urljoin(current, link))
        origin = (parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme))
        is_plain = parts.username is None and parts.password is None
    except ValueError:
        raise UnusableResponse("the link to the next page can't be read") from None
    if not is_plain or origin != (home.scheme, home.hostname, home.port or _PORTS.get(home.scheme)):
        raise UnusableResponse(
            "the link to the next page leads elsewhere: it must have the scheme, host and port of base_url, without a user; "
            "correct base_url"
        )
    path, prefix = quote(parts.path, safe=_PATH_SAFE), home.path.rstrip("/")
    below = path.removeprefix(prefix) or "/"
    if not path.startswith(prefix) or not below.startswith("/") or below.startswith("//"):
        raise UnusableResponse(
            "the link to the next page leads elsewhere: its path is not below that of base_url; "
            "shorten the path of base_url"
        )
    if leads_elsewhere(path):
        raise UnusableResponse("the path of the link to the next page could lead to another resource")
    known = home.query.split("&")
    return below, "&".join(
        pair for pair in quote(parts.query, safe=_QUERY_SAFE).split("&") if pair and pair not in known
    )
