from __future__ import annotations

import re

from inbox import errors


def below(kind: type[Exception]) -> set[str]:
    """Names of the subclasses that the package itself defines."""
    return {name for each in kind.__subclasses__() for name in (each.__name__, *below(each))}


def test_the_tree_shows_every_error() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(below(errors.InboxRelayError))
