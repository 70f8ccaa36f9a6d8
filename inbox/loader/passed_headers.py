"""Rules for `pass_headers` of a forward destination: each name can be stored and sent, and collides with nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from inbox.config.endpoint import ApiBasic, ApiBearer, ApiHeader, ApiOauth2, ForwardDestination
from inbox.config.forward_headers import fault
from inbox.config.mistakes import Mistake
from inbox.config.model import Config
from inbox.config.source import HeaderAuth, Source
from inbox.sources import PRESETS


def passed_header_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield every header that a destination can't pass on."""
    for name, destination in config.destinations.items():
        if isinstance(destination, ForwardDestination) and destination.pass_headers:
            sources = {route.source for route in config.routes.values() if route.destination == name}
            taken = _taken(destination) | {
                header: why
                for source in sorted(sources & config.sources.keys())
                for header, why in _proofs(source, config.sources[source]).items()
            }
            yield from _of_destination(("destinations", name, "pass_headers"), destination, taken)


def _of_destination(
    path: tuple[str, ...], destination: ForwardDestination, taken: Mapping[str, str]
) -> Iterator[Mistake]:
    seen: set[str] = set()
    for position, header in enumerate(destination.pass_headers):
        lower = header.lower()
        why = fault(header)
        if why is None and lower in taken:
            why = f"{header!r} {taken[lower]}"
        if why is None and lower in seen:
            why = f"{header!r} is there twice; names of headers are the same in any case"
        seen.add(lower)
        if why is not None:
            yield Mistake((*path, f"[{position}]"), why)


def _taken(destination: ForwardDestination) -> dict[str, str]:
    """Return the names, in lower case, that every call of the destination has already."""
    taken = {
        header.lower(): "is in headers of this destination, too; remove one of the two"
        for header in destination.headers
    }
    match destination.auth:
        case ApiHeader(name=header):
            taken[header.lower()] = "is the header of this destination's auth, too; remove it here"
        case ApiBasic() | ApiBearer() | ApiOauth2() | None:  # Authorization, which is never passed on
            pass
    return taken


def _proofs(name: str, source: Source) -> dict[str, str]:
    """Return the names, in lower case, of the headers by which a source proves itself. They are never stored."""
    found = [source.auth.name] if isinstance(source.auth, HeaderAuth) else []
    signatures = PRESETS[source.preset].signatures if source.preset in PRESETS else ()
    found += [each.header for each in (*signatures, source.signature) if each is not None]
    why = f"is the header by which [sources.{name}] proves itself, and is never stored; remove it"
    return dict.fromkeys(map(str.lower, found), why)
