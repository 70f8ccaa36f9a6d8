"""Rules between the keys of a table of pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from inbox.config.mistakes import Mistake
from inbox.config.paging import PagedBy, Paging
from inbox.config.sweep import ListingCall
from inbox.config.sync import Find

_NUMBERED: tuple[PagedBy, ...] = ("page", "start")
_LINKED: tuple[PagedBy, ...] = ("link", "url")
_HAS_MEANING: Mapping[str, tuple[PagedBy, ...]] = {
    "first": _NUMBERED,
    "next": ("cursor", "url"),
    "more": (*_NUMBERED, "cursor"),
    "total": _NUMBERED,
    "short_is_last": _NUMBERED,
    "query_only": _LINKED,
}
"""The ways of paging to which a key means something."""
_PLAIN = Paging(by="page")
_NEEDS_NEXT: Mapping[str, str] = {"cursor": "the value for {next}", "url": "the URL of the next page"}


def paging_mistakes(path: tuple[str, ...], call: Find | ListingCall) -> Iterator[Mistake]:
    """Yield keys of a call's `pages` that are missing, or mean nothing."""
    path, pages = (*path, "pages"), call.pages
    method = call.method if call.graphql is None else "POST"
    if not isinstance(pages, Paging):
        if pages == "link" and method != "GET":
            yield _follows_by_get(path)
        return
    for key, kinds in _HAS_MEANING.items():
        if pages.by not in kinds and getattr(pages, key) != getattr(_PLAIN, key):
            valid = " or ".join(f'"{kind}"' for kind in kinds)
            yield Mistake((*path, key), f'means nothing with by = "{pages.by}"; remove it, or set by = {valid}')
    if pages.by in _NEEDS_NEXT and pages.next is None:
        yield Mistake((*path, "next"), f"is missing: the JMESPath that finds {_NEEDS_NEXT[pages.by]} in a page")
    if pages.by in _LINKED and method != "GET" and not pages.query_only:
        yield _follows_by_get(path)


def _follows_by_get(path: tuple[str, ...]) -> Mistake:
    return Mistake(
        path, 'follows links by GET alone; page by = "cursor", or set query_only = true, which keeps the path'
    )
