"""The paging rule of a find, a sweep and a listing alike: turns an answer into the request for the next page. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Literal
from urllib.parse import quote

import msgspec

from inbox.config.sync import MOST_FIND_PAGES, POSITIONS, IdsOfCall, PagedBy, PagingSetting, paging_of
from inbox.errors import ConfigError, MappingError, UnusableAnswer, collect_config_errors
from relay.sync.calls import CallPlan
from relay.sync.cursor import LONGEST, Item, OffsetCursor, Repeats, next_in_header, query_of, within
from relay.sync.expressions import Expression, Scope
from relay.sync.templates import QueryTemplate, Template


class Usual(msgspec.Struct, frozen=True):
    """The defaults of a table of pages."""

    count: int
    most: int


OF_FIND = Usual(count=10, most=MOST_FIND_PAGES)
OF_LISTING = Usual(count=100, most=10_000)


class PagesPlan(msgspec.Struct, frozen=True):
    """A call that is made page by page, compiled."""

    by: PagedBy | Literal["none"]
    first: CallPlan
    """The call for the first page, which knows no `next`."""
    further: CallPlan
    count: int = 1
    start: int = 0
    """Position of the first page."""
    most: int = 1
    next: Expression | None = None
    more: Expression | None = None
    total: Expression | None = None
    short_is_last: bool = False
    query_only: bool = False

    def total_in(self, document: object) -> int | None:
        """Return the number of all items that a page states; None without one."""
        total = None if self.total is None else evaluated(self.total, document)
        return total if isinstance(total, int) and not isinstance(total, bool) else None


def names_of(pages: PagingSetting) -> set[str]:
    """Return the names that paging adds to the scope of the call's templates."""
    paging = paging_of(pages)
    return set() if paging is None else {"count", *filter(None, [POSITIONS.get(paging.by)])}


def compile_pages(pages: PagingSetting, where: str, call: CallPlan, known: Collection[str], usual: Usual) -> PagesPlan:
    """Compile a table of pages. `call` was compiled with `known` and the names of `names_of`.

    Raises:
        ConfigError: a template or an expression is wrong, or every page would be the first.
    """
    paging = paging_of(pages)
    if paging is None:
        return PagesPlan("none", call, call)
    position = POSITIONS.get(paging.by)
    given = paging.query(has_position=position is not None and call.looks_into(position))
    names = {*known, *names_of(pages)}
    parts: dict[str, Callable[[], Any]] = {
        f"params.{name}": partial(QueryTemplate, text, f"{where}.params.{name}", names) for name, text in given.items()
    }
    for key in ("next", "more", "total"):
        parts[key] = partial(_expression, getattr(paging, key), f"{where}.{key}")
    made = collect_config_errors(parts)
    query = tuple((quote(name, safe=""), made[f"params.{name}"]) for name in given)
    further = msgspec.structs.replace(call, params=call.params + query)
    if position is not None and not further.looks_into(position):
        raise ConfigError(
            f"{where}: no param has {{{position}}}, so that each page would be the first; "
            f'write params = {{ NAME = "{{{position}}}" }}'
        )
    return PagesPlan(
        paging.by,
        _without_next(further) if position == "next" else further,
        further,
        paging.count or usual.count,
        paging.first_position,
        paging.most or usual.most,
        made["next"],
        made["more"],
        made["total"],
        paging.short_is_last,
        paging.query_only,
    )


def _expression(text: str | None, where: str) -> Expression | None:
    return None if text is None else Expression(text, where, None)


def _without_next(call: CallPlan) -> CallPlan:
    params = tuple((name, template) for name, template in call.params if not template.looks_into("next"))
    return msgspec.structs.replace(call, params=params, body=_pruned(call.body))


def _pruned(body: Any) -> Any:  # noqa: ANN401  # JSON with templates
    if isinstance(body, Mapping):
        return {key: _pruned(inner) for key, inner in body.items() if not _reads_next(inner)}
    if isinstance(body, list):
        return [_pruned(inner) for inner in body if not _reads_next(inner)]
    return body


def _reads_next(value: object) -> bool:
    return isinstance(value, Template) and value.looks_into("next")


class Paginator(Generic[Item]):
    """The way through the pages of one call: `call`, `at` and `body` describe the request for its next page."""

    def __init__(self, plan: PagesPlan, scope: Scope, base: str, *, overlaps: bool = False) -> None:
        """Prepare the first request.

        Args:
            plan: the compiled table.
            scope: the values of the call's templates.
            base: the URL of the endpoint, which no link leaves.
            overlaps: by start, each page begins with the last item of the one before, so that no item is lost while the
                listing moves.
        """
        self.number = 1
        """Number of the next page, from 1."""
        self.is_at_end = False
        self.call = plan.first
        self._plan = plan
        self._base = base
        self._scope = {**scope, "count": plan.count}
        if plan.by in {"page", "start"}:
            self._scope[plan.by] = plan.start
        self._offsets: OffsetCursor[Item] | None = None
        if overlaps and plan.by == "start":
            self._offsets = OffsetCursor(plan.start, plan.count)
        self._link: tuple[str, str] | None = None
        self._seen: set[bytes] = set()
        self._repeats = Repeats()
        self._before: Sequence[Item] = ()
        self._read = 0

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

    def end(self) -> None:
        """End at a page that does not exist.

        Raises:
            UnusableAnswer: the page before leads here, so it must exist.
        """
        leads = self._plan.by not in {"page", "start"} or self._plan.total is not None or self._plan.more is not None
        if self.number > 1 and leads:
            raise UnusableAnswer(f"page {self.number} is not there, though the one before leads to it")
        self.is_at_end = True

    def take(self, document: object, link: str | None, items: Sequence[Item]) -> list[Item]:
        """Take a page: its JSON, its `Link` header and its items. Return its new items, and turn to the next page.

        Raises:
            UnusableAnswer: the pages can't be followed. The text names the reason and a remedy.
        """
        fresh = self._fresh(items) if self._offsets is None else self._offsets.advance(items)
        self._read += len(items)
        self._before = items
        self.is_at_end = not self._turn(document, link, len(items))
        if not self.is_at_end and self.number >= self._plan.most:
            raise UnusableAnswer(
                f"no end after {self.number} pages, so that it is not known what there is; "
                "narrow the call down by its params, or raise pages.most"
            )
        self.number += not self.is_at_end
        self.call = self._plan.further
        return fresh

    def _fresh(self, items: Sequence[Item]) -> list[Item]:
        """Return the items that the page before lacks: what was added meanwhile moves others to the next page."""
        if items and list(items) == list(self._before):
            raise UnusableAnswer(f"page {self.number} is the one before it: does the call take what pages says?")
        if self._repeats.has(items):
            raise UnusableAnswer(f"page {self.number} came before: does the call take what pages says?")
        known = set(self._before)
        return [item for item in items if item not in known]

    def _turn(self, document: object, link: str | None, length: int) -> bool:
        """Turn to the next page; False when there is none."""
        plan = self._plan
        if plan.by == "none":
            return False
        if plan.by == "link":
            return self._follow(next_in_header(link))
        if plan.by == "url":
            return self._follow(self._next(document))
        if plan.by == "cursor":
            return self._turn_by_cursor(document)
        return self._turn_by_number(document, length)

    def _turn_by_number(self, document: object, length: int) -> bool:
        plan, offsets = self._plan, self._offsets
        more, left = self._more(document), self._left(document, length)
        if not length and left:
            raise UnusableAnswer(
                f"page {self.number} is empty, and {left} items are said to be left; "
                "where total counts items that no page has, remove it"
            )
        is_last = more is False or (plan.short_is_last and length < plan.count and more is None)
        if offsets is not None:
            if offsets.is_at_end and more is True:
                raise UnusableAnswer(f"page {self.number} has nothing new, and the answer says that there are more")
            self._scope["start"] = offsets.start
            # Behind the first page, `total` is no reason to end: items that moved were counted twice.
            is_only = left == 0 and self.number == 1
            return not (offsets.is_at_end or is_only or (is_last and offsets.connects))
        # An empty page that is not the last has been filtered by the service.
        self._scope[plan.by] += 1 if plan.by == "page" else length or plan.count
        if is_last or left == 0:
            return False
        return length > 0 or more is True

    def _left(self, document: object, length: int) -> int | None:
        """Return the number of items behind this page by `total`; None without it."""
        plan = self._plan
        if plan.total is None:
            return None
        total = plan.total_in(document)
        if total is None:
            raise UnusableAnswer(f"the answer has no number at {plan.total.text}")
        read = self._read if plan.by == "page" else self._scope["start"] - plan.start + length
        return max(total - read, 0)

    def _turn_by_cursor(self, document: object) -> bool:
        more, following = self._more(document), None
        if more is not False:
            following = self._next(document)
        if more is True and following is None:
            raise UnusableAnswer(f"the answer says that there are more, and has nothing at {self._named('next')}")
        if following is None:
            return False
        self._never_again(str(following))
        self._scope["next"] = following
        return True

    def _follow(self, link: str | int | None) -> bool:
        if link is None:
            return False
        path, query = self.at
        if self._plan.query_only:
            self._link = (path, query_of(str(link), self._base))
        else:
            base = self._base.partition("?")[0].rstrip("/")
            self._link = within(str(link), self._base, f"{base}{path}{'?' if query else ''}{query}")
        self._seen.add(_digest(f"{path}?{query}"))
        self._never_again("?".join(self._link))
        return True

    def _never_again(self, following: str) -> None:
        """Note a position, by its digest, since there may be many long ones."""
        digest = _digest(following)
        if digest in self._seen:
            raise UnusableAnswer(f"page {self.number} names one as the next that was asked for already: it has no end")
        self._seen.add(digest)

    def _more(self, document: object) -> bool | None:
        if self._plan.more is None:
            return None
        more = evaluated(self._plan.more, document)
        if not isinstance(more, bool):
            raise UnusableAnswer(f"the answer has neither true nor false at {self._named('more')}")
        return more

    def _next(self, document: object) -> str | int | None:
        following = None if self._plan.next is None else evaluated(self._plan.next, document)
        if following is None or following is False or following == "":
            return None
        if not isinstance(following, str | int) or following is True:
            raise UnusableAnswer(f"what the answer has at {self._named('next')} is neither a text nor a number")
        if len(str(following)) > LONGEST:
            raise UnusableAnswer(f"what the answer has at {self._named('next')} has more than {LONGEST} characters")
        return following

    def _named(self, key: Literal["next", "more"]) -> str:
        expression: Expression | None = getattr(self._plan, key)
        return "" if expression is None else expression.text


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def evaluated(expression: Expression, document: Any) -> Any:  # noqa: ANN401  # whatever the JSON holds
    """Evaluate an expression on an answer.

    Raises:
        UnusableAnswer: it can't be evaluated.
    """
    try:
        return expression.value(document)
    except MappingError:
        raise UnusableAnswer(f"{expression.text} can't be evaluated on the answer") from None


# --- Ids that a listing is asked for, in chunks, as its templates see them. Pure.


class ChunkPlan(msgspec.Struct, frozen=True):
    """A table of `ids`, compiled."""

    size: int
    join: str
    each: Template | None

    def scope_of(self, ids: Sequence[str]) -> Scope:
        """Return the scope of a call that asks for these ids, of which each passes `can_ask_for`."""
        return {"ids": [*ids] if self.each is None else self.join.join(map(self._written, ids))}

    def can_ask_for(self, entity_id: str) -> bool:
        """Return False for an id that the form can't write, or that the other side would read as several."""
        if self.each is None:
            return True
        try:
            self._written(entity_id)
        except MappingError:
            return False
        is_quoted = all(each.form is not None and each.form.quote is not None for each in self.each.placeholders)
        return is_quoted or self.join not in entity_id

    def _written(self, entity_id: str) -> str:
        return "" if self.each is None else self.each.expand({"id": entity_id})


def compile_chunks(ids: IdsOfCall, where: str) -> ChunkPlan:
    """Compile a table of `ids`.

    Raises:
        ConfigError: the template is wrong or has no id, or nothing stands between two ids.
    """
    each = None if ids.each is None else Template(ids.each, f"{where}.each", {"id"})
    if each is not None and not each.placeholders:
        raise ConfigError(f'{where}.each: has no {{id}}, so that every id would be the same; write each = "{{id}}"')
    if not ids.join:
        raise ConfigError(f'{where}.join: must not be empty, since two ids would be read as one; write join = ","')
    return ChunkPlan(ids.size, ids.join, each)
