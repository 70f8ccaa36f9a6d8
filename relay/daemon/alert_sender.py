"""Posts alerts, in a thread of its own: a chat that hangs delays no delivery."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from datetime import datetime

import msgspec

from inbox.config.model import AlertFormat, Config, Endpoint
from inbox.logs.traces import place_of
from relay.delivery.alerts import Posted, payload
from relay.http.client import HttpClient, Limits, Request
from relay.http.endpoint import prepare


class Done(msgspec.Struct, frozen=True):
    """What came of a post."""

    posted: Posted
    error: str | None
    is_final: bool = False
    """It can't be posted, now or later."""


class AlertSender:
    """Takes one alert after the other; tells what came of it by `done`."""

    def __init__(
        self,
        client: HttpClient | None,
        form: AlertFormat,
        *,
        stop: threading.Event,
        now: Callable[[], datetime],
        done: Callable[[Done], None],
    ) -> None:
        self._client = client
        self._form = form
        self._done = done
        self._limits = Limits(lambda: float("inf"), stop, now)
        self._todo: queue.SimpleQueue[Posted | None] = queue.SimpleQueue()
        self._is_busy = False
        if client is not None:
            threading.Thread(target=self._work, args=(client,), name="alerts", daemon=True).start()

    @property
    def is_free(self) -> bool:
        """Whether it takes an alert now; never, without a url."""
        return self._client is not None and not self._is_busy

    def post(self, alert: Posted) -> None:
        """Post it; `done` is called from another thread, and then `let_go` is due."""
        self._is_busy = True
        self._todo.put(alert)

    def let_go(self) -> None:
        """The last one is done with."""
        self._is_busy = False

    def end(self) -> None:
        """Let the thread end."""
        self._todo.put(None)

    def _work(self, client: HttpClient) -> None:
        while (alert := self._todo.get()) is not None:
            self._done(self._post(alert, client))
        client.close()

    def _post(self, alert: Posted, client: HttpClient) -> Done:
        """Whatever happens is what came of it: nothing may end the only thread that posts."""
        try:
            body = json.dumps(payload(alert, self._form)).encode()
        except BaseException as error:  # noqa: BLE001  # one that can't be worded must not keep the others from being posted
            return Done(alert, f"it can't be worded: {_bug(error)}", is_final=True)
        try:
            answer = client.call(
                Request("alert", "POST", {"Content-Type": "application/json"}, body=body), self._limits
            )
            return Done(alert, None if answer.error_class is None else answer.failed(()).error)
        except BaseException as error:  # noqa: BLE001  # as above
            return Done(alert, f"a bug in the call: {_bug(error)}")


def _bug(error: BaseException) -> str:
    return f"{type(error).__name__} at {place_of(error)}"


def client_of(config: Config) -> HttpClient | None:
    """What posts to the url; None without one.

    Raises:
        ConfigError: the url can't be used, or its secret is not there.
    """
    alerts = config.alerts
    if alerts.url is None:
        return None
    endpoint = Endpoint(
        timeout=alerts.timeout,
        concurrency=1,
        allow_private=alerts.allow_private,
        allow_to=alerts.allow_to,
        block_to=alerts.block_to,
        allow_http=alerts.allow_http,
    )
    url = alerts.url.reveal()
    # The path of a chat's hook is its secret.
    return HttpClient(prepare(endpoint, url, "alerts", config.outbound, secrets=[url], shown_path="/…"))
