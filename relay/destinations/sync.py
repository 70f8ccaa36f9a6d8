"""Sync: keeps a counterpart in another system in sync with its source. Fetch, find, map, then create, update or delete.

Without fetch, the entity is the webhook's own body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, cast

from inbox.config.model import Route, SyncDestination
from inbox.errors import BodyErased, ConfigError, MappingError, UnusableResponse, collect_config_errors
from relay.delivery.outcome import (
    REFETCH_AFTER,
    Call,
    CallStep,
    Delivered,
    Delivery,
    Failed,
    Outcome,
    Skipped,
    Unchanged,
)
from relay.destinations.base import Clients, Context
from relay.http.client import HttpClient, Request
from relay.http.response import ABSENT, CallResult
from relay.http.target import header_value
from relay.sync.calls import FIELDS, CallPlan, find_error, pick_value
from relay.sync.compiled_route import (
    FindPlan,
    SyncPlan,
    can_be_named,
    compile_sync,
    event_scope,
    last_modified,
    require_carried,
    require_entity,
)
from relay.sync.expressions import Expression, Scope, decode, digest, encode

# --- an attempt, step by step


REPLICA_LAG = timedelta(seconds=5)
"""Time after an event's arrival in which a missing entity may be due to a lagging replica."""
OVERTAKEN = (
    "a newer event of its lane was delivered first, so this body would overwrite newer data; "
    "`relay cancel` ends it, `relay replay --force` sends it"
)
NO_HEADERS: Mapping[str, str] = {}


class Sync:
    """The deliverer of one route to a sync destination."""

    def __init__(
        self, plan: SyncPlan, api: HttpClient | None, destination: HttpClient, *, keeps_order: bool = False
    ) -> None:
        self.plan = plan
        self.api = api
        self.destination = destination
        self.keeps_order = keeps_order
        """True if a body must not follow a newer one of its lane: on a `strict` route without fetch."""

    def __call__(self, delivery: Delivery, context: Context) -> Outcome:
        """Bring the counterpart in sync with the current entity, regardless of the change that the event describes."""
        attempt = Attempt(self, delivery, context)
        try:
            return attempt.run()
        except Ended as end:
            return end.outcome
        except MappingError as error:
            return Failed(attempt.calls, "mapping", str(error))
        except BodyErased as erased:  # a template read the body before any write
            return Skipped(attempt.calls, str(erased))


def build(route: Route, destination: SyncDestination, clients: Clients) -> Sync:
    """Make the deliverer of `route`.

    Raises:
        ConfigError: its table or one of its endpoints is unusable.
    """
    if route.sync is None:
        raise ConfigError(f"routes.{route.name}: a route to a sync destination needs its sync table")
    parts: dict[str, Callable[[], Any]] = {
        "plan": partial(compile_sync, route.name, route.sync),
        "api": lambda: None if route.api is None else clients.api(route.api),
        "destination": partial(clients.destination, destination, destination.base_url),
    }
    made = collect_config_errors(parts)
    keeps_order = route.api is None and route.ordering != "latest"
    return Sync(made["plan"], made["api"], made["destination"], keeps_order=keeps_order)


class Ended(Exception):
    """Ends an attempt within a step, with its outcome. Not an error."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


class Attempt:
    """An attempt in progress, step by step."""

    def __init__(self, sync: Sync, delivery: Delivery, context: Context) -> None:
        self.calls: tuple[Call, ...] = ()
        self._plan, self._table = sync.plan, sync.plan.table
        self._api = sync.api
        self._destination = sync.destination
        self._keeps_order = sync.keeps_order
        self._delivery = delivery
        self._context = context
        self.scope: Scope = {"event": event_scope(delivery), "entity": None, "target": None, "etag": None}
        self._fetch_began_at: datetime | None = None
        self._last_modified: datetime | None = None
        self._stale_suspected = False
        self.fields: dict[str, Any] | None = None
        """The mapped fields, once they are known."""

    def run(self) -> Outcome:
        """Run all steps.

        Raises:
            Ended: the attempt ends within a step.
            MappingError: the event, the entity or the counterpart lacks a usable value for a field or a template.
            BodyErased: a field or a template reads the event's body, which was erased.
        """
        if self._delivery.entity_id is None:
            return Skipped(self.calls, "the event names no entity")
        fetch = self._plan.fetch
        if not (self._read_body() if fetch is None else self._fetch(fetch)):
            return self._gone()
        if self._plan.find is None:
            return self._update() if self._plan.update is not None else self._create()
        if not self._find():
            return self._missing()
        if self._plan.update is None:
            return Skipped(self.calls, "a counterpart exists, and the route has no update")
        return self._update()

    def _read_body(self) -> bool:
        """Put the webhook's body into the scope as the entity. Return False if the event says that the entity is deleted.

        A replay was compared with newer deliveries when the operator requested it.
        """
        if self._keeps_order and self._delivery.late and self._delivery.run == 0:
            raise Ended(Failed(self.calls, "overtaken", OVERTAKEN))
        if self._delivery.action == "delete":
            return False
        body = self.scope["event"]["body"]
        if not body or not isinstance(body, dict | list):  # an empty one would clear all fields
            raise MappingError("is neither a JSON object or list nor a form, or is empty", field="event.body")
        if isinstance(body, dict) and isinstance(body.get("sweep"), dict) and "left_out" in body["sweep"]:
            raise MappingError("lacks the entity, which was too large for the sweep", field="event.body")
        self.scope["entity"] = body
        return True

    def _fetch(self, fetch: CallPlan) -> bool:
        """Fetch the entity into the scope. Return False if it does not exist.

        After a delete the entity may exist again with the same id, or a lagging replica may still have its old state.
        """
        self._fetch_began_at = self._context.now()
        answer = self._call("fetch", fetch, cast("HttpClient", self._api), fetch.json(self.scope))
        is_absent, pick = answer.error_class in ABSENT, self._plan.pick
        entity = None
        if not is_absent:
            with self._reading(answer):
                entity = _json(answer) if pick is None else pick_value(pick, _json(answer))
        if entity is None and (is_absent or pick is not None):
            if answer.error_class != "gone" and self._may_be_behind():
                # A lagging replica gives the same response for a new entity, so the next attempt fetches again.
                if is_absent or pick is None:
                    raise Ended(answer.as_failed(self.calls))
                raise Ended(Failed(self.calls, "not_found", f"fetch: the response has null at {pick.text}"))
            return False
        return self._accept(entity, answer)

    def _accept(self, entity: object, answer: CallResult) -> bool:
        """Put a usable entity into the scope. Return False if it is the state before a deletion."""
        with self._reading(answer):
            if not isinstance(entity, dict) or not entity:  # an empty one would clear all fields
                raise UnusableResponse("the response is not an object, or is empty")
            require_entity(self._plan.carried, entity, self.scope)
        self._last_modified = modified = last_modified(entity, cast("Expression", self._plan.modified))
        is_delete, at = self._delivery.action == "delete", self._delivery.occurred_at
        if is_delete and (modified is None or modified < at):
            return False
        is_in_doubt = is_delete and modified == at  # recreated in the same second, or a lagging replica
        self._stale_suspected = is_in_doubt or self._plan.is_stale(modified, self._delivery)
        if self._stale_suspected and self._delivery.stale_before < len(REFETCH_AFTER):
            raise Ended(Failed(self.calls, "stale", f"fetch: last changed at {modified}, not after the event"))
        if modified is not None and modified > self._context.now():
            self._last_modified = None  # a time in the future is wrong, and all events until then would look covered
        self.scope["entity"] = entity
        return True

    def _may_be_behind(self) -> bool:
        """Return True if a 404 may come from a lagging replica. After a delete event it means that the entity is gone."""
        if self._delivery.action == "delete":
            return False
        return self._delivery.attempt == 1 or self._context.now() - self._delivery.received_at < REPLICA_LAG

    def _find(self) -> bool:
        """Find the counterpart and put it into the scope. Return False if there is none."""
        find = cast("FindPlan", self._plan.find)
        answer = self._call("find", find.call, self._destination, find.call.json(self.scope))
        self.scope["target"] = self.scope["etag"] = None
        if answer.error_class in ABSENT or answer.call.status == HTTPStatus.NO_CONTENT:
            return False
        with self._reading(answer):
            matches = find.matches_in(_json(answer))
        if len(matches) > 1 and self._table.many == "dead":
            raise Ended(Failed(self.calls, "ambiguous", f"find: {len(matches)} counterparts"))
        if not matches:
            return False
        self.scope |= {"target": matches[0], "etag": answer.etag}
        self._require_counterpart(find, matches[0], answer)
        return True

    def _require_counterpart(self, find: FindPlan, match: Mapping[str, Any], answer: CallResult) -> None:
        """End the attempt before any write unless the match can be addressed and has the value searched for."""
        with self._reading(answer):
            if not all(can_be_named(part.value(self.scope)) for part in self._plan.identity):
                raise UnusableResponse(
                    f"the match lacks one of: {', '.join(part.text for part in self._plan.identity)}"
                )
            require_carried(find.carried, match, self.scope, ignore_case=find.ignore_case)

    def _missing(self) -> Outcome:
        match self._table.missing:
            case "create":
                return self._create()
            case "skip":
                return Skipped(self.calls, 'there is no counterpart, and missing = "skip"')
            case "retry":
                return Failed(self.calls, "not_found", "find: no counterpart yet")
        return Failed(self.calls, "no_target", 'find: no counterpart, and missing = "dead"')

    def _create(self) -> Outcome:
        fields = self.fields = self._plan.fields.evaluate(self.scope, creating=True)
        create = cast("CallPlan", self._plan.create)
        body = encode(fields) if create.body is None else create.json({**self.scope, FIELDS: fields})
        answer = self._call("create", create, self._destination, body)
        self._ensure(answer)
        return self._finish("created", digest(fields))

    def _update(self) -> Outcome:
        answer, content = self._try_update()
        if answer.error_class in ABSENT:
            # The counterpart was deleted or replaced after the find: search once more.
            if self._plan.find is None or not self._find():
                return self._missing()
            answer, content = self._try_update()
        self._ensure(answer)
        return self._finish("updated", content)

    def _try_update(self) -> tuple[CallResult, bytes]:
        """Send the change. Return the response and the hash of the content."""
        plan = self._plan
        fields = self.fields = plan.fields.evaluate(self.scope, creating=False)
        update = cast("CallPlan", plan.update)
        if update.body is None:
            body: bytes | None = encode(fields)
            content = digest(fields)
        else:
            body = update.json({**self.scope, FIELDS: fields})
            content = digest([fields, (body or b"").decode()])  # the body may have more than the fields
        is_asked_for = self._delivery.run > 0  # requested by an operator or a duplicate request
        if self._table.skip_unchanged and not is_asked_for and content == self._delivery.applied_hash:
            raise Ended(Unchanged(self.calls))
        headers = {}
        if plan.if_match is not None and (version := plan.if_match.value(self.scope)) is not None:
            headers["If-Match"] = header_value(str(version))
        return self._call("update", update, self._destination, body, headers), content

    def _gone(self) -> Outcome:
        plan, gone = self._plan, self._table.gone
        if gone == "skip":
            return Skipped(self.calls, 'the entity is gone, and gone = "skip"')
        self.scope["entity"] = None
        if plan.find is not None and not self._find():
            return self._finish("nothing_to_delete")
        if gone == "deactivate":
            if plan.inactive is not None and plan.inactive.value(self.scope) is True:
                return self._finish("nothing_to_delete")
            call = cast("CallPlan", plan.deactivate)
            answer = self._call("update", call, self._destination, call.json(self.scope))
        else:
            delete = cast("CallPlan", plan.delete)
            answer = self._call("delete", delete, self._destination, delete.json(self.scope))
        if answer.error_class in ABSENT:
            return self._finish("nothing_to_delete")
        self._ensure(answer)
        return self._finish("deactivated" if gone == "deactivate" else "deleted")

    def _call(
        self,
        step: CallStep,
        call: CallPlan,
        client: HttpClient,
        body: bytes | None = None,
        more: Mapping[str, str] = NO_HEADERS,
    ) -> CallResult:
        """Make a call. Return a success or a class in `ABSENT`, for the step to interpret. Other results end the attempt."""
        path, query = call.path.expand(self.scope), call.query(self.scope)
        headers = {"Accept": "application/json"}
        if step not in {"fetch", "find"}:
            sent = digest([call.method, path, query, (body or b"").decode()]).hex()[:16]
            headers["Idempotency-Key"] = f"{self._delivery.idempotency_key}-{sent}"
        if body is not None:
            headers["Content-Type"] = call.media_type
        if self._delivery.traceparent is not None:
            headers["Traceparent"] = header_value(self._delivery.traceparent)
        own = {**call.own_headers(self.scope), **more}
        request = Request(step, call.method, headers, path, query, body, own_headers=own, template=call.path.text)
        answer = client.call(request, self._context)
        self.calls += (answer.call,)
        if answer.error_class is not None and answer.error_class not in ABSENT:
            raise Ended(answer.as_failed(self.calls))
        if answer.error_class is None and call.rules:
            self._require_no_error(call, answer)
        return answer

    def _require_no_error(self, call: CallPlan, answer: CallResult) -> None:
        """End the attempt if a response with a success status reports an error."""
        if answer.call.status == HTTPStatus.NO_CONTENT:
            return
        with self._reading(answer):
            if not answer.body:
                raise UnusableResponse(
                    "the response is empty, but the errors key expects JSON; respond with 204 for no body"
                )
            reported = find_error(call.rules, _json(answer))
        if reported is not None:
            failed = answer.reporting(*reported)
            self.calls = (*self.calls[:-1], failed.call)
            raise Ended(failed.as_failed(self.calls))

    def _ensure(self, answer: CallResult) -> None:
        if answer.error_class is not None:
            raise Ended(answer.as_failed(self.calls))

    @contextmanager
    def _reading(self, answer: CallResult) -> Iterator[None]:
        """End the attempt if the response is unreliable."""
        try:
            yield
        except UnusableResponse as error:
            raise Ended(Failed(self.calls, "bad_answer", f"{answer.call.step}: {error}")) from None

    def _finish(
        self,
        did: Literal["created", "updated", "deleted", "deactivated", "nothing_to_delete"],
        content: bytes | None = None,
    ) -> Delivered:
        """Return a success; `content` is the hash of the counterpart's current content."""
        return Delivered(
            self.calls,
            did,
            self._fetch_began_at,
            self._last_modified,
            content,
            stale_suspected=self._stale_suspected,
        )


def _json(answer: CallResult) -> Any:  # noqa: ANN401  # whatever the JSON holds
    if not answer.whole:
        raise UnusableResponse("the response is larger than 64 KiB")
    if not answer.body:
        return None
    try:
        return decode(answer.body)
    except ValueError as error:
        raise UnusableResponse(f"the response is {error}") from None
