"""Authentication and responses of each preset, from the registry."""

from __future__ import annotations

from docs.blocks.common import format_table, join_names
from inbox.config.sources import Signature
from inbox.sources import PRESETS
from inbox.sources.base import Preset
from inbox.sources.presets import mailgun, paypal

_KIB = 1024
_NAMES = {"ecdsa": "ECDSA P-256", "ed25519": "Ed25519"}
OWN_PROOFS = {
    "adyen": (
        "`additionalData.hmacSignature` in the body",
        "HMAC-SHA256",
        "eight fields of each notification; neither its time nor `additionalData`",
        "none",
    ),
    "mailgun": (
        "`signature.signature` in the body",
        "HMAC-SHA256",
        "`signature.timestamp` and `signature.token`; not the event",
        f"{mailgun.RETRIED_SECONDS} s",
    ),
    "msgraph": ("`clientState` in the body", "none: a shared secret", "nothing", ""),
    "paypal": (
        "`PAYPAL-TRANSMISSION-SIG`",
        "RSA-SHA256",
        "`{transmission id}|{time}|{webhook's ID}|{CRC-32 of the body}`",
        f"{paypal.TOLERANCE_SECONDS:g} s",
    ),
    "secevent": (
        "the body itself",
        "RS, PS, ES 256 to 512, EdDSA",
        "the body",
        "none",
    ),
    "sns": ("`Signature` in the body", "RSA-SHA256, or SHA1 with `allow_sha1`", "the message in the body", ""),
}
"""Proofs of a preset's own: place in a request, algorithm, signed content, tolerance."""


def list_proofs() -> str:
    """Tabulate the proofs of origin in each preset's requests."""
    proofs = {name: proof for name, preset in sorted(PRESETS.items()) if (proof := _describe_proof(name, preset))}
    others = join_names(f"`{name}`" for name in sorted(PRESETS) if name not in proofs)
    rows = ((f"`{name}`", *proof) for name, proof in proofs.items())
    heads = ("preset", "header", "algorithm", "signed", "tolerance")
    return f"{format_table(heads, rows)}\nThe others sign nothing, and need an `auth`: {others}.\n"


def list_responses() -> str:
    """Tabulate the presets that accept or answer other requests than most."""
    rows = []
    for name, preset in sorted(PRESETS.items()):
        media = join_names(f"`{each}`" for each in sorted(preset.media_types)) or "any"
        handshake = preset.handshake.docs if preset.handshake else ""
        shown = (media, _format_size(preset.max_body), _describe_response(preset), handshake)
        if shown != _USUAL:
            cells = ("" if cell == usual else cell for cell, usual in zip(shown, _USUAL, strict=True))
            rows.append((f"`{name}`", *cells))
    return format_table(("preset", "media types", "largest body", "response", "handshake"), rows)


_USUAL = ("`application/json`", "256 KiB", "200", "")
"""Cells of most presets, which the page names once."""


def _describe_proof(name: str, preset: Preset) -> tuple[str, str, str, str] | None:
    if preset.signatures:
        first, *others = preset.signatures
        names = dict.fromkeys(each.header for each in others if each.header != first.header)
        header = _format_header(first) + "".join(f"; or {name}" for name in names)
        algorithms = dict.fromkeys(
            _NAMES.get(each.algorithm) or f"HMAC-{each.algorithm.upper()}" for each in preset.signatures
        )
        is_timed = first.timestamp_header or first.timestamp_prefix or preset.signed_at is not None
        tolerance = f"{preset.tolerance:g} s" if is_timed else "none"
        return f"`{header}`", " or ".join(algorithms), f"`{first.content}`", tolerance
    if preset.prover is not None:
        return OWN_PROOFS[name]
    if "signature" in preset.own_keys:
        return "`signature.header`", "`signature.algorithm`", "`signature.content`", "`tolerance`"
    return None


def _format_header(signature: Signature) -> str:
    """Return the header of a signature, with its parts."""
    time = [f"{signature.timestamp_prefix}{{timestamp}}"] if signature.timestamp_prefix else []
    return f"{signature.header}: " + signature.separator.join([*time, f"{signature.prefix}{{{signature.encoding}}}"])


def _describe_response(preset: Preset) -> str:
    if preset.acknowledgement is not None:
        return f"{preset.status}, {preset.acknowledged}"
    return f"{preset.status}, empty" if preset.answers_empty else str(preset.status)


def _format_size(count: int) -> str:
    return f"{count // _KIB} KiB" if count < _KIB * _KIB else f"{count // _KIB // _KIB} MiB"
