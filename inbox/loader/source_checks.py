"""Mistakes of sources: their presets, and the headers that destinations pass on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from inbox.config.mistakes import Mistake, nearest
from inbox.config.model import Config, ForwardDestination
from inbox.config.routing import fault
from inbox.config.sources import WHOLE_BODY, HeaderAuth, Source
from inbox.sources import PRESETS
from inbox.sources.base import Preset
from inbox.sources.signing import mistakes

_OF_HEADERS = re.compile(r"\bheaders\b")
_OWN_KEYS = frozenset().union(*(preset.own_keys for preset in PRESETS.values()))


def preset_mistakes(path: tuple[str, ...], source: Source) -> Iterator[Mistake]:
    """Yield every key that the source's preset can't use, or lacks."""
    preset = PRESETS.get(source.preset)
    if preset is None:
        yield Mistake((*path, "preset"), f"there is no preset {source.preset!r}; {nearest(source.preset, PRESETS)}")
        return
    yield from _own_keys(path, source, preset)
    yield from (_proofs if preset.proves_by == "secrets" else _proofs_by_own_key)(path, source, preset)
    if isinstance(source.auth, HeaderAuth) and source.auth.name.lower() in preset.kept_headers:
        yield Mistake((*path, "auth", "name"), "is a header that is stored with the event, and no place for a secret")
    if source.secrets and source.public_url is None and any("{url}" in each.content for each in preset.signatures):
        yield Mistake((*path, "public_url"), f"is missing: {preset.title} signs the URL that it calls")
    yield from _repeats(path, source, preset)
    if source.signature is not None:
        for key, text in mistakes(source.signature, has_url=source.public_url is not None):
            yield Mistake((*path, "signature", key), text)
    if preset.reader is not None:
        try:
            preset.reader(source)
        except ValueError as error:
            yield Mistake((*path, preset.reads_by), str(error))


def _own_keys(path: tuple[str, ...], source: Source, preset: Preset) -> Iterator[Mistake]:
    for key in sorted(_OWN_KEYS | preset.needs):
        given = getattr(source, key) is not None
        if given and key in _OWN_KEYS - preset.own_keys:
            fits = " or ".join(name for name, each in sorted(PRESETS.items()) if key in each.own_keys)
            yield Mistake((*path, key), f"is for preset = {fits!r} only; remove it")
        elif not given and key in preset.needs:
            yield Mistake((*path, key), f"is missing, and preset = {source.preset!r} needs it")


def _repeats(path: tuple[str, ...], source: Source, preset: Preset) -> Iterator[Mistake]:
    """Yield keys that could not recognise a duplicate."""
    if source.dedup is not None and WHOLE_BODY in source.dedup and len(source.dedup) > 1:
        yield Mistake((*path, "dedup"), f"has {WHOLE_BODY!r}, which is all there is; remove the others")
    if source.max_age is None:
        return
    own = source.event.time if source.event is not None else None
    if own is not None and _OF_HEADERS.search(own):
        yield Mistake((*path, "max_age"), "is of no use with event.time in a header: anybody could write another")
    elif own is None and not preset.has_own_time:
        yield Mistake((*path, "max_age"), "is of no use: its requests have no time of the event that is signed")


def _proofs(path: tuple[str, ...], source: Source, preset: Preset) -> Iterator[Mistake]:
    """Yield mistakes of authentication. A source without any has to say so explicitly."""
    by_signature = bool(preset.signatures or preset.prover or source.signature)
    title = preset.title
    if source.unsigned and source.secrets is not None:
        yield Mistake((*path, "unsigned"), "contradicts secrets, which ask for a signature; remove one of both")
    elif source.unsigned and not preset.always_signs:
        yield Mistake((*path, "unsigned"), f"says nothing: {title} doesn't always sign; remove it")
    if source.secrets is not None and not by_signature:
        yield Mistake(
            (*path, "secrets"),
            'are what a provider signs with, and this one does not; use auth = { kind = "header", … }',
        )
    elif source.secrets is None and source.signature is not None:
        yield Mistake((*path, "secrets"), "are missing: what is signed with?")
    elif source.secrets is None and preset.always_signs and not source.unsigned:
        yield Mistake(
            (*path, "secrets"),
            f"are missing: {title} signs its webhooks, and the secret is {preset.shown_at}; write secrets ="
            ' ["env:NAME"], or unsigned = true to accept requests that anybody could have made',
        )
    elif source.secrets is None and source.auth is None:
        keys = "secrets" if by_signature and not source.unsigned else "auth"
        yield Mistake((*path, keys), 'is missing; if anybody may send, say so by auth = { kind = "none" }')
    elif source.secrets is None and source.tolerance is not None:
        yield Mistake((*path, "tolerance"), "is of no use without secrets: no time is signed")


def _proofs_by_own_key(path: tuple[str, ...], source: Source, preset: Preset) -> Iterator[Mistake]:
    """Yield keys of authentication that are of no use where a preset proves by another key, which it needs."""
    for key, given in (("secrets", source.secrets is not None), ("unsigned", source.unsigned)):
        if given:
            yield Mistake((*path, key), f"is of no use: {preset.title} is known by {preset.proves_by}; remove it")
    if source.tolerance is not None:
        yield Mistake((*path, "tolerance"), "is of no use: no time of sending is signed; see max_age")


def passed_header_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield every header that a destination can't pass on."""
    for name, destination in config.destinations.items():
        if isinstance(destination, ForwardDestination):
            for position, header in enumerate(destination.pass_headers):
                if (why := fault(header)) is not None:
                    yield Mistake(("destinations", name, "pass_headers", f"[{position}]"), why)
