"""Rules between the tables of `inbox.toml`, such as references that must resolve and sync routes that must run."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from inbox.config.mistakes import Mistake, nearest
from inbox.config.model import (
    ApiHeader,
    Config,
    Destination,
    Endpoint,
    ForwardDestination,
    Limited,
    PythonDestination,
    Retention,
    RetentionKind,
    Route,
    SyncDestination,
    Web,
)
from inbox.config.routing import explain_refusal, matches
from inbox.config.sources import WHOLE_BODY, HeaderAuth, Source
from inbox.config.sync import CallKeys, MapField, PagedBy, Paging, Sweep, SyncRoute, resolve_paging
from inbox.config.values import is_name, to_title_case
from inbox.events.states import RETENTION_FLOOR_DAYS
from inbox.sources import PRESETS
from inbox.sources.base import Preset
from inbox.sources.expressions import find_entity_mistakes
from inbox.sources.signing import find_mistakes

_NUMBERED: tuple[PagedBy, ...] = ("page", "start")
_LINKED: tuple[PagedBy, ...] = ("link", "url")
_HAS_MEANING: Mapping[str, tuple[PagedBy, ...]] = {
    "first": _NUMBERED,
    "next": ("cursor", "url"),
    "more": (*_NUMBERED, "cursor"),
    "total": _NUMBERED,
}
"""Kinds of paging that use each key."""
_PLAIN = Paging(by="page")
_NEEDS_NEXT: Mapping[str, str] = {"cursor": "the value for {next}", "url": "the URL of the next page"}


def check_paging(path: tuple[str, ...], call: Sweep) -> Iterator[Mistake]:
    """Yield missing and meaningless keys of a sweep's `pages`."""
    path, pages = (*path, "pages"), resolve_paging(call.pages)
    if pages is None:
        return
    for key, kinds in _HAS_MEANING.items():
        if pages.by not in kinds and getattr(pages, key) != getattr(_PLAIN, key):
            valid = " or ".join(f'"{kind}"' for kind in kinds)
            yield Mistake((*path, key), f'means nothing with by = "{pages.by}"; remove it, or set by = {valid}')
    if pages.by in _NEEDS_NEXT and pages.next is None:
        yield Mistake((*path, "next"), f"is missing: the JMESPath that finds {_NEEDS_NEXT[pages.by]} in a page")
    if pages.by in _LINKED and (call.graphql is not None or call.method != "GET"):
        yield Mistake(path, 'follows links by GET alone; page by = "cursor"')


# --- Rules of `[retention]`: minimum ages that the guarantees need.


_DAY = 86400

FLOORS: dict[RetentionKind, tuple[int, str]] = {
    "payloads": (1, "a failed delivery has to be seen before its payload is gone"),
    "events": (RETENTION_FLOOR_DAYS, "the keys recognise late duplicates"),
    "attempts": (RETENTION_FLOOR_DAYS, "`relay verify` takes a gap in younger attempts for a loss"),
    "rejected": (1, "a mistake has to be seen before its traces are gone"),
    "duplicates": (1, "a mistake has to be seen before its traces are gone"),
    "relay_nodes": (1, "a crash loop has to be seen before its traces are gone"),
    "alerts": (1, "an alert is posted for as long as a day"),
    "commands": (1, "an answer has to be seen before it is gone"),
    "reveals": (30, "an audit asks weeks later who has seen a payload"),
    "throughput": (1, "the views of sources and destinations show the last day"),
}
"""Minimum age of each kind in days, with the reason."""


def check_retention(retention: Retention) -> Iterator[Mistake]:
    """Yield each age below its floor."""
    for kind, (days, reason) in FLOORS.items():
        if retention.get_age(kind) < days * _DAY:
            yield Mistake(("retention", kind), f"must be at least {days}d: {reason}")


# --- Rules of `[web]`: a valid origin, and a proxy that strangers can't impersonate.


_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.IGNORECASE)
_OF_BROWSERS = frozenset(
    {"authorization", "cookie", "host", "origin", "referer", "user-agent", "accept", "x-forwarded-for", "forwarded"}
)
"""Headers that browsers set, or that never hold a person's name."""
_LEAST_SESSION, _LONGEST_SESSION = 60, 31 * 86400


def check_web(web: Web) -> Iterator[Mistake]:
    """Yield invalid values in `[web]`."""
    if web.origin is not None and not _ORIGIN.fullmatch(web.origin):
        yield Mistake(("web", "origin"), 'must be a scheme and a host alone, such as "https://relay.example.com"')
    if not _LEAST_SESSION <= web.session <= _LONGEST_SESSION:
        yield Mistake(("web", "session"), "must be from 1m to 31d")
    for key, secret in (("users", web.users), ("tokens", web.tokens)):
        if secret is not None and (secret.not_before, secret.not_after) != (None, None):
            yield Mistake(("web", key), "must not have a validity period: to end access, remove the user's line")
    proxy = web.proxy
    if proxy is not None and any(ipaddress.ip_network(network).prefixlen == 0 for network in proxy.networks):
        yield Mistake(("web", "proxy", "networks"), "includes every address, so anyone could pose as any user")
    if proxy is not None and (not is_name(proxy.header) or proxy.header.lower() in _OF_BROWSERS):
        yield Mistake(("web", "proxy", "header"), 'must be a header of the proxy\'s own, such as "X-Forwarded-User"')


# --- Rules of sources: their presets, and the headers that destinations pass on.


_OF_HEADERS = re.compile(r"\bheaders\b")
_OWN_KEYS = frozenset().union(*(preset.own_keys for preset in PRESETS.values()))


def check_preset(path: tuple[str, ...], source: Source) -> Iterator[Mistake]:
    """Yield every key that the source's preset lacks or can't use."""
    preset = PRESETS.get(source.preset)
    if preset is None:
        yield Mistake((*path, "preset"), f"there is no preset {source.preset!r}; {nearest(source.preset, PRESETS)}")
        return
    yield from _check_own_keys(path, source, preset)
    yield from (_check_proofs if preset.proves_by == "secrets" else _check_own_proof)(path, source, preset)
    if isinstance(source.auth, HeaderAuth) and source.auth.name.lower() in preset.kept_headers:
        yield Mistake((*path, "auth", "name"), "is a header that is stored with the event, and no place for a secret")
    if source.secrets and source.public_url is None and any("{url}" in each.content for each in preset.signatures):
        yield Mistake((*path, "public_url"), f"is missing: {preset.title} signs the URL that it calls")
    yield from _check_dedup(path, source, preset)
    for key, text in () if source.entity is None else find_entity_mistakes(source.entity, preset):
        yield Mistake((*path, "entity", key), text)
    if source.signature is not None:
        for key, text in find_mistakes(source.signature, has_url=source.public_url is not None):
            yield Mistake((*path, "signature", key), text)
    if preset.reader is not None:
        try:
            preset.reader(source)
        except ValueError as error:
            yield Mistake((*path, preset.reads_by), str(error))


def _check_own_keys(path: tuple[str, ...], source: Source, preset: Preset) -> Iterator[Mistake]:
    for key in sorted(_OWN_KEYS | preset.needs):
        given = getattr(source, key) is not None
        if given and key in _OWN_KEYS - preset.own_keys:
            fits = " or ".join(name for name, each in sorted(PRESETS.items()) if key in each.own_keys)
            yield Mistake((*path, key), f"is for preset = {fits!r} only; remove it")
        elif not given and key in preset.needs:
            yield Mistake((*path, key), f"is missing, and preset = {source.preset!r} needs it")


def _check_dedup(path: tuple[str, ...], source: Source, preset: Preset) -> Iterator[Mistake]:
    """Yield keys that can't recognise duplicates or replays."""
    if source.dedup is not None and WHOLE_BODY in source.dedup and len(source.dedup) > 1:
        yield Mistake((*path, "dedup"), f"has {WHOLE_BODY!r}, which is all there is; remove the others")
    if source.max_age is None:
        return
    own = source.event.time if source.event is not None else None
    if own is not None and _OF_HEADERS.search(own):
        yield Mistake((*path, "max_age"), "is of no use with event.time in a header: anyone could change it")
    elif own is None and not preset.has_own_time:
        yield Mistake((*path, "max_age"), "is of no use: its requests have no time of the event that is signed")


def _check_proofs(path: tuple[str, ...], source: Source, preset: Preset) -> Iterator[Mistake]:
    """Yield mistakes of authentication. A source without it must say so explicitly."""
    by_signature = bool(preset.signatures or preset.prover or source.signature)
    title = preset.title
    if source.unsigned and source.secrets is not None:
        yield Mistake((*path, "unsigned"), "contradicts secrets, which ask for a signature; remove one of both")
    elif source.unsigned and not preset.always_signs:
        yield Mistake((*path, "unsigned"), f"says nothing: {title} doesn't always sign; remove it")
    if source.secrets is not None and not by_signature:
        yield Mistake(
            (*path, "secrets"),
            'are for signatures, which this provider lacks; use auth = { kind = "header", … }',
        )
    elif source.secrets is None and source.signature is not None:
        yield Mistake((*path, "secrets"), "are missing: signatures need a key")
    elif source.secrets is None and preset.always_signs and not source.unsigned:
        yield Mistake(
            (*path, "secrets"),
            f"are missing: {title} signs its webhooks, and the secret is {preset.shown_at}; write secrets ="
            ' ["env:NAME"], or unsigned = true to accept requests that anyone could have made',
        )
    elif source.secrets is None and source.auth is None:
        keys = "secrets" if by_signature and not source.unsigned else "auth"
        yield Mistake((*path, keys), 'is missing; to let anyone send, set auth = { kind = "none" }')
    elif source.secrets is None and source.tolerance is not None:
        yield Mistake((*path, "tolerance"), "is of no use without secrets: no time is signed")


def _check_own_proof(path: tuple[str, ...], source: Source, preset: Preset) -> Iterator[Mistake]:
    """Yield unusable keys of authentication, for presets that authenticate by another key."""
    for key, given in (("secrets", source.secrets is not None), ("unsigned", source.unsigned)):
        if given:
            yield Mistake((*path, key), f"is of no use: {preset.title} is known by {preset.proves_by}; remove it")
    if source.tolerance is not None:
        yield Mistake((*path, "tolerance"), "is of no use: no time of sending is signed; see max_age")


def check_pass_headers(config: Config) -> Iterator[Mistake]:
    """Yield every header that a destination can't pass on."""
    for name, destination in config.destinations.items():
        if isinstance(destination, ForwardDestination):
            for position, header in enumerate(destination.pass_headers):
                if (why := explain_refusal(header)) is not None:
                    yield Mistake(("destinations", name, "pass_headers", f"[{position}]"), why)


# --- everything else


_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_FUNCTION = re.compile(f"{_NAME}:{_NAME}")
"""Pattern of `package.module:name`."""
_NEEDED = (("create", "missing", True), ("delete", "gone", True), ("deactivate", "gone", False))
"""Tables of a sync route, each with the key that needs it if set to the table's name, and True if that is the default."""
_WRITES = ("find", "create", "update", "delete", "deactivate")
"""Calls of a sync route to its destination."""


def check_links(config: Config, names: Mapping[str, Collection[str]]) -> Iterator[Mistake]:
    """Yield every unresolved name, unusable sync route and zero timeout.

    `names` includes tables that `config` omits because of their mistakes.
    """
    for section, endpoints in (("apis", config.apis), ("destinations", config.destinations)):
        for name, endpoint in endpoints.items():
            if endpoint.timeout <= 0:
                yield Mistake((section, name, "timeout"), "must be longer than nothing; leave it out for 15s")
            if isinstance(endpoint, PythonDestination):
                yield from _check_reference((section, name, "function"), endpoint.function)
    yield from check_pass_headers(config)
    yield from check_retention(config.retention)
    yield from check_web(config.web)
    for name, source in config.sources.items():
        yield from check_preset(("sources", name), source)
        yield from _check_sweeps(("sources", name, "sweeps"), source, config, names["apis"])
    for name, route in config.routes.items():
        path = ("routes", name)
        yield from _check_name((*path, "source"), "source", route.source, names["sources"])
        yield from _check_name((*path, "destination"), "destination", route.destination, names["destinations"])
        if route.destination in config.destinations:
            yield from _check_kind(path, route, config.destinations[route.destination])
        if route.sync is not None:
            yield from _check_sync((*path, "sync"), route, route.sync, config, names["apis"])


def _check_sync(
    path: tuple[str, ...], route: Route, sync: SyncRoute, config: Config, apis: Collection[str]
) -> Iterator[Mistake]:
    """Yield mistakes in the sync table of a route."""
    if sync.fetch is not None:
        yield from _check_name((*path, "fetch", "api"), "api", sync.fetch.api, apis)
        yield from _check_credentials((*path, "fetch"), sync.fetch, config.apis.get(sync.fetch.api))
    elif route.lane == "event" and sync.update is not None:
        text = 'lets an older body overwrite a newer one, as the route has no fetch; set lane = "entity"'
        yield Mistake((*path[:-1], "lane"), text)
    for step in _WRITES:
        yield from _check_credentials((*path, step), getattr(sync, step), config.destinations.get(route.destination))
    yield from _check_steps(path, sync)
    yield from check_map(path, sync)


def _check_sweeps(path: tuple[str, ...], source: Source, config: Config, apis: Collection[str]) -> Iterator[Mistake]:
    """Yield mistakes in sweeps. There is one watermark for each entity type, so two sweeps of a type would share it."""
    swept: set[str] = set()
    for number, sweep in enumerate(source.sweeps):
        where = (*path, f"[{number}]")
        yield from _check_name((*where, "api"), "api", sweep.api, apis)
        if sweep.entity_type in swept:
            yield Mistake(
                (*where, "entity_type"), f"{sweep.entity_type!r} has a sweep already; one table for each type"
            )
        yield from _check_credentials(where, sweep, config.apis.get(sweep.api))
        yield from check_paging(where, sweep)
        if sweep.every is not None and sweep.every <= 0:
            yield Mistake((*where, "every"), "must be longer than nothing; leave it out for `relay sweep` by hand")
        routes = [each for each in config.routes.values() if each.source == source.name]
        yield from _check_untaken(where, sweep, routes)
        yield from _check_event_body(where, sweep, routes)
        swept.add(sweep.entity_type)


def _check_untaken(path: tuple[str, ...], sweep: Sweep, routes: Sequence[Route]) -> Iterator[Mistake]:
    """Yield a mistake if no route takes the sweep's events although some take its entity type."""
    fit = [each.when for each in routes if not each.when.entity_type or sweep.entity_type in each.when.entity_type]
    if not fit or any(matches(when, sweep.entity_type, sweep.event_type, sweep.action) for when in fit):
        return
    yield Mistake(
        (*path, "event_type"),
        f"{sweep.event_type!r} with the action {sweep.action!r} is taken by no route of {sweep.entity_type!r}",
    )


def _check_event_body(path: tuple[str, ...], sweep: Sweep, routes: Sequence[Route]) -> Iterator[Mistake]:
    """Yield a mistake if a route would read a sweep's own body as the entity."""
    change = (sweep.entity_type, sweep.event_type, sweep.action)
    for route in routes if sweep.event_body is None else ():
        if route.sync is not None and route.api is None and matches(route.when, *change):
            text = f"is missing: route {route.name!r} has no fetch, so it maps the body; shape it like the webhook's"
            yield Mistake((*path, "event_body"), text)


def _check_credentials(path: tuple[str, ...], call: CallKeys | None, endpoint: Limited | None) -> Iterator[Mistake]:
    """Yield headers of a call that would replace its endpoint's credentials."""
    if call is not None and isinstance(endpoint, Endpoint) and isinstance(endpoint.auth, ApiHeader):
        name = endpoint.auth.name
        if to_title_case(name) in map(to_title_case, call.headers):
            yield Mistake((*path, "headers"), f"{name!r} is set by the endpoint's auth; remove it here")


def _check_name(path: tuple[str, ...], kind: str, name: str, existing: Collection[str]) -> Iterator[Mistake]:
    if name not in existing:
        yield Mistake(path, f"there is no {kind} {name!r}; {nearest(name, existing)}")


def _check_kind(path: tuple[str, ...], route: Route, destination: Destination) -> Iterator[Mistake]:
    is_sync = isinstance(destination, SyncDestination)
    if is_sync and route.sync is None:
        yield Mistake(
            path, f"{route.destination!r} is a sync destination; add [routes.{route.name}.sync] with fetch and map"
        )
    elif not is_sync and route.sync is not None:
        yield Mistake(
            (*path, "sync"),
            f'{route.destination!r} is not a sync destination; give it kind = "sync", or remove this table',
        )


def _check_steps(path: tuple[str, ...], sync: SyncRoute) -> Iterator[Mistake]:
    for step, key, is_default in _NEEDED:
        if getattr(sync, key) == step and getattr(sync, step) is None:
            default = " (the default)" if is_default else ""
            yield Mistake((*path, step), f'is missing, and {key} = "{step}"{default} needs it; or set {key} = "skip"')
    if sync.find is None and sync.update is None and sync.create is None:
        yield Mistake(path, "does nothing without a create or an update table")
    if sync.find is None and sync.update is not None and sync.update.if_match is not None:
        yield Mistake((*path, "update", "if_match"), "matches the version that find gives; add find = { path = … }")
    if sync.deactivate is not None and not sync.deactivate.body and sync.deactivate.graphql is None:
        yield Mistake((*path, "deactivate", "body"), "is missing")


_DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)
_DIRECTIVES = frozenset("YymbBdjaAHIMSfpz%")
"""Date directives that work the same on every platform."""
_SOME_DAY = datetime(2001, 11, 30, tzinfo=UTC)


def check_map(path: tuple[str, ...], sync: SyncRoute) -> Iterator[Mistake]:
    """Yield the mistakes in the map of the sync table at `path` that can be found without compiling it."""
    if not sync.map and sync.transform is None:
        yield Mistake((*path, "map"), "at least one field must be mapped, or a transform given")
    for name, field in sync.map.items():
        if isinstance(field, MapField):
            yield from _check_field((*path, "map", name), field)
    if sync.transform is not None:
        yield from _check_reference((*path, "transform"), sync.transform)
    for name in sync.clear_when_absent:
        mapped = sync.map.get(name)
        if mapped is None and sync.transform is None:  # a transform may give any field
            yield Mistake(
                (*path, "clear_when_absent"), f"{name!r} is not a field of the map; {nearest(name, sync.map)}"
            )


def _check_field(path: tuple[str, ...], field: MapField) -> Iterator[Mistake]:
    ways = {"from": field.expression, "value": field.value, "function": field.function}
    given = [name for name, way in ways.items() if way is not None]
    if len(given) != 1:
        has = f"this has {' and '.join(given)}" if given else "this has none"
        yield Mistake(path, f"a field takes one of from, value and function; {has}")
    if field.function is not None:
        yield from _check_reference((*path, "function"), field.function)
    yield from _check_dates(path, field)


def _check_reference(path: tuple[str, ...], text: str) -> Iterator[Mistake]:
    if _FUNCTION.fullmatch(text) is None:
        yield Mistake(path, f'expected "package.module:name", got {text!r}')


def _check_dates(path: tuple[str, ...], field: MapField) -> Iterator[Mistake]:
    for name, form in (("read", field.read), ("write", field.write)):
        if form is None:
            continue
        if field.cast not in {"date", "datetime"}:
            yield Mistake((*path, name), 'is about dates; add cast = "date" or cast = "datetime"')
        unknown = [letter for letter in _DIRECTIVE.findall(form) if letter not in _DIRECTIVES]
        if unknown:
            valid = " ".join(f"%{letter}" for letter in sorted(_DIRECTIVES))
            yield Mistake((*path, name), f"{form!r} has %{unknown[0]}; valid here: {valid}")
        # Python 3.13 warns if strptime parses a day without a year.
        elif name == "read" and ({"Y", "y"}.isdisjoint(_DIRECTIVE.findall(form)) or not _names_a_day(form)):
            yield Mistake((*path, name), f"{form!r} must name a day with its year, once, such as %Y-%m-%d")


def _names_a_day(form: str) -> bool:
    try:
        read = datetime.strptime(_SOME_DAY.strftime(form), form)  # noqa: DTZ007  # tries the format; no time is kept
    except (ValueError, re.error):
        return False
    return (read.year, read.month, read.day) == (_SOME_DAY.year, _SOME_DAY.month, _SOME_DAY.day)
