"""The button or link of a finding on the page. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec

from relay.findings import Finding


class Button(msgspec.Struct, frozen=True):
    """The act of the page that mends a problem, or else the screen that shows more."""

    label: str
    act: str | None = None
    """Kind of the act; only operators get a button for it."""
    fields: Mapping[str, str] = {}
    path: str | None = None
    """The screen, where there is no act."""


_ACTS = {
    "gate_closed": ("Resume", "resume"),
    "unconfigured": ("Cancel", "cancel"),
    "retrying": ("Retry now", "retry"),
    "sweep_failed": ("Sweep now", "sweep"),
}
_SCREENS = {
    "blocked": ("Dead letters", "/dead", {}),
    "delivery_dead": ("Dead letters", "/dead", {}),
    "stuck": ("Deliveries", "/deliveries", {"state": "ready"}),
    "failing": ("Deliveries", "/deliveries", {}),
    "command": ("Commands", "/commands", {}),
    "command_failed": ("Commands", "/commands", {}),
    "gate_closed": ("All gates", "/gates", {}),
}
_SCREENS_OF_ALERTS = {
    **dict.fromkeys(
        ("breaker_open", "endpoint_retired", "sweep_failed", "webhooks_missed"), ("Gates and sweeps", "/gates")
    ),
    "delivery_dead": ("Dead letters", "/dead"),
    "backlog_old": ("Deliveries", "/deliveries"),
    "source_silent": ("Rejected requests", "/rejected"),
}
_BY_SUBJECT = {"delivery_dead": "route", "backlog_old": "route", "source_silent": "source"}


def button_of(finding: Finding) -> Button | None:
    """Return the act or the screen for a finding; None where only a command helps."""
    if finding.kind in {"no_relay", "crash_loop"} or not finding.remedy:
        return None
    if finding.kind == "alert":
        kind = finding.fields["alert"]
        label, path = _SCREENS_OF_ALERTS.get(kind, ("Doctor", "/doctor"))
        return Button(label, path=_path(path, {_BY_SUBJECT[kind]: finding.subject} if kind in _BY_SUBJECT else {}))
    if finding.kind in _ACTS and finding.fields:
        label, act = _ACTS[finding.kind]
        return Button(label, act, finding.fields)
    label, path, more = _SCREENS.get(finding.kind, ("Doctor", "/doctor", {}))
    of_route = {"route": finding.fields["route"]} if path != "/commands" and finding.fields.get("route") else {}
    return Button(label, path=_path(path, {**of_route, **more}))


def _path(path: str, fields: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(fields)}" if fields else path
