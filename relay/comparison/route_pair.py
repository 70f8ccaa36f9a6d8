"""A route in two configurations: the settings in which it differs, and the parts of its requests. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from inbox.config.endpoint import SyncDestination
from inbox.config.model import Config, Route
from inbox.errors import collect_config_errors
from relay.comparison.parts import NO_PARTS, Parts, parts_of
from relay.comparison.reading import Identified
from relay.comparison.settings import SettingChange, is_shown_by_events, route_settings, same

_MAP = "sync.map."
_SHOWN_BY_ENTITIES = (_MAP, "sync.transform", "sync.clear_when_absent")
"""Settings whose effect is found by mapping entities."""


class RoutePair(msgspec.Struct, frozen=True):
    """A route as each configuration has it for one source."""

    name: str
    old: Route | None
    new: Route | None
    old_parts: Parts = NO_PARTS
    new_parts: Parts = NO_PARTS
    settings: tuple[SettingChange, ...] = ()
    """The settings that differ, without those whose effect is compared event by event."""
    is_replaced: bool = False
    """It goes to another kind of destination, so that its requests can't be compared."""
    evaluates: bool = False
    """Its parts may differ for the same event."""
    is_changed: bool = False
    """A setting differs, so that the same event may be sent otherwise."""
    fetches: bool = False
    """Entities are to be fetched and mapped under both: those of events that it newly takes, or that may be sent otherwise."""

    @property
    def reads_body(self) -> bool:
        """True when its parts may look into the body."""
        return self.old_parts.reads_body or self.new_parts.reads_body

    @property
    def needs_payload(self) -> bool:
        """True when no event on it can be compared by its columns alone."""
        return self.fetches or (self.evaluates and self.reads_body)

    def differs_for(self, old: Identified | None, new: Identified) -> bool:
        """Return True when the event may be sent otherwise than today; None: today the route doesn't take it."""
        return self.is_changed or old != new

    def evaluates_for(self, old: Identified | None, new: Identified) -> bool:
        """Return True when the parts have to be evaluated for the event; `old` is as for `differs_for`."""
        return self.evaluates or old != new


def pair_of(
    old: Config, new: Config, name: str, before: Route | None, after: Route | None, *, fetches: bool
) -> RoutePair:
    """Compare the tables of a route; None: the configuration has none of that name for the source.

    Raises:
        ConfigError: a template or an expression is wrong. The text has a line for each.
    """
    compiled: Mapping[str, Callable[[], Parts]] = {
        side: partial(parts_of, config, route)
        for side, config, route in (("old", old, before), ("new", new, after))
        if route is not None
    }
    parts = collect_config_errors(compiled)
    is_sync = after is not None and isinstance(new.destinations[after.destination], SyncDestination)
    if before is None or after is None:
        return RoutePair(
            name,
            before,
            after,
            new_parts=parts.get("new", NO_PARTS),
            evaluates=after is not None,
            is_changed=True,
            fetches=fetches and is_sync,
        )
    differing = route_settings(old, new, name)
    is_replaced = any(setting.name == "destination.kind" for setting in differing)
    old_parts = parts["old"] if is_replaced else _comparable(parts["old"], parts["new"], after)
    new_parts = parts["new"] if is_replaced else _comparable(parts["new"], parts["old"], before)
    fields = [name for name in {**old_parts.of, **new_parts.of} if name.startswith(_MAP)]
    is_mapped = fetches and is_sync and not is_replaced
    shown = [setting.name for setting in differing if _is_evaluated(setting.name, fields)]
    elsewhere = [setting.name for setting in differing if is_mapped and setting.name.startswith(_SHOWN_BY_ENTITIES)]
    return RoutePair(
        name,
        before,
        after,
        old_parts,
        new_parts,
        tuple(setting for setting in differing if setting.name not in {*shown, *elsewhere}),
        is_replaced=is_replaced,
        evaluates=is_replaced or bool(shown),
        is_changed=bool(differing),
        fetches=fetches and is_sync and (bool(differing) or _takes_others(old, new, before, after)),
    )


def _comparable(parts: Parts, others: Parts, other: Route) -> Parts:
    """Leave out fields that only this side finds in the event: the other one maps them from the entity."""
    fields = {} if other.sync is None else other.sync.map
    kept = {
        name: part
        for name, part in parts.of.items()
        if name in others.of or not name.startswith(_MAP) or name.removeprefix(_MAP) not in fields
    }
    return Parts(kept, reads_body=parts.reads_body)


def _takes_others(old: Config, new: Config, before: Route, after: Route) -> bool:
    """Return True when the route may take other events than today, or get the same ones with other fields."""
    return before.when != after.when or not same(old.sources[before.source], new.sources[after.source])


def _is_evaluated(name: str, fields: list[str]) -> bool:
    return is_shown_by_events(name) or any(name == field or name.startswith(f"{field}.") for field in fields)
