"""Random pairs of configurations: the comparison finds exactly what a receiver and a relay would do otherwise."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from inbox.config.model import Config
from inbox.errors import RequestError
from inbox.events.event import Event
from inbox.loader.load import parse_config
from relay.comparison.compare import Comparison
from relay.comparison.differences import ConfigDifference
from relay.comparison.lanes import SeenKeys
from relay.comparison.reading import Payload
from tests.helpers.comparing import RECEIVED, arrived, events_of

PAIRS = 40
SEED = 1
FIELDS = ("entity_type", "entity_id", "event_type", "action", "event_id", "dedup_key", "occurred_at")
FAILS = object()


def the_id(event: Event) -> str:
    if event.entity_id is None:
        raise KeyError("entity_id")
    return event.entity_id


Part = Callable[[Event, Mapping[str, Any]], object]
TEXTS: Mapping[str, Part] = {
    "{event.entity_id} is {event.body.state}": lambda e, b: f"{the_id(e)} is {b['state']}",
    "{event.entity_id} was {event.body.state || 'x'}": lambda e, b: f"{the_id(e)} was {b.get('state', 'x')}",
    "{event.event_type}": lambda e, _: e.event_type,
}
PATHS: Mapping[str, Part] = {
    "/orders/{event.entity_id}": lambda e, _: f"GET /orders/{the_id(e)}",
    "/kinds/{event.event_type}": lambda e, _: f"GET /kinds/{e.event_type}",
    "/states/{event.body.state}": lambda _, b: f"GET /states/{b['state']}",
}
MAPS: Mapping[str, Part] = {
    "event.entity_id": lambda e, _: e.entity_id,
    "event.body.state": lambda _, b: b.get("state"),
}


class Made(msgspec.Struct, frozen=True):
    """A random configuration, and the parts of each route's requests in plain Python."""

    config: Config
    source: Sequence[str]
    """The lines of its source."""
    chosen: Sequence[str]
    """A text, a path, and a field of a map."""
    parts: Mapping[str, Mapping[str, Part]]


def a_source(pick: random.Random) -> list[str]:
    fields = {
        "type": pick.choice(["body.kind", "body.sort || body.kind"]),
        "entity_type": pick.choice(["'ORDER'", "body.etype"]),
        "entity_id": pick.choice(["body.order", "body.customer"]),
        "time": "body.at",
    }
    actions = pick.choice(["", ', actions = { paid = "create", gone = "delete" }'])
    dedup = pick.choice(["", 'dedup = ["kind"]', 'dedup = ["id"]'])
    given = ", ".join(f'{name} = "{value}"' for name, value in fields.items())
    return ["[sources.shop]", 'preset = "custom"', 'auth = { kind = "none" }', dedup, f"event = {{ {given}{actions} }}"]


def made(pick: random.Random, like: Made | None = None) -> Made:
    """Make a configuration; one that is `like` another has in half of the cases its source, its text and its call."""
    source = like.source if like and pick.random() < 0.5 else a_source(pick)
    choices = [pick.choice([*of]) for of in (TEXTS, PATHS, MAPS)]
    text, path, value = chosen = like.chosen if like and pick.random() < 0.5 else choices
    limits = ("", "max_body = 95", "max_body = 4000"), ("", 'max_age = "61m"')
    lines = [*source, *map(pick.choice, limits)]
    lines += ["[destinations.chat]", 'kind = "slack"', 'url = "env:CHAT_URL"', f'text = "{text}"']
    lines += ["[destinations.to]", 'kind = "forward"', 'url = "https://to.example.com"']
    lines += ["[destinations.erp]", 'kind = "sync"', 'base_url = "https://erp.example.com"']
    lines += ["[apis.shop]", 'base_url = "https://shop.example.com"']
    parts: dict[str, dict[str, Part]] = {}
    for name, kinds in {"a": ("chat", "to"), "b": ("chat", "erp"), "c": ("erp",)}.items():
        if pick.random() < 0.2:
            continue
        kind = pick.choice(kinds)
        lines += [f"[routes.{name}]", 'source = "shop"', f'destination = "{kind}"']
        lines += [pick.choice(["", 'when = { event_type = ["paid"] }', 'when = { action = ["create"] }'])]
        lines += [pick.choice(["", 'lane = "route"', 'lane = "event"'])]
        parts[name] = {"destination.text": TEXTS[text]} if kind == "chat" else {}
        if kind == "erp":
            calls = (f'{call} = {{ path = "/{call}" }}' for call in ("create", "update", "delete"))
            lines += [f"[routes.{name}.sync]", f'fetch = {{ api = "shop", path = "{path}" }}', *calls]
            lines += [f'map = {{ state = "{value}", total = "entity.total" }}']
            parts[name] = {"sync.fetch": PATHS[path], "sync.map.state": MAPS[value]}
    return Made(parse_config("\n".join(lines)), source, chosen, parts)


def bodies(pick: random.Random) -> Iterator[bytes]:
    maybe = {"customer": "ab", "etype": ["X", "ORDER"], "state": "no", "id": range(5), "sort": ["paid"]}
    for second in range(12):
        body = {"kind": pick.choice(["paid", "sent", "gone"]), "order": pick.randint(1, 3)}
        body["at"] = f"2026-11-27T1{pick.randint(0, 1)}:00:{second:02d}Z"
        yield json.dumps(body | {name: pick.choice(of) for name, of in maybe.items() if pick.random() < 0.8}).encode()


def received(config: Config, body: bytes) -> Event | None:
    """The event that a receiver makes of the body; None: it answers an error."""
    source = config.sources["shop"]
    if source.max_body is not None and len(body) > source.max_body:
        return None
    try:
        (event,) = events_of(config, [body])
    except RequestError:
        return None
    is_old = source.max_age is not None and RECEIVED - event.occurred_at > timedelta(seconds=source.max_age)
    return None if is_old else event


def stored(config: Config, arriving: Iterator[bytes]) -> list[Event]:
    events: dict[str, Event] = {}
    for body in arriving:
        if (event := received(config, body)) is not None:
            events.setdefault(event.dedup_key, event)
    return [*events.values()]


def expected(old: Made, new: Made, events: list[Event]) -> Counter[tuple[object, ...]]:
    found: Counter[tuple[object, ...]] = Counter()
    lanes: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    keys = []
    for seq, event in enumerate(events, 1):
        again = received(new.config, event.body)
        if again is None:
            found["rejected", seq] += 1
            continue
        keys.append(again.dedup_key)
        found.update(("event", seq, name) for name in FIELDS if getattr(event, name) != getattr(again, name))
        before, after = ({each.route: each.lane for each in of.enrolments} for of in (event, again))
        found.update(("removed", seq, route) for route in before.keys() - after.keys())
        for route, lane in after.items():
            if route not in before:
                found["added", seq, route] += 1
            else:
                lanes[route].add((before[route], lane))
                found["lane", seq, route] += before[route] != lane
            found.update(
                (kind, seq, route, name)
                for name, kind in sent(old, new, route, event if route in before else None, again)
            )
    found["duplicate",] += len(keys) - len({*keys})
    for route, pairs in lanes.items():
        for kind, side in (("split", 0), ("merge", 1)):
            found[kind, route] += sum(count > 1 for count in Counter(pair[side] for pair in pairs).values())
    return +found


def sent(old: Made, new: Made, route: str, before: Event | None, after: Event) -> Iterator[tuple[str, str]]:
    """Yield each part of the route's request that is sent otherwise, with the kind of the difference."""
    is_comparable = before is not None and kind_of(old, route) == kind_of(new, route)
    for name, part in new.parts[route].items():
        now = value(part, after)
        was = value(old.parts[route][name], before) if is_comparable and before is not None else None
        if now is FAILS:
            if was is not FAILS:
                yield name, "fails"
        elif was is FAILS:
            yield name, "works"
        elif is_comparable and was != now:
            yield name, "value"


def kind_of(of: Made, route: str) -> type:
    return type(of.config.destinations[of.config.routes[route].destination])


def value(part: Part, event: Event) -> object:
    try:
        return part(event, json.loads(event.body))
    except KeyError:
        return FAILS


def compared(old: Config, new: Config, events: list[Event]) -> Counter[tuple[object, ...]]:
    """Count what the comparison finds when it is given only the payloads that it asks for."""
    comparison, found = Comparison(old, new), Counter[tuple[object, ...]]()
    with SeenKeys() as seen:
        for seq, event in reversed([*enumerate(events, 1)]):
            row = arrived(seq, event)
            payload = Payload(event.headers, event.body) if comparison.needs_payload(row) else None
            for each in comparison.compare(row, payload, seen):
                if isinstance(each, ConfigDifference) and each.kind not in {"setting", "duplicate"}:
                    found[tuple(part for part in (each.kind, seq, each.route, each.name) if part is not None)] += 1
                elif isinstance(each, ConfigDifference):
                    found["duplicate",] += each.kind == "duplicate"
        for change in seen.lane_changes():
            found[change.kind, change.route] += change.lanes
    counts = comparison.counts
    assert (counts.events, counts.without_payload.count, counts.stored_otherwise.count) == (len(events), 0, 0)
    return +found


def test_the_differences_are_those_between_what_both_store_and_send() -> None:
    pick = random.Random(SEED)
    kinds: Counter[object] = Counter()
    for number in range(PAIRS):
        old = made(pick)
        new = made(pick, old)
        events = stored(old.config, bodies(pick))
        wanted = expected(old, new, events)
        found = compared(old.config, new.config, events)
        assert found == wanted, f"pair {number}: missed {wanted - found}, and found too much: {found - wanted}"
        kinds.update(key[0] for key in found)
    assert {"added", "removed", "lane", "split", "merge", "rejected", "duplicate", "event", "value", "fails"} <= {
        *kinds
    }
