"""Paging of a find, a sweep and a listing alike: the request for the next page, and the last page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from inbox.config.types import Table

PagedBy = Literal["page", "start", "cursor", "link", "url"]

_PARAMS: Mapping[str, Mapping[str, str]] = {
    "page": {"page": "{page}"},
    "start": {"startIndex": "{start}", "count": "{count}"},
}
_FIRST: Mapping[str, int] = {"page": 1}
POSITIONS: Mapping[str, str] = {"page": "page", "start": "start", "cursor": "next"}
"""The name of the position in templates. A link has none: it is the whole request."""


class Paging(Table, frozen=True, kw_only=True):
    """Paging of a listing that comes in several answers.

    Templates of the call (its path, `params` and `body`) and of `params` here may use `count`, and the position: `page`,
    `start` or `next`. In the first request, each param and each key of the body that uses `next` is left out.
    """

    by: PagedBy
    """`page`: pages are numbered. `start`: a page begins at an offset. `cursor`: `next` finds the value for `{next}` in a
    page. `link`: the `Link` header (RFC 8288) has the URL of the next page. `url`: `next` finds that URL in a page."""
    params: dict[str, str] | None = None
    """Further query parameters. Unless the call uses the position itself, the default is `page = "{page}"` by page, and by
    start SCIM's `startIndex = "{start}"` and `count = "{count}"`."""
    count: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    """Size of the page to ask for: the value of `count`. By default 10 for a find, and 100 for a sweep or a listing."""
    first: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    """Position of the first page: by page 1, by start 0, unless given."""
    next: str | None = None
    """JMESPath into a page. By cursor, it gives the value for `{next}`; by url, the absolute or relative URL of the next
    page. On the last page it gives nothing, null, false or an empty text."""
    more: str | None = None
    """JMESPath into a page that gives true when there are more pages, and false on the last one. Without it, an empty page
    is the last by page and by start, and a page without `next` by cursor."""
    total: str | None = None
    """By page or start: JMESPath into a page that gives the number of all items. It saves the request for an empty page,
    and a page of 0 items needs no list."""
    short_is_last: bool = False
    """By page or start: take a page with fewer than `count` items as the last. Use it only where pages are always full."""
    query_only: bool = False
    """By link or url: take only the query from the link, and the rest from the configuration. It serves a service behind a
    proxy that names itself by another address."""
    most: Annotated[int, msgspec.Meta(ge=2, le=100_000)] | None = None
    """Largest number of pages. More are an error, and nothing is written. By default 10 for a find, otherwise 10,000."""

    @property
    def first_position(self) -> int:
        """Return `first`, or its default."""
        return _FIRST.get(self.by, 0) if self.first is None else self.first

    def query(self, *, has_position: bool) -> Mapping[str, str]:
        """Return `params`, or their default; none when the call `has_position` itself."""
        if self.params is not None:
            return self.params
        return {} if has_position else _PARAMS.get(self.by, {})


PagingPreset = Literal["none", "link", "scim"]
PagingSetting = Paging | PagingPreset

_PRESETS: Mapping[str, Paging | None] = {
    "none": None,
    "link": Paging(by="link"),
    "scim": Paging(by="start", first=1, total="totalResults"),
}


def paging_of(pages: PagingSetting) -> Paging | None:
    """Return the table that a preset stands for, or the given one; None when one answer has everything."""
    return pages if isinstance(pages, Paging) else _PRESETS[pages]
