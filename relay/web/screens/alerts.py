"""`/alerts`: alerts that fire now, and their history; and the button of a finding, wherever one is shown."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

import msgspec

from inbox.db.listing import read_page
from inbox.db.reads import Row
from inbox.events.timestamps import as_time
from relay.delivery.alerts import AlertKind
from relay.findings import Finding, of_alert
from relay.store.overview import FiringAlert, alert_text, read_firing
from relay.web.query import GivenTime, Limit, Number, Text, filter_of
from relay.web.reading import ListPage, Reading, Screen, rows_of

MOST_FIRING = 100


class AlertsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on alerts."""

    kind: AlertKind | None = None
    """Kind of alert."""
    subject: Text | None = None
    """Exactly as it is stored: a route, a source, or `destination NAME` and the like."""
    since: GivenTime | None = None
    until: GivenTime | None = None
    before: Number | None = None
    limit: Limit = 50


class AlertsPage(ListPage, frozen=True, kw_only=True):
    """Rows of `alert` with their sentence in `text`, the newest first."""

    rows: tuple[Annotated[Row, rows_of("alert", text={"type": "string"})], ...]
    firing: tuple[FiringAlert, ...]
    """Matching alerts that have not recovered, the oldest first; not on later pages."""
    more_firing: int


def read(reading: Reading, query: AlertsQuery) -> AlertsPage:
    """Read a page of the history, and before it what fires now."""
    with reading.database.snapshot() as transaction:
        firing = (
            [] if query.before is not None else [each for each in read_firing(transaction) if _matches(each, query)]
        )
    found = read_page(reading.database.engine, "alerts", filter_of(query), query.limit)
    return AlertsPage(
        rows=tuple(map(_worded, found.rows)),
        before=found.before,
        firing=tuple(firing[:MOST_FIRING]),
        more_firing=max(len(firing) - MOST_FIRING, 0),
    )


def _moment(given: GivenTime | None) -> datetime | None:
    return given.moment if given else None


def _matches(alert: FiringAlert, query: AlertsQuery) -> bool:
    since, until = _moment(query.since), _moment(query.until)
    return (
        query.kind in {None, alert.kind}
        and query.subject in {None, alert.subject}
        and (since is None or as_time(alert.since) >= since)
        and (until is None or as_time(alert.since) < until)
    )


def _worded(row: Row) -> Row:
    return {**row, "text": alert_text(row["kind"], row["subject"], row["detail"], firing=row["firing"])}


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


SCREEN = Screen(
    name="alerts",
    path="/alerts",
    title="Alerts",
    query=AlertsQuery,
    page=AlertsPage,
    read=read,
    template="alerts.html",
    values={"button_of": button_of, "of_alert": of_alert},
    is_list=True,
)
