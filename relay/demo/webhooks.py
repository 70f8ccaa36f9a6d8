"""Sends the identity service's webhooks: in the background, in order per entity, until each has been accepted."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import urllib3
from urllib3.exceptions import HTTPError

Payload = Mapping[str, str]

_FIRST_PAUSE, _LONGEST_PAUSE, _TIMEOUT = 0.05, 1.0, 10.0
_SUCCESSES = range(200, 300)


@dataclass(frozen=True, slots=True)
class WebhookSent:
    """One try to send a webhook. `status` is None when no answer came."""

    entity_type: str
    entity_id: str
    event_type: str
    status: int | None


class WebhookSender:
    """A queue of webhooks per entity; a thread schedules their heads, others send them.

    Any answer but a 2xx, and no answer, means another try soon, for as long as it takes. Only `close` gives up.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        senders: int = 4,
        on_webhook: Callable[[WebhookSent], None] = lambda _: None,
        loses_answer: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the scheduling thread.

        Args:
            url: where webhooks go, also those still waiting when it changes; without one, none are queued.
            headers: sent with each webhook, such as a token.
            senders: how many webhooks of different entities may be in flight at once.
            on_webhook: gets each try, on a sending thread; must not raise.
            loses_answer: asked after each accepted webhook, on a sending thread; true has it sent again.
        """
        self.url = url
        self._on_webhook, self._loses_answer = on_webhook, loses_answer
        # urllib3 itself, since a requests.Session is for one thread; it also heeds no proxy.
        self._http = urllib3.PoolManager(
            maxsize=senders,
            retries=False,
            timeout=_TIMEOUT,
            headers={"User-Agent": "identity-demo", **(headers or {}), "Content-Type": "application/json"},
        )
        self._changed = threading.Condition()
        self._queues: dict[tuple[str, str], deque[Payload]] = {}  # by entity; none is empty
        self._closed = False
        self._senders = ThreadPoolExecutor(senders, "webhook")
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop, self._closing = self._runner.get_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._schedule, name="webhooks", daemon=True)
        self._thread.start()

    def put(self, payload: Payload) -> None:
        """Queue a webhook behind the entity's earlier ones; do nothing without a URL, or after `close`."""
        entity = payload["entityType"], payload["id"]
        with self._changed:
            if self.url is None or self._closed:
                return
            queue = self._queues.setdefault(entity, deque())
            queue.append(payload)
            if len(queue) == 1:
                asyncio.run_coroutine_threadsafe(self._drain(entity, queue), self._loop)

    def pending(self) -> int:
        """Count the webhooks that have not been accepted yet."""
        with self._changed:
            return sum(map(len, self._queues.values()))

    def wait_until_sent(self, timeout: float | None = None) -> bool:
        """Wait until every webhook has been accepted; False if that took longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queues or self._closed, timeout) and not self._queues

    def close(self) -> None:
        """End the threads; webhooks that are still waiting are given up. A second call does nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        self._senders.shutdown()
        self._http.clear()

    def _schedule(self) -> None:
        with self._runner:  # leaving it cancels what still waits
            self._runner.run(self._closing.wait())

    async def _drain(self, entity: tuple[str, str], queue: deque[Payload]) -> None:
        while queue:
            pause = _FIRST_PAUSE
            while not await self._loop.run_in_executor(self._senders, self._send, queue[0]):
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            with self._changed:
                queue.popleft()
                if not queue:
                    del self._queues[entity]
                self._changed.notify_all()

    def _send(self, payload: Payload) -> bool:
        """Make one try; false has it sent again."""
        status = self._post(payload)
        self._on_webhook(WebhookSent(payload["entityType"], payload["id"], payload["eventType"], status))
        return status in _SUCCESSES and not self._loses_answer()

    def _post(self, payload: Payload) -> int | None:
        if self.url is None:
            return None
        try:
            return self._http.request("POST", self.url, body=msgspec.json.encode(payload), redirect=False).status
        except HTTPError:
            return None
