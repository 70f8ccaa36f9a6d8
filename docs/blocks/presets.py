"""Verification and parsing by each preset of a source: from the registry."""

from __future__ import annotations

from docs.blocks.common import table
from inbox.sources import PRESETS
from inbox.sources.base import Preset
from inbox.sources.signing import described

_KIB = 1024


def preset_proofs() -> str:
    """Tabulate the proofs of origin in each preset's requests."""
    return table(
        ("preset", "header", "algorithm", "signed", "tolerance"),
        ((f"`{name}`", *_proof(preset)) for name, preset in sorted(PRESETS.items())),
    )


def preset_events() -> str:
    """Tabulate the places where each preset finds the parts of an event."""
    return table(
        ("preset", "of", "event id", "entity", "event type", "time", "same event"),
        (
            (
                f"`{name}`",
                told.title,
                told.event_id,
                told.entity,
                told.event_type,
                told.time,
                told.same_event,
            )
            for name, preset in sorted(PRESETS.items())
            for told in (preset.docs,)
        ),
    )


def preset_answers() -> str:
    """Tabulate the requests that each preset accepts, and the answers that its sender expects."""
    return table(
        ("preset", "media types", "largest body", "answer", "handshake", "sends"),
        (
            (
                f"`{name}`",
                ", ".join(f"`{each}`" for each in sorted(preset.media_types)) or "any; see its file",
                _size(preset.max_body),
                f"{preset.status}, empty" if preset.answers_empty else str(preset.status),
                preset.handshake.docs if preset.handshake else "",
                preset.docs.sends,
            )
            for name, preset in sorted(PRESETS.items())
        ),
    )


def _proof(preset: Preset) -> tuple[str, str, str, str]:
    if preset.signatures:
        first, *others = map(described, preset.signatures)
        names = dict.fromkeys(each["header"].partition(":")[0] for each in others)
        header = first["header"] + "".join(f"; or {name}" for name in names if not first["header"].startswith(name))
        algorithms = dict.fromkeys(each["algorithm"] for each in (first, *others))
        return f"`{header}`", " or ".join(algorithms), f"`{first['content']}`", first["tolerance"]
    if preset.prover is not None:
        return (
            "the body itself",
            "RS, PS, ES 256 to 512, EdDSA",
            "the body",
            "none: what is sent again is known by its id",
        )
    if "signature" in preset.own_keys:
        return "`signature.header`", "`signature.algorithm`", "`signature.content`", "`signature.tolerance`"
    return "as `auth` says", "none", "nothing", ""


def _size(count: int) -> str:
    return f"{count // _KIB} KiB" if count < _KIB * _KIB else f"{count // _KIB // _KIB} MiB"
