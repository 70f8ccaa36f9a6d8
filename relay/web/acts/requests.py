"""The requests of acts: who may send them, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import falcon
import msgspec
from falcon.asgi import Request

from inbox.errors import BadFilter, NotAllowed
from inbox.events.commands import MOST_SEQS
from relay.accounts import Actor
from relay.web.query import MOST_BYTES


def require_operator(req: Request) -> Actor:
    """Return who asks.

    Raises:
        NotAllowed: a viewer.
    """
    actor: Actor = req.context.actor
    if not actor.may_act:
        raise NotAllowed("only operators act; a viewer looks")
    return actor


async def read_json(req: Request) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadFilter: it is none.
        HTTPContentTooLarge: it has more than `MOST_BYTES`.
    """
    given = await req.stream.read(MOST_BYTES + 1)
    if len(given) > MOST_BYTES:
        raise falcon.HTTPContentTooLarge(description=f"a body has at most {MOST_BYTES} bytes")
    try:
        body = msgspec.json.decode(given)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFilter(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadFilter("the body is a JSON object with named fields")
    return body


def one_each(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a URL.

    Raises:
        BadFilter: one is given twice.
    """
    for name, value in params.items():
        if not isinstance(value, str):
            raise BadFilter(f"{name} is given twice", field=name)
    return dict(params)


CHOSEN = "chosen"
"""Parameter of a URL that a checkbox of a delivery adds: SEQ/ROUTE."""
NONE_CHOSEN = "none"
"""Its value in every such form, so that one without a choice is not about everything."""


def fields_of_chosen(given: str | Sequence[str]) -> dict[str, str]:
    """Return the fields of the selection that is exactly the chosen deliveries.

    Raises:
        BadFilter: none is chosen, too many are, or several routes have names that no list can hold.
    """
    values = [given] if isinstance(given, str) else given
    chosen = [value for value in dict.fromkeys(values) if value != NONE_CHOSEN]
    if not chosen:
        raise BadFilter("choose at least one delivery", field=CHOSEN)
    if len(chosen) > MOST_SEQS:
        raise BadFilter(f"choose at most {MOST_SEQS} deliveries", field=CHOSEN)
    routes = {value.partition("/")[2] for value in chosen}
    if len(routes) == 1:
        return {"seqs": ",".join(value.partition("/")[0] for value in chosen), "route": routes.pop()}
    if any("," in route for route in routes):  # it would name other deliveries
        raise BadFilter("a route's name has a comma: choose its deliveries alone", field=CHOSEN)
    return {"deliveries": ",".join(chosen)}
