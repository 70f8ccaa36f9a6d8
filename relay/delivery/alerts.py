"""Alerts: their kinds, texts and posted JSON. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from inbox.config.model import AlertFormat
from inbox.observe.visible import visible_line
from relay.delivery import facts
from relay.delivery.gates import Breaker, BreakerState, GateKey
from relay.delivery.lifecycle import OpenDelivery

_BREAKS = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
_MENTION = re.compile(r"(?<!\w)@(?=\w)")
_JOINER = "\u2060"
_URL = re.compile(r"https?://[^/?#]", re.IGNORECASE)
_OF_A_URL = "/:?#[]@!$&'()*+,;=%"
"""Reserved characters of URLs (RFC 3986 §2.2), which are not escaped."""


def escape_text(value: str) -> str:
    """Escape a value as one line without markup. Slack may still link a URL in it; such a link shows its target."""
    text = visible_line(_BREAKS.sub(" ", value))
    text = _MENTION.sub(f"@{_JOINER}", text).replace("](", f"]{_JOINER}(").replace("`", "\u02cb")
    return _entities(text)


def escape_link_text(value: str) -> str:
    """Escape a value as the text of a link, so that it can't end the link's URL."""
    return escape_text(value).replace("|", "\u00a6")


def escape_link_url(value: str) -> str:
    """Escape a value that is a URL or the beginning of one.

    Raises:
        ValueError: the value is not a URL, and could become a mention; or it contains a lone surrogate.
    """
    if _URL.match(value) is None:
        raise ValueError("not an http or https URL, so it can't be a link")
    return _entities(quote(value, safe=_OF_A_URL))


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


AlertKind = Literal[
    "delivery_dead",
    "breaker_open",
    "endpoint_retired",
    "backlog_old",
    "source_silent",
    "webhooks_missed",
    "sweep_failed",
    "step_failed",
    "intake_stopped",
    "retention_behind",
]

SENTENCES: dict[AlertKind, tuple[str, str]] = {
    "delivery_dead": (
        "route {subject} has dead deliveries: {cause}",
        "route {subject} has no dead deliveries any more",
    ),
    "breaker_open": ("{subject} is not called for now: {cause}", "{subject} is called again"),
    "endpoint_retired": ("{subject} is gone for good, until it is resumed: {cause}", "{subject} is called again"),
    "backlog_old": (
        "route {subject} is behind: seq {seq} has waited for {age_seconds} s",
        "route {subject} is no longer behind",
    ),
    "source_silent": (
        "source {subject} is silent: nothing has arrived for {silent_seconds} s",
        "source {subject} sends again",
    ),
    "webhooks_missed": (
        "source {subject}: {missed} of {compared} changes came by no webhook; the sweep has added them",
        "source {subject}: the sweep has found no change that came by no webhook",
    ),
    "sweep_failed": ("source {subject} can't be swept: {error}", "source {subject} is swept again"),
    "step_failed": ("the relay's step {subject} fails: {error}", "the relay's step {subject} works again"),
    "intake_stopped": ("the {subject} can store nothing: {error}", "the {subject} stores webhooks again"),
    "retention_behind": (
        "retention of {subject} is behind by {behind_seconds} s",
        "retention of {subject} has caught up",
    ),
}
"""The sentences of each kind: when it fires, and when it recovers."""


class Alert(msgspec.Struct, frozen=True):
    """A condition that begins or recovers."""

    kind: AlertKind
    subject: str
    """A route, a source, a source and an entity type, a step, a kind of [retention], `destination NAME` or `api NAME`."""
    firing: bool
    detail: Mapping[str, Any] = {}
    """The values of its sentence, and further details."""


class Posted(msgspec.Struct, frozen=True):
    """An alert to post; `at` is in UTC."""

    id: int
    at: datetime
    alert: Alert


def format_sentence(alert: Alert) -> str:
    """Return an alert as one line; values missing from its detail become question marks."""
    began, recovered = SENTENCES[alert.kind]
    return (began if alert.firing else recovered).format_map(_Lenient(alert.detail, subject=alert.subject))


class _Lenient(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return "?"


def payload(posted: Posted, form: AlertFormat) -> dict[str, Any]:
    """Return the JSON to post: all fields, or a message for Slack's incoming webhooks.

    Source: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks (`text`).
    """
    alert = posted.alert
    if form == "slack":
        sign = ":red_circle:" if alert.firing else ":large_green_circle:"
        return {"text": f"{sign} {escape_text(format_sentence(alert))}"}
    return {
        "id": posted.id,
        "at": posted.at.isoformat().replace("+00:00", "Z"),
        "kind": alert.kind,
        "subject": alert.subject,
        "firing": alert.firing,
        "text": format_sentence(alert),
        "detail": dict(alert.detail),
    }


def list_breaker_alerts(before: Mapping[GateKey, Breaker], after: Mapping[GateKey, Breaker]) -> Iterator[Alert]:
    """Yield alerts for changed breakers. A breaker that a failed probe reopens has not changed."""
    for key, breaker in after.items():
        was, now = _fires(before.get(key, Breaker())), _fires(breaker)
        if was == now:
            continue
        if now is not None:
            yield Alert(now, " ".join(key), firing=True, detail={"cause": breaker.cause})
        else:  # a breaker that opened before it was retired has fired two alerts
            yield from (Alert(kind, " ".join(key), firing=False) for kind in _OF_BREAKERS)


_OF_BREAKERS: tuple[AlertKind, ...] = ("breaker_open", "endpoint_retired")


def _fires(breaker: Breaker) -> AlertKind | None:
    if breaker.state is BreakerState.CLOSED:
        return None
    return "endpoint_retired" if breaker.state is BreakerState.RETIRED else "breaker_open"


def list_deaths(changed: Iterable[OpenDelivery]) -> list[Alert]:
    """Return an alert for each route with a delivery that has just died."""
    alerts: dict[str, Alert] = {}
    for row in changed:
        if row.facts and isinstance(fact := row.facts[-1], facts.Dead):
            detail = {"cause": fact.cause, "error": fact.error, "seq": row.seq}
            alerts.setdefault(row.route, Alert("delivery_dead", row.route, firing=True, detail=detail))
    return list(alerts.values())
