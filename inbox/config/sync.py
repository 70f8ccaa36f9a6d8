"""Tables of sync routes, of sweeps and of their calls: `[routes.NAME.sync]`, and `[[sources.NAME.sweeps]]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from inbox.config.values import Duration, Table, Unit
from inbox.events.event import Action


class CallKeys(Table, frozen=True, kw_only=True):
    """Keys of every call of a sync route or a sweep."""

    path: str
    body: dict[str, Any] | None = None
    headers: dict[str, str] = {}
    """Headers of this call, which override those of the endpoint; values are templates, as in `path`. Secrets belong in
    the endpoint's `auth` or `headers`."""
    graphql: str | None = None
    """GraphQL document, sent by `POST` as `query` in the JSON body. It is not a template; its values are in `body = {
    variables = { … } }`. `errors` then defaults to "errors"."""
    errors: str | None = None
    """JMESPath into a success response (2xx) that gives errors, as a text or a list of texts. If it finds any, the call
    fails as `rejected`. With `graphql`, an expression that doesn't use "errors" counts in addition to them."""
    throttled: str | None = None
    """JMESPath into a success response (2xx); if it finds a value, the call fails as `throttled`."""

    @property
    def query(self) -> Mapping[str, str]:
        """Return the query parameters; a call that writes has none."""
        return {}


class ReadingCall(CallKeys, frozen=True, kw_only=True):
    """Keys of every call that reads."""

    method: Literal["GET", "POST"] = "GET"
    params: dict[str, str] | None = None

    @property
    def query(self) -> Mapping[str, str]:
        """Return `params`."""
        return self.params or {}


# --- paging of sweeps


PagedBy = Literal["page", "start", "cursor", "link", "url"]

_PARAMS: Mapping[str, Mapping[str, str]] = {
    "page": {"page": "{page}"},
    "start": {"startIndex": "{start}", "count": "{count}"},
}
_FIRST: Mapping[str, int] = {"page": 1}
POSITIONS: Mapping[str, str] = {"page": "page", "start": "start", "cursor": "next"}
"""Name of the position in templates. Links have none: a link is the whole request."""


class Paging(Table, frozen=True, kw_only=True):
    """Paging of a listing that comes in several responses.

    Templates of the call (its path, `params` and `body`) and of `params` here may use `count` and the position: `page`,
    `start` or `next`. The first request omits each param and body key that uses `next`.
    """

    by: PagedBy
    """`page`: pages are numbered. `start`: pages begin at an offset. `cursor`: `next` finds the value for `{next}` in a
    page. `link`: the `Link` header (RFC 8288) has the URL of the next page. `url`: `next` finds that URL in a page."""
    params: dict[str, str] | None = None
    """Additional query parameters. Unless the call uses the position itself, the default is `page = "{page}"` for
    `page`, and SCIM's `startIndex = "{start}"` and `count = "{count}"` for `start`."""
    count: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    """Requested page size: the value of `count`."""
    first: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    """Position of the first page; by default 1 for `page` and 0 for `start`."""
    next: str | None = None
    """JMESPath into a page. For `cursor`, it gives the value for `{next}`; for `url`, the absolute or relative URL of
    the next page. On the last page it must give nothing, null, false or an empty text."""
    more: str | None = None
    """JMESPath into a page that gives true if there are more pages, and false on the last one. Without it, the last
    page is the first empty one for `page` and `start`, and one without `next` for `cursor`."""
    total: str | None = None
    """For `page` or `start`: JMESPath into a page that gives the total number of items. It saves requesting an empty last
    page, and a page with 0 items needs no list."""
    most: Annotated[int, msgspec.Meta(ge=2, le=100_000)] = 10_000
    """Maximum number of pages; more are an error."""

    @property
    def first_position(self) -> int:
        """Return `first`, or its default."""
        return _FIRST.get(self.by, 0) if self.first is None else self.first

    def query(self, *, has_position: bool) -> Mapping[str, str]:
        """Return `params` or their default; nothing if the call `has_position` itself."""
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


def resolve_paging(pages: PagingSetting) -> Paging | None:
    """Return the given table, or the one of a preset; None if a single response has everything."""
    return pages if isinstance(pages, Paging) else _PRESETS[pages]


# --- listings that sweeps compare


_SCIM_PARAMS = {"filter": "meta.lastModified ge {since:scim}", "sortBy": "meta.lastModified"}


class Sweep(ReadingCall, frozen=True, kw_only=True):
    """A listing of one type of entity.

    The default `params` are those of SCIM (RFC 7644 §3.4.2). They assume that Trivore ID's filter accepts
    `meta.lastModified ge`; set `params` otherwise.
    """

    api: str
    """Api to read from: a name of `[apis]`."""
    entity_type: str
    """Entity type, as in webhooks."""
    event_type: str = "sweep"
    """Event type of the added events. Routes with `when.event_type` must accept it."""
    action: Action = "update"
    pages: PagingSetting = Paging(by="start")
    """Paging: a table, `"link"` (the `Link` header), `"scim"`, or `"none"` if a single response has everything. The
    default `{ by = "start" }` is Trivore ID's."""
    items: str = "resources"
    """JMESPath into a page that gives the list of entities."""
    id: str = "id"
    """JMESPath into an entity that gives its id."""
    modified: str = "meta.lastModified"
    """JMESPath into an entity that gives the time of its last change."""
    time_unit: Unit = "rfc3339"
    """Format of the time at `modified`: RFC 3339, or seconds or milliseconds since 1970."""
    event_body: dict[str, Any] | None = None
    """Body of the added events, shaped like the webhook's: a table, possibly nested, of JMESPaths over the entity; `@`
    is the whole entity. Without it, the entity is at `sweep.item`."""
    overlap: Duration = Duration(300)
    """Overlap of sweeps: each begins this long before the last change that the previous one compared."""
    grace: Duration = Duration(60)
    """Age below which a change is left to the next sweep, since its webhook may still arrive."""
    every: Duration | None = None
    """Interval of the relay's sweeps; a failed one is repeated within five minutes. Without it, only `relay sweep` runs them."""

    @property
    def query(self) -> Mapping[str, str]:
        """Return `params` or their default."""
        if self.params is not None:
            return self.params
        paging = resolve_paging(self.pages)
        return _SCIM_PARAMS if paging is not None and paging.by == "start" else {}


# --- `[routes.NAME.sync]`


Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class Fetch(ReadingCall, frozen=True, kw_only=True):
    """Call that reads the entity from its source."""

    api: str
    pick: str | None = None
    """JMESPath into the response that gives the entity, such as `data.user`. An explicit null means that it is gone."""
    modified: str = "meta.lastModified"
    """JMESPath into the entity that gives the time of its last change. The default is SCIM's (RFC 7643 §3.1) and Trivore ID's."""
    tolerance: Duration | None = None
    """An entity is stale if its last change is older than its event by more than this. It is fetched
    again after 1, 5 and 30 s, then applied with `stale_suspected` in the log. Without it, no entity is stale."""
    verify: dict[str, str] = {}
    """Values that the entity must have, as a JMESPath into the entity = a JMESPath over `event`: `{ id =
    "event.entity_id" }`. Without it, any object in the api's response is accepted."""


class Find(ReadingCall, frozen=True, kw_only=True):
    """Call that looks up the counterpart in the destination; without it, nothing is looked up."""

    pick: str | None = None
    """JMESPath into the response that gives the list of matches, or the single match. A response without either is an error."""
    verify: dict[str, str] | bool = True
    """Values that a match must have before it is changed, as a JMESPath into the match = a JMESPath over the same names
    as in `path`: `{ externalId = "event.entity_id" }`. `true` checks each searched value that a field of `map` gets
    unchanged; at least one is required. `false` accepts any match."""
    ignore_case: bool = False
    """Ignore case in `verify`, as SCIM does for a `userName`."""


class Write(CallKeys, frozen=True, kw_only=True):
    """Call that creates or deletes the counterpart."""

    method: Method | None = None


class Update(CallKeys, frozen=True, kw_only=True):
    """Call that changes the counterpart."""

    method: Method = "PATCH"
    format: Literal["merge-patch", "json"] = "merge-patch"
    if_match: str | None = None
    """JMESPath over `target` and `etag`, the version in the response to `find`. Its value is sent as `If-Match`. A 412
    means that the counterpart changed meanwhile, and the delivery starts again."""


class Deactivate(CallKeys, frozen=True, kw_only=True):
    """Call that deactivates the counterpart instead of deleting it."""

    method: Method = "PATCH"
    unless: str | None = None
    """JMESPath over `event` and `target` that is true if the counterpart is already inactive. Then nothing is sent, and
    `relay plan` finds it in sync. Without it, each event of a gone entity deactivates it again."""


class MapField(Table, frozen=True):
    """Rule for one field of the counterpart, if an expression is not enough; docs/reference/mapping.md has examples."""

    expression: str | None = msgspec.field(default=None, name="from")
    """JMESPath over {event, entity, target}."""
    value: Any = None
    """Instead of `from`: a constant."""
    function: str | None = None
    """Instead of `from`: `package.module:name`, called with (event, entity, target); None means no value."""
    cast: Literal["text", "int", "float", "bool", "date", "datetime"] | None = None
    """Type to convert the value to; an unconvertible value is an error."""
    read: str | None = None
    """Format of a date that is not RFC 3339, such as `%d.%m.%Y`; UTC unless it has an offset."""
    write: str | None = None
    """Format in which a date is sent, such as `%d.%m.%Y`; by default RFC 3339. Always UTC."""
    lookup: dict[str, Any] | None = None
    """Value to send for each value found. An unlisted value gives the `default`, or an error without one."""
    default: Any = None
    """Value to send if none is found."""
    required: bool = False
    """A missing value is an error."""


class SyncRoute(Table, frozen=True):
    """Steps of a sync route."""

    fetch: Fetch | None = None
    """Call that reads the entity. Without it, the entity is the webhook's own body: see docs/reference/sync.md."""
    map: dict[str, str | MapField] = {}
    """Field of the counterpart = JMESPath over {event, entity, target}, or a table."""
    transform: str | None = None
    """`package.module:name`, called with (fields, event, entity, target) after the map. It returns the fields to send."""
    find: Find | None = None
    create: Write | None = None
    update: Update | None = None
    delete: Write | None = None
    missing: Literal["create", "skip", "retry", "dead"] = "create"
    many: Literal["dead", "first"] = "dead"
    gone: Literal["delete", "deactivate", "skip"] = "delete"
    deactivate: Deactivate | None = None
    skip_unchanged: bool = False
    """Send nothing if the fields, and a `body` of the update, equal the last ones sent; the event ends `unchanged`."""
    clear_when_absent: list[str] = []
