"""The search for a counterpart: reads the matches in its answers, and ends when they suffice. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from inbox.config.sync import Find, MapField
from inbox.errors import UnusableAnswer, collect_config_errors
from relay.sync.calls import CallPlan, compile_call
from relay.sync.expressions import Expression, Scope, encode
from relay.sync.match import Carried, compile_verify
from relay.sync.paging import OF_FIND, PagesPlan, Paginator, compile_pages, evaluated, names_of
from relay.sync.templates import SearchTemplate

NO_MAP: Mapping[str, str | MapField] = {}


class FindPlan(msgspec.Struct, frozen=True):
    """A find table, compiled."""

    pages: PagesPlan
    pick: Expression | None
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
        "pages": lambda: compile_pages(find.pages, f"{where}.pages", _call(find, where, known), known, OF_FIND),
        "pick": lambda: None if find.pick is None else Expression(find.pick, f"{where}.pick", None),
    }
    made = collect_config_errors(parts)
    asked = made["pages"].further.placeholders
    return FindPlan(
        **made, carried=compile_verify(find, f"{where}.verify", known, asked, mapped), ignore_case=find.ignore_case
    )


def _call(find: Find, where: str, known: Collection[str]) -> CallPlan:
    names = {*known, *names_of(find.pages)}
    return compile_call(
        where,
        names,
        method=find.method,
        path=find.path,
        params=find.params,
        body=find.body,
        texts=SearchTemplate,
        keys=find,
    )


class Search:
    """A search in progress: `pages` describes the request for its next page."""

    def __init__(self, plan: FindPlan, scope: Scope, base: str, *, enough: int) -> None:
        """Prepare the first request, below `base`. The call's templates read `scope`. After `enough` matches the search ends."""
        self.matches: list[dict[str, Any]] = []
        """The matches found so far, each once."""
        self.etag: str | None = None
        """The ETag of the answer with the first match."""
        self.pages = Paginator[bytes](plan.pages, scope, base)
        self._plan = plan
        self._enough = enough

    def take(self, answer: object, etag: str | None, link: str | None = None) -> bool:
        """Take the matches of this page; `link` is its `Link` header. Return True when another page is needed.

        Raises:
            UnusableAnswer: the answer can't be relied on. The text names the reason and a remedy.
        """
        page = self._matches(answer)
        if page and not self.matches:
            self.etag = etag
        self.matches += [match for match in page if match not in self.matches]
        if len(self.matches) >= self._enough:
            return False
        self.pages.take(answer, link, [encode(match) for match in page])
        return not self.pages.is_at_end

    def _matches(self, answer: object) -> list[dict[str, Any]]:
        """Return the matches in an answer: a list or an object at `pick`. Without `pick`, a list under `items` counts too."""
        found, pick = answer, self._plan.pick
        if pick is not None:
            found = evaluated(pick, answer)
            if found is None and self._plan.pages.total_in(answer) == 0:
                return []  # SCIM leaves the list out then (RFC 7644 §3.4.2)
            if found is None:
                raise UnusableAnswer(
                    f"the answer has nothing at {pick.text}, or null; where that means that there is none, "
                    f"write pick = '{pick.text} || `[]`'"
                )
        elif isinstance(answer, dict) and isinstance(answer.get("items"), list):
            found = answer["items"]
        if isinstance(found, dict):
            return [found]
        if not isinstance(found, list):
            where = "the answer" if pick is None else f"what the answer has at {pick.text}"
            raise UnusableAnswer(f"{where} is neither a list nor an object")
        if not all(isinstance(match, dict) for match in found):
            raise UnusableAnswer("a match is not an object")
        return found


def can_be_named(value: object) -> bool:
    """Return True when a path can address a counterpart by this value."""
    return isinstance(value, str | int | float | Decimal) and not isinstance(value, bool) and value != ""
