"""Posts alerts in a separate thread, so that a slow chat service does not delay deliveries."""

from __future__ import annotations

import json

import msgspec

from inbox.config.model import AlertFormat
from inbox.observe.logs import format_place
from relay.daemon.generation import Generations
from relay.delivery.alerts import Posted, payload
from relay.http.client import HttpClient, Limits, Request
from relay.observe import Observer
from relay.steps import Steps
from relay.store import alerts


class AlertSender(msgspec.Struct):
    """Posts alerts one at a time, using the active configuration."""

    generations: Generations
    limits: Limits
    observer: Observer
    steps: Steps

    def run_due(self) -> float | None:
        """Post one due alert. Returns 0 if it posted one, so that the next follows at once."""
        return self.steps.run("send_alerts", self._post_next, None)

    def _post_next(self) -> float | None:
        active = self.generations.active
        if active.alert_client is None:
            return None
        unsent = alerts.take_unsent(active.work)
        for one in unsent:
            error, is_final = post(one, active.alert_client, active.work.config.alerts.format, self.limits)
            if error is not None:
                self.observer.log(
                    "alert_not_posted", number=one.id, kind=one.alert.kind, subject=one.alert.subject, error=error
                )
            alerts.record_post(active.work.database, one.id, error, is_final=is_final)
        return 0.0 if unsent else None


def post(alert: Posted, client: HttpClient, form: AlertFormat, limits: Limits) -> tuple[str | None, bool]:
    """Post an alert. Returns the error or None, and whether to give up: an alert that can't be worded is not retried."""
    try:
        body = json.dumps(payload(alert, form)).encode()
    except Exception as error:  # noqa: BLE001  # a bug
        return f"it can't be worded: {type(error).__name__} at {format_place(error)}", True
    answer = client.call(Request("alert", "POST", {"Content-Type": "application/json"}, body=body), limits)
    return None if answer.error_class is None else answer.as_failed(()).error, False
