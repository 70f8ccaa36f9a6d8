"""Posts alerts in a thread of its own, so that a chat that hangs delays no delivery."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from datetime import datetime

import msgspec

from inbox.config.model import AlertFormat, Config, Endpoint
from inbox.config.values import Duration
from inbox.observe.logs import place_of
from relay.delivery.alerts import Posted, payload
from relay.http.client import HttpClient, Limits, Request
from relay.http.target import prepare


class PostResult(msgspec.Struct, frozen=True):
    """The result of a post; `sender.release` is due when it is recorded."""

    posted: Posted
    error: str | None
    sender: AlertSender
    is_final: bool = False
    """True for an alert that can never be posted."""


class AlertSender:
    """Posts one alert after the other, and passes each result to `done`."""

    def __init__(
        self,
        client: HttpClient | None,
        form: AlertFormat,
        *,
        stop: threading.Event,
        now: Callable[[], datetime],
        done: Callable[[PostResult], None],
    ) -> None:
        self._client = client
        self._form = form
        self._done = done
        self._limits = Limits(lambda: float("inf"), stop, now)
        self._queue: queue.SimpleQueue[Posted | None] = queue.SimpleQueue()
        self._is_busy = False
        if client is not None:
            threading.Thread(target=self._work, args=(client,), name="alerts", daemon=True).start()

    @property
    def is_free(self) -> bool:
        """True when it takes an alert now; never, without a url."""
        return self._client is not None and not self._is_busy

    def post(self, alert: Posted) -> None:
        """Queue an alert; `done` is called from another thread."""
        self._is_busy = True
        self._queue.put(alert)

    def release(self) -> None:
        """Take the next alert again."""
        self._is_busy = False

    def close(self) -> None:
        """Let the thread end when the queue is empty."""
        self._queue.put(None)

    def _work(self, client: HttpClient) -> None:
        while (alert := self._queue.get()) is not None:
            error, is_final = self._post(alert, client)
            self._done(PostResult(alert, error, self, is_final))
        client.close()

    def _post(self, alert: Posted, client: HttpClient) -> tuple[str | None, bool]:
        """Return the error, or None, and whether it is final. Raises nothing: no bug may end the only thread that posts."""
        try:
            body = json.dumps(payload(alert, self._form)).encode()
        except BaseException as error:  # noqa: BLE001  # an alert that can't be worded must not keep the others back
            return f"it can't be worded: {_bug(error)}", True
        try:
            answer = client.call(
                Request("alert", "POST", {"Content-Type": "application/json"}, body=body), self._limits
            )
            return None if answer.error_class is None else answer.failed(()).error, False
        except BaseException as error:  # noqa: BLE001  # as above
            return f"a bug in the call: {_bug(error)}", False


def _bug(error: BaseException) -> str:
    return f"{type(error).__name__} at {place_of(error)}"


def alert_client(config: Config) -> HttpClient | None:
    """Make the client that posts to the alerts' url; None without one.

    Raises:
        ConfigError: the url can't be used, or its secret is missing.
    """
    alerts = config.alerts
    if alerts.url is None:
        return None
    endpoint = Endpoint(
        timeout=Duration(10), concurrency=1, allow_private=alerts.allow_private, allow_http=alerts.allow_http
    )
    url = alerts.url.reveal(at="alerts.url")
    # The path of a chat's hook is its secret.
    return HttpClient(prepare(endpoint, url, "alerts", config.outbound, secrets=[url], shown_path="/…"))
