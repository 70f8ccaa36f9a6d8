"""Keeps a counterpart in another system like the source: fetch, find, map, then create, update or delete."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, cast

from inbox.config import Route, SyncDestination
from inbox.errors import ConfigError, MappingError
from relay import mapping
from relay.answer import ABSENT, Answer
from relay.destinations.base import Clients, Context
from relay.endpoint import header_value
from relay.expressions import Scope, decode, digest, encode
from relay.http import HttpClient, Request
from relay.mapping import CallPlan, SyncPlan
from relay.outcome import Call, Delivered, Delivery, Failed, Outcome, Skipped, Step


class Sync:
    """The deliverer of one route to a sync destination."""

    def __init__(self, plan: SyncPlan, api: HttpClient, destination: HttpClient) -> None:
        self._plan = plan
        self._api = api
        self._destination = destination

    def deliver(self, delivery: Delivery, context: Context) -> Outcome:
        """Make the counterpart like the entity is now, whatever the event says that has changed."""
        attempt = _Attempt(self._plan, self._api, self._destination, delivery, context)
        try:
            return attempt.run()
        except _Ended as end:
            return end.outcome
        except MappingError as error:
            return Failed(tuple(attempt.calls), "mapping", str(error))

    def close(self) -> None:
        """Close the idle connections."""
        self._api.close()
        self._destination.close()


def build(route: Route, destination: SyncDestination, clients: Clients) -> Sync:
    """The deliverer of `route`.

    Raises:
        ConfigError: the route has no sync table, or something in it or its endpoints can't be used.
    """
    if route.sync is None:
        raise ConfigError(
            f"routes.{route.name}: a route to a sync destination needs a [routes.{route.name}.sync] table"
        )
    return Sync(
        mapping.compile_sync(route.name, route.sync),
        clients.api(route.sync.fetch.api),
        clients.destination(destination, destination.base_url),
    )


class _Ended(Exception):
    """The attempt ends here, from within a step. It carries a result and is no error."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


class _Attempt:
    """One attempt, from step to step."""

    def __init__(
        self, plan: SyncPlan, api: HttpClient, destination: HttpClient, delivery: Delivery, context: Context
    ) -> None:
        self.calls: list[Call] = []
        self._plan = plan
        self._api = api
        self._destination = destination
        self._delivery = delivery
        self._context = context
        self._scope: Scope = {"event": mapping.event_scope(delivery), "entity": None, "target": None}
        self._fetch_began_at: datetime | None = None
        self._last_modified: datetime | None = None

    def run(self) -> Outcome:
        if self._delivery.action == "delete" or not self._fetch():
            return self._gone()
        if self._plan.find is None:
            return self._update() if self._plan.update is not None else self._create()
        if not self._find():
            return self._missing()
        if self._plan.update is None:
            return self._skipped("it has a counterpart, and the route doesn't update")
        return self._update()

    def _fetch(self) -> bool:
        """Whether the entity exists; it is in the scope then."""
        self._fetch_began_at = self._context.now()
        answer = self._call("fetch", self._plan.fetch, self._api)
        if answer.error_class in ABSENT:
            if answer.error_class == "not_found" and self._delivery.attempt == 1:
                # A replica that is behind answers the same for an entity just created: the next attempt asks again.
                raise _Ended(answer.failed(self._all()))
            return False
        entity = self._json(answer)
        if not isinstance(entity, dict):
            raise self._bad_answer(answer, "the answer is not an object")
        self._scope["entity"] = entity
        self._last_modified = mapping.last_modified(entity)
        return True

    def _find(self) -> bool:
        """Whether there is a counterpart; it is in the scope then."""
        find = cast("CallPlan", self._plan.find)
        answer = self._call("find", find, self._destination, find.json(self._scope))
        matches = [] if answer.error_class in ABSENT else self._matches(answer)
        if len(matches) > 1 and self._plan.many == "dead":
            raise _Ended(Failed(self._all(), "ambiguous", f"find: {len(matches)} counterparts"))
        self._scope["target"] = matches[0] if matches else None
        if matches and any(part.value(self._scope) is None for part in self._plan.identity):
            needed = ", ".join(part.text for part in self._plan.identity)
            raise self._bad_answer(answer, f"the match lacks one of: {needed}")
        return bool(matches)

    def _matches(self, answer: Answer) -> list[dict[str, Any]]:
        """A list, one object, an object that lists under `items`, null: each names as many counterparts as it holds."""
        found = self._json(answer)
        if self._plan.pick is not None:
            try:
                found = self._plan.pick.value(found)
            except MappingError:
                raise self._bad_answer(answer, f"{self._plan.pick.text} can't be evaluated on the answer") from None
        elif isinstance(found, dict) and isinstance(found.get("items"), list):
            found = found["items"]
        matches = found if isinstance(found, list) else [found] if found else []
        if not all(isinstance(match, dict) for match in matches):
            raise self._bad_answer(answer, "a match is not an object")
        return matches

    def _missing(self) -> Outcome:
        if self._plan.missing == "create":
            return self._create()
        if self._plan.missing == "skip":
            return self._skipped('it has no counterpart, and missing = "skip"')
        if self._plan.missing == "retry":
            return Failed(self._all(), "not_found", "find: no counterpart yet")
        return Failed(self._all(), "no_target", 'find: no counterpart, and missing = "dead"')

    def _create(self) -> Outcome:
        fields = self._plan.mapped(self._scope, creating=True)
        answer = self._call("create", cast("CallPlan", self._plan.create), self._destination, encode(fields))
        self._ensure(answer)
        return self._delivered("created", fields)

    def _update(self) -> Outcome:
        answer, fields = self._try_update()
        if answer.error_class in ABSENT:
            # Deleted since it was found, or replaced by another: look again, once.
            if self._plan.find is None or not self._find():
                return self._missing()
            answer, fields = self._try_update()
        self._ensure(answer)
        return self._delivered("updated", fields)

    def _try_update(self) -> tuple[Answer, dict[str, Any]]:
        fields = self._plan.mapped(self._scope)
        return self._call("update", cast("CallPlan", self._plan.update), self._destination, encode(fields)), fields

    def _gone(self) -> Outcome:
        if self._plan.gone == "skip":
            return self._skipped('the entity is gone, and gone = "skip"')
        self._scope["entity"] = None
        if self._plan.find is not None and not self._find():
            return self._delivered("nothing_to_delete")
        answer = self._call("delete", cast("CallPlan", self._plan.delete), self._destination)
        if answer.error_class in ABSENT:
            return self._delivered("nothing_to_delete")
        self._ensure(answer)
        return self._delivered("deleted")

    def _call(self, step: Step, call: CallPlan, client: HttpClient, body: bytes | None = None) -> Answer:
        """The answer: a success, or that something is absent, which each step reads in its own way. Others end the attempt."""
        path, query = call.path.expand(self._scope), call.query(self._scope)
        headers = {"Accept": "application/json"}
        if step not in {"fetch", "find"}:
            sent = digest([call.method, path, query, (body or b"").decode()]).hex()[:16]
            headers["Idempotency-Key"] = f"{self._delivery.route}-{self._delivery.seq}-{self._delivery.run}-{sent}"
        if body is not None:
            headers["Content-Type"] = call.media_type
        if self._delivery.traceparent is not None:
            headers["Traceparent"] = header_value(self._delivery.traceparent)
        answer = client.call(Request(step, call.method, headers, path, query, body), self._context)
        self.calls.append(answer.call)
        if answer.error_class is not None and answer.error_class not in ABSENT:
            raise _Ended(answer.failed(self._all()))
        return answer

    def _ensure(self, answer: Answer) -> None:
        if answer.error_class is not None:
            raise _Ended(answer.failed(self._all()))

    def _json(self, answer: Answer) -> Any:  # noqa: ANN401  # whatever the JSON holds
        if not answer.whole:
            raise self._bad_answer(answer, "the answer is larger than 64 KiB")
        if not answer.body:
            return None
        try:
            return decode(answer.body)
        except ValueError:
            raise self._bad_answer(answer, "the answer is not JSON") from None

    def _bad_answer(self, answer: Answer, why: str) -> _Ended:
        return _Ended(Failed(self._all(), "bad_answer", f"{answer.call.step}: {why}"))

    def _skipped(self, why: str) -> Skipped:
        return Skipped(self._all(), why)

    def _delivered(
        self, did: Literal["created", "updated", "deleted", "nothing_to_delete"], fields: dict[str, Any] | None = None
    ) -> Delivered:
        return Delivered(
            self._all(),
            did,
            self._fetch_began_at,
            self._last_modified,
            None if fields is None else digest(fields),
        )

    def _all(self) -> tuple[Call, ...]:
        return tuple(self.calls)
