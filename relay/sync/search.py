"""The search for a counterpart: reads its answers page by page, and decides about the next page. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import msgspec

from inbox.config.sync import Find, FindPages, MapField
from inbox.errors import ConfigError, MappingError, UnusableAnswer, collect_config_errors
from relay.sync.calls import CallPlan, compile_call
from relay.sync.expressions import Expression, Scope
from relay.sync.match import Carried, compile_verify
from relay.sync.templates import SearchTemplate

NO_MAP: Mapping[str, str | MapField] = {}
_QUERY_SAFE = "%!$&'()*+,;=:@/?-._~"


class PagesPlan(msgspec.Struct, frozen=True):
    """The pages of a find after its first."""

    further: CallPlan
    """The call for each further page."""
    first: int
    count: int
    most: int
    total: Expression | None
    next: Expression | None
    is_link: bool
    """The value of `next` is a link, not a value for `further`."""


class FindPlan(msgspec.Struct, frozen=True):
    """A find table, compiled."""

    call: CallPlan
    """The call for the first page."""
    pick: Expression | None
    pages: PagesPlan | None
    carried: tuple[Carried, ...] = ()
    """The values that a match must carry."""
    ignore_case: bool = False


def compile_find(
    find: Find, where: str, known: Collection[str], mapped: Mapping[str, str | MapField] = NO_MAP
) -> FindPlan:
    """Compile a find table. `where` names it, `known` the values that its templates may use; `mapped` is the route's map.

    Raises:
        ConfigError: a template or an expression is wrong, or every page would be the first.
    """
    parts: dict[str, Callable[[], Any]] = {
        "pages": lambda: None if find.pages is None else _pages(find, find.pages, where, known),
        "pick": lambda: None if find.pick is None else Expression(find.pick, f"{where}.pick", None),
    }
    if find.pages is None:
        parts["call"] = lambda: _call(find, where, known)
    made = collect_config_errors(parts)
    pages: PagesPlan | None = made["pages"]
    asked = made["call"] if pages is None else pages.further
    carried = compile_verify(find, f"{where}.verify", known, asked.placeholders, mapped)
    if pages is None:
        return FindPlan(**made, carried=carried, ignore_case=find.ignore_case)
    # The first call knows no next page yet.
    params = tuple((name, template) for name, template in pages.further.params if not template.looks_into("next"))
    first = msgspec.structs.replace(pages.further, params=params)
    return FindPlan(first, made["pick"], pages, carried, find.ignore_case)


def _call(find: Find, where: str, known: Collection[str]) -> CallPlan:
    return compile_call(
        where,
        known,
        method=find.method,
        path=find.path,
        params=find.params,
        body=find.body,
        texts=SearchTemplate,
        keys=find,
    )


def _pages(find: Find, pages: FindPages, where: str, known: Collection[str]) -> PagesPlan:
    further = _further(find, pages, where, known)
    templates = (further.path, *(template for _, template in further.params))
    moves = any(template.looks_into("start") for template in templates) or find.body is not None
    if pages.next is None and not moves:
        raise ConfigError(f"{where}.pages: no param has {{start}}, so that each page would be the first; or write next")
    return PagesPlan(
        further,
        pages.first,
        pages.count,
        pages.most_calls,
        None if pages.total is None else Expression(pages.total, f"{where}.pages.total", None),
        None if pages.next is None else Expression(pages.next, f"{where}.pages.next", None),
        is_link=not any(template.looks_into("next") for _, template in further.params),
    )


def _further(find: Find, pages: FindPages, where: str, known: Collection[str]) -> CallPlan:
    known = {*known, "start", "count"}
    call = _call(find, where, known)
    more = {*known, "next"} if pages.next is not None else known
    asked = compile_call(f"{where}.pages", more, method=find.method, path=find.path, params=pages.query)
    return msgspec.structs.replace(call, params=call.params + asked.params)


class Search:
    """A search in progress: `call`, `at` and `body` describe the request for its next page."""

    def __init__(self, plan: FindPlan, scope: Scope, *, enough: int) -> None:
        """Prepare the first request. The call's templates read `scope`. After `enough` matches the search ends."""
        self.matches: list[dict[str, Any]] = []
        """The matches found so far, each once."""
        self.etag: str | None = None
        """The ETag of the answer with the first match."""
        self.call = plan.call
        self._scope = scope
        self._pick, self._pages = plan.pick, plan.pages
        self._enough = enough
        self._page: list[dict[str, Any]] = []
        self._number = 1
        self._seen: list[object] = []
        self._link: str | None = None
        if plan.pages is not None:
            self._scope = {**scope, "start": plan.pages.first, "count": plan.pages.count}

    def end(self) -> None:
        """End the search at a page that does not exist.

        Raises:
            UnusableAnswer: the page before leads here, so it must exist.
        """
        pages = self._pages
        if self._number > 1 and pages is not None and (pages.next is not None or pages.total is not None):
            raise UnusableAnswer(f"page {self._number} is not there, though the one before leads to it")

    @property
    def at(self) -> tuple[str, str]:
        """Path and query, encoded; MappingError when a template has no value."""
        return self._path, self.call.query(self._scope) if self._link is None else self._link

    @property
    def _path(self) -> str:
        return self.call.path.expand(self._scope)

    @property
    def body(self) -> bytes | None:
        """The body, encoded; MappingError when a template has no value."""
        return self.call.json(self._scope)

    def take(self, answer: object, etag: str | None) -> bool:
        """Take the matches of this page. Return True when another page is needed.

        Raises:
            UnusableAnswer: the answer can't be relied on. The text names the reason and a remedy.
        """
        page, before = self._matches(answer), self._page
        if page and page == before:
            raise UnusableAnswer(f"page {self._number} is the one before it: does {self._path} take what pages says?")
        if page and not self.matches:
            self.etag = etag
        self.matches += [match for match in page if match not in self.matches]
        self._page = page
        if self._pages is None or len(self.matches) >= self._enough:
            return False
        further = self._turn(self._pages, answer, len(page))
        if further and self._number == self._pages.most:
            raise UnusableAnswer(
                f"no end after {self._number} pages, so that it is not known what there is; "
                "narrow the find down by its params, or raise pages.most"
            )
        self.call = self._pages.further
        self._number += 1
        return further

    def _matches(self, answer: object) -> list[dict[str, Any]]:
        """Return the matches in an answer: a list or an object at `pick`. Without `pick`, a list under `items` counts too."""
        found = answer
        if self._pick is not None:
            found = _evaluated(self._pick, answer)
            if found is None and self._total(answer) == 0:
                return []  # SCIM leaves the list out then (RFC 7644 §3.4.2)
            if found is None:
                raise UnusableAnswer(
                    f"the answer has nothing at {self._pick.text}, or null; where that means that there is none, "
                    f"write pick = '{self._pick.text} || `[]`'"
                )
        elif isinstance(answer, dict) and isinstance(answer.get("items"), list):
            found = answer["items"]
        if isinstance(found, dict):
            return [found]
        if not isinstance(found, list):
            where = "the answer" if self._pick is None else f"what the answer has at {self._pick.text}"
            raise UnusableAnswer(f"{where} is neither a list nor an object")
        if not all(isinstance(match, dict) for match in found):
            raise UnusableAnswer("a match is not an object")
        return found

    def _turn(self, pages: PagesPlan, answer: object, length: int) -> bool:
        """Turn to the next page; False when there is none."""
        if pages.next is not None:
            return self._follow(pages, pages.next, answer)
        start: int = self._scope["start"] + length
        self._scope = {**self._scope, "start": start}
        if pages.total is None:
            return length > 0
        total = self._total(answer)
        if total is None:
            raise UnusableAnswer(f"the answer has no number at {pages.total.text}")
        left = total - (start - pages.first)
        if left > 0 and not length:
            raise UnusableAnswer(f"page {self._number} is empty, and {left} matches are said to be left")
        return left > 0

    def _total(self, answer: object) -> int | None:
        if self._pages is None or self._pages.total is None:
            return None
        total = _evaluated(self._pages.total, answer)
        return total if isinstance(total, int) and not isinstance(total, bool) else None

    def _follow(self, pages: PagesPlan, at: Expression, answer: object) -> bool:
        following = _evaluated(at, answer)
        if following is None or following is False or following == "":
            return False
        if not isinstance(following, str | int) or following is True:
            raise UnusableAnswer(f"what the answer has at {at.text} is neither a text nor a number")
        if following in self._seen:
            raise UnusableAnswer(f"page {self._number} names one as the next that was asked for already: it has no end")
        self._seen.append(following)
        if pages.is_link:
            self._link = _query_of(str(following), self._path)
        else:
            self._scope = {**self._scope, "next": following}
        return True


def can_be_named(value: object) -> bool:
    """Return True when a path can address a counterpart by this value."""
    return isinstance(value, str | int | float | Decimal) and not isinstance(value, bool) and value != ""


def _query_of(link: str, path: str) -> str:
    """Return the query of a link to the next page. The rest of the URL comes from the configuration, whatever the link says."""
    try:
        parts = urlsplit(link)
    except ValueError:
        raise UnusableAnswer("the link to the next page can't be read") from None
    if not parts.query or (parts.path and not unquote(parts.path).endswith(unquote(path))):
        raise UnusableAnswer(
            f"the link to the next page leads elsewhere: it has to be one to {path} with another query"
        )
    return quote(parts.query, safe=_QUERY_SAFE)


def _evaluated(expression: Expression, answer: Any) -> Any:  # noqa: ANN401  # whatever the JSON holds
    try:
        return expression.value(answer)
    except MappingError:
        raise UnusableAnswer(f"{expression.text} can't be evaluated on the answer") from None
