"""`/problems/{cause}`: the meaning of a problem, and its remedy, from the docstring of its class."""

from __future__ import annotations

import inspect

import msgspec

from inbox.errors import NothingThere, PageError
from relay.web.query import Text
from relay.web.reading import Reading, Screen

KINDS = {kind.cause: kind for kind in PageError.__subclasses__()}
"""Every problem that has a page, by its cause."""


class ProblemQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The problem that is asked about."""

    cause: Text
    """Last part of the URL in the member `type` of a problem."""


class ProblemPage(msgspec.Struct, frozen=True):
    """The meaning of one kind of problem."""

    cause: str
    title: str
    status: int
    """HTTP status of its answers."""
    meaning: tuple[str, ...]
    """Paragraphs: its meaning, and what to do."""


def read(_reading: Reading, query: ProblemQuery) -> ProblemPage:
    """Explain a kind of problem.

    Raises:
        NothingThere: no problem has this cause.
    """
    if (kind := KINDS.get(query.cause)) is None:
        raise NothingThere(f"there is no kind of problem {query.cause!r}")
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return ProblemPage(kind.cause, kind.title, kind.status, tuple(" ".join(each.split()) for each in paragraphs))


SCREEN = Screen(
    name="problem",
    path="/problems/{cause}",
    title="About a problem",
    query=ProblemQuery,
    page=ProblemPage,
    read=read,
    template="problem_kind.html",
    in_menu=False,
)
