"""Sends the identity service's webhooks: in the background, in order per entity, until each has been accepted."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec
import requests

Action = Literal["create", "update", "delete"]
Form = Literal["classic", "typed"]

_SUCCESS = 2
_EVENT_TYPES: dict[Action, str] = {"create": "CREATE", "update": "UPDATE", "delete": "DELETE"}
_TYPED_SUFFIXES: dict[Action, str] = {"create": "CREATE", "update": "EDIT", "delete": "DELETE"}


@dataclass(frozen=True, slots=True)
class Change:
    """Something happened to an entity."""

    entity_type: str
    entity_id: str
    action: Action
    at: datetime


def rfc3339_milliseconds(moment: datetime) -> str:
    """An aware UTC datetime as the identity service writes it, cut to milliseconds: `2018-09-21T06:29:05.708Z`."""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def payload(change: Change, form: Form) -> dict[str, str]:
    """What the webhook says about a change.

    `classic` is the form of trivore.atlassian.net/wiki/spaces/TISpubdoc/pages/20515352, `typed` that of
    trivoreid.com/docs/developer-guide/webhook.
    """
    at = rfc3339_milliseconds(change.at)
    if form == "typed":
        return {"id": change.entity_id, "type": f"{change.entity_type}_{_TYPED_SUFFIXES[change.action]}", "time": at}
    return {
        "id": change.entity_id,
        "entityType": change.entity_type,
        "eventType": _EVENT_TYPES[change.action],
        "timestamp": at,
    }


class WebhookSender:
    """A queue of webhooks and the threads that send them.

    Webhooks of one entity are sent one after the other; those of different entities by several threads. Any answer but
    a 2xx, and no answer, means trying again soon, for as long as it takes. Only `close` gives up.
    """

    def __init__(
        self,
        url: str | None,
        *,
        headers: Mapping[str, str] | None = None,
        senders: int = 4,
        first_pause: float = 0.05,
        longest_pause: float = 1.0,
        timeout: float = 10.0,
        on_webhook: Callable[[Mapping[str, str], int | None], None] | None = None,
        loses_answer: Callable[[], bool] = lambda: False,
    ) -> None:
        """Starts the threads. `on_webhook` hears each try's payload and status (None: no answer) and must not raise.

        `loses_answer` is asked after each accepted webhook: true means that the sender behaves as if the answer had got
        lost on its way, and sends the webhook again.
        """
        self.url = url
        self.silent = False
        """While it is true, no webhook is queued."""
        self._headers = {"User-Agent": "identity-demo", **(headers or {}), "Content-Type": "application/json"}
        self._first_pause, self._longest_pause, self._timeout = first_pause, longest_pause, timeout
        self._on_webhook, self._loses_answer = on_webhook, loses_answer
        lock = threading.Lock()
        self._something_due = threading.Condition(lock)
        self._something_sent = threading.Condition(lock)
        self._waiting: dict[str, deque[dict[str, str]]] = {}  # by entity; the first may be under way
        self._tries: dict[str, int] = {}  # failed ones of the entity's first
        self._due: list[tuple[float, int, str]] = []  # a heap of (when, tie-breaker, entity)
        self._numbers = itertools.count()
        self._pending = 0
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name=f"webhook-{n}", daemon=True) for n in range(senders)]
        for thread in self._threads:
            thread.start()

    def put(self, entity: str, message: dict[str, str]) -> None:
        """Queues a webhook behind the entity's earlier ones; does nothing while silent, without a URL, or after `close`."""
        with self._something_due:
            if self.url is None or self.silent or self._closed:
                return
            self._pending += 1
            queue = self._waiting.setdefault(entity, deque())
            queue.append(message)
            if len(queue) == 1:
                self._schedule(entity, 0.0)

    def pending(self) -> int:
        """How many webhooks have not been accepted yet."""
        with self._something_sent:
            return self._pending

    def wait_until_sent(self, timeout: float | None = None) -> bool:
        """Waits until every webhook has been accepted; False if that took longer than `timeout` seconds."""
        with self._something_sent:
            return (
                self._something_sent.wait_for(lambda: self._pending == 0 or self._closed, timeout) and not self._pending
            )

    def close(self) -> None:
        """Ends the threads; webhooks that are still waiting are given up."""
        with self._something_due:
            self._closed = True
            self._something_due.notify_all()
            self._something_sent.notify_all()
        for thread in self._threads:
            thread.join()

    def _schedule(self, entity: str, pause: float) -> None:
        heapq.heappush(self._due, (time.monotonic() + pause, next(self._numbers), entity))
        self._something_due.notify()

    def _run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False  # no proxy between services of one host
            while (head := self._next_head()) is not None:
                entity, message = head
                status = self._post(session, message)
                if self._on_webhook is not None:
                    self._on_webhook(message, status)
                accepted = status is not None and status // 100 == _SUCCESS
                self._settle(entity, accepted=accepted and not self._loses_answer())

    def _next_head(self) -> tuple[str, dict[str, str]] | None:
        """Waits for an entity whose oldest webhook is due; None once closed."""
        with self._something_due:
            while not self._closed:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    entity = heapq.heappop(self._due)[2]
                    return entity, self._waiting[entity][0]
                self._something_due.wait(wait)
            return None

    def _post(self, session: requests.Session, message: dict[str, str]) -> int | None:
        if self.url is None:
            return None
        try:
            response = session.post(
                self.url,
                data=msgspec.json.encode(message),
                headers=self._headers,
                timeout=self._timeout,
                allow_redirects=False,
            )
        except requests.RequestException:
            return None
        return response.status_code

    def _settle(self, entity: str, *, accepted: bool) -> None:
        """Takes an accepted webhook off the entity's queue, or puts it to be tried again."""
        with self._something_due:
            if not accepted:
                tries = self._tries[entity] = self._tries.get(entity, 0) + 1
                doubled = self._first_pause * 2 ** min(tries - 1, 16)
                self._schedule(entity, min(doubled, self._longest_pause))
                return
            self._tries.pop(entity, None)
            self._pending -= 1
            queue = self._waiting[entity]
            queue.popleft()
            if queue:
                self._schedule(entity, 0.0)
            else:
                del self._waiting[entity]
            self._something_sent.notify_all()
