"""Verification and parsing by each preset of a source: from the registry."""

from __future__ import annotations

from docs.blocks.common import table
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
        "none: no time is signed",
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
        "none: what is sent again is known by its id",
    ),
    "sns": ("`Signature` in the body", "RSA-SHA256, or SHA1 with `allow_sha1`", "the message in the body", ""),
}
"""Of presets with a proof of their own: its place in a request, the algorithm, what is signed, and the tolerance."""


def preset_proofs() -> str:
    """Tabulate the proofs of origin in each preset's requests."""
    return table(
        ("preset", "header", "algorithm", "signed", "tolerance"),
        ((f"`{name}`", *_proof(name, preset)) for name, preset in sorted(PRESETS.items())),
    )


def preset_answers() -> str:
    """Tabulate the requests that each preset accepts, and the answers that its sender gets."""
    return table(
        ("preset", "media types", "largest body", "answer", "handshake"),
        (
            (
                f"`{name}`",
                ", ".join(f"`{each}`" for each in sorted(preset.media_types)) or "any; see its file",
                _size(preset.max_body),
                _answer(preset),
                preset.handshake.docs if preset.handshake else "",
            )
            for name, preset in sorted(PRESETS.items())
        ),
    )


def _proof(name: str, preset: Preset) -> tuple[str, str, str, str]:
    if preset.signatures:
        first, *others = preset.signatures
        names = dict.fromkeys(each.header for each in others if each.header != first.header)
        header = _written(first) + "".join(f"; or {name}" for name in names)
        algorithms = dict.fromkeys(
            _NAMES.get(each.algorithm) or f"HMAC-{each.algorithm.upper()}" for each in preset.signatures
        )
        is_timed = first.timestamp_header or first.timestamp_prefix or preset.signed_at is not None
        tolerance = f"{preset.tolerance:g} s" if is_timed else "none: no time is signed"
        return f"`{header}`", " or ".join(algorithms), f"`{first.content}`", tolerance
    if preset.prover is not None:
        return OWN_PROOFS[name]
    if "signature" in preset.own_keys:
        return "`signature.header`", "`signature.algorithm`", "`signature.content`", "`tolerance`"
    return "as `auth` says", "none", "nothing", ""


def _written(signature: Signature) -> str:
    """Return the header of a signature, with its parts."""
    time = [f"{signature.timestamp_prefix}{{timestamp}}"] if signature.timestamp_prefix else []
    return f"{signature.header}: " + signature.separator.join([*time, f"{signature.prefix}{{{signature.encoding}}}"])


def _answer(preset: Preset) -> str:
    if preset.acknowledgement is not None:
        return f"{preset.status}, {preset.acknowledged}"
    return f"{preset.status}, empty" if preset.answers_empty else str(preset.status)


def _size(count: int) -> str:
    return f"{count // _KIB} KiB" if count < _KIB * _KIB else f"{count // _KIB // _KIB} MiB"
