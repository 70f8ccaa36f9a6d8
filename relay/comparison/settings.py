"""The settings in which two configurations differ, as far as they change what is sent, where to, or in which order. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from inbox.config.model import Config
from inbox.config.source import Source
from inbox.config.types import Secret

COMPARED: Mapping[str, frozenset[str]] = {
    "sources": frozenset({"preset", "dedup", "event", "pattern", "entity_type", "max_age", "max_body"}),
    "apis": frozenset({"base_url", "headers"}),
    "destinations": frozenset(
        {"kind", "url", "base_url", "function", "signing_secret", "pass_headers", "headers", "text"}
    ),
    "routes": frozenset({"source", "destination", "when", "lane", "ordering", "on_dead", "sync"}),
}
"""Keys of each section that decide routes, lanes and requests. Other settings are only named when they differ."""

_READS_BY = COMPARED["sources"] - {"max_age", "max_body"}
"""Keys of a source that decide how a request is read."""
_SHOWN_BY_EVENTS = frozenset({"destination.text", "sync.fetch.path", "sync.fetch.method", "sync.fetch.graphql"})
_TABLES_SHOWN_BY_EVENTS = ("sync.fetch.params.", "sync.fetch.body.", "sync.fetch.headers.")
"""Settings whose effect is found by evaluating them for each event."""
_OF_ANY_KIND = frozenset(
    {"ordering", "on_dead", "destination.kind", "destination.url", "destination.base_url", "destination.function"}
)
"""Settings that are comparable between kinds of destinations."""
MASK = "…"
_ABSENT = object()


class SettingChange(msgspec.Struct, frozen=True):
    """A setting that differs; values of secrets are masked."""

    name: str
    before: Any
    after: Any


def leaves(table: object, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a table with its dotted key; a kind of table that has a tag has it as `kind`."""
    if isinstance(table, msgspec.Struct):
        tag = table.__struct_config__.tag
        if tag is not None:
            yield f"{before}kind", tag
        for name, key in zip(table.__struct_fields__, table.__struct_encode_fields__, strict=True):
            if name != "name":  # each table's own, which its key has
                yield from _inner(getattr(table, name), f"{before}{key}")
    elif isinstance(table, Mapping):
        for key, value in table.items():
            yield from _inner(value, f"{before}{key}")


def same(old: object, new: object) -> bool:
    """Return True when two tables have the same values."""
    return _comparable(old) == _comparable(new)


def reads_alike(old: Source, new: Source) -> bool:
    """Return True when both read a request to the same event."""
    return all(_comparable(getattr(old, key)) == _comparable(getattr(new, key)) for key in _READS_BY)


def route_settings(old: Config, new: Config, name: str) -> tuple[SettingChange, ...]:
    """Return the settings that differ on a route of both, besides those whose effect each event shows."""
    before, after = _of_route(old, name), _of_route(new, name)
    if before.get("destination.kind") != after.get("destination.kind"):
        before, after = _of_any_kind(before), _of_any_kind(after)
    return tuple(_differing(before, after))


def is_shown_by_events(name: str) -> bool:
    """Return True for a setting whose effect is evaluated for each event."""
    return name in _SHOWN_BY_EVENTS or name.startswith(_TABLES_SHOWN_BY_EVENTS)


def other_settings(old: Config, new: Config) -> list[str]:
    """Return the keys that differ and change neither routes, nor lanes, nor requests: without their values."""
    names = []
    for section in Config.__struct_fields__:
        before, after = getattr(old, section), getattr(new, section)
        if section not in COMPARED:
            found = _differing(dict(leaves(before, f"{section}.")), dict(leaves(after, f"{section}.")))
            names += [each.name for each in found if section != "database"]
            continue
        for name in sorted(before.keys() & after.keys()):  # those of one of them alone show in routes
            found = _differing(dict(leaves(before[name])), dict(leaves(after[name])))
            names += [f"{section}.{name}.{each.name}" for each in found if not _is_compared(section, each.name)]
    return names


def _is_compared(section: str, key: str) -> bool:
    return key.partition(".")[0] in COMPARED[section] and not key.startswith("sync.listing.")


def _of_route(config: Config, name: str) -> dict[str, Any]:
    route = config.routes[name]
    destination = config.destinations[route.destination]
    found: dict[str, Any] = {"ordering": config.ordering_of(route), "on_dead": route.on_dead}
    found |= _chosen(destination, "destinations", "destination.")
    if route.sync is not None:
        found |= {
            key: value
            for key, value in leaves(route.sync, "sync.")
            if not key.startswith(("sync.listing.", "sync.fetch.api"))
        }
        found |= _chosen(config.apis[route.sync.fetch.api], "apis", "api.")
    return found


def _chosen(table: object, section: str, before: str) -> dict[str, Any]:
    return {f"{before}{key}": value for key, value in leaves(table) if key.partition(".")[0] in COMPARED[section]}


def _of_any_kind(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key in _OF_ANY_KIND}


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[SettingChange]:
    for name in sorted({*before, *after}):
        old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if _comparable(old) != _comparable(new):
            yield SettingChange(name, _shown(name, old), _shown(name, new))


def _inner(value: object, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, msgspec.Struct | Mapping):
        yield from leaves(value, f"{key}.")
    elif value is not None:
        yield key, value


def _comparable(value: object) -> object:
    """Convert a value so that equal ones compare equal: a secret by its reference."""
    if isinstance(value, Secret):
        return ("secret", value.reference, value.not_before, value.not_after)
    if isinstance(value, msgspec.Struct | Mapping):
        return {key: _comparable(inner) for key, inner in leaves(value)}
    if isinstance(value, list):
        return [_comparable(inner) for inner in value]
    return value


def masked(name: str, value: Any) -> Any:  # noqa: ANN401  # any JSON
    """Return a value for people. That of a header may be a secret, and is masked."""
    return MASK if ".headers." in name and value is not None else value


def _shown(name: str, value: object) -> Any:  # noqa: ANN401  # any JSON
    """Convert a value for people: neither a secret itself, nor what may be one in a URL or in a header."""
    if value is _ABSENT:
        return None
    if isinstance(value, Secret):
        if value.names_a_place:
            return value.reference
        return _place(value.reference, with_path=False) if name.endswith(".url") else MASK
    if name.endswith(".base_url"):
        return _place(str(value), with_path=True)
    if isinstance(value, list):
        return [_shown(name, inner) for inner in value]
    return masked(name, msgspec.to_builtins(value, enc_hook=str))


def _place(url: str, *, with_path: bool) -> str:
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return MASK
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path if with_path else '/' + MASK}"
