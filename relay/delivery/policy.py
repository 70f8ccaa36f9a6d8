"""Policies of routes, and the decision after an attempt. Pure: (delivery, outcome, policy, now) → fact, breaker reports.

The due time of the next attempt is stored in the fact, so it survives any crash.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

import msgspec

from inbox.config.model import Config, Downstream, Limited, Ordering, Retry, Route, When
from inbox.config.routing import get_lane_kind
from relay.delivery import facts
from relay.delivery.facts import AnyFact
from relay.delivery.gates import BREAKER, LONGEST_HOLD, BreakerLimits, GateKey, Health, RateLimit, Report
from relay.delivery.lifecycle import OpenDelivery
from relay.delivery.outcome import (
    AGAIN_AT_MOST,
    CONFIRMED_AFTER,
    HEALTH,
    OF_THE_EVENT,
    REFETCH_AFTER,
    RULES,
    Call,
    CallStep,
    Delivered,
    Delivery,
    Failed,
    Outcome,
    Rule,
    Unchanged,
    rule_for,
)

LONGEST_RETRY_AFTER = timedelta(hours=24)
"""The longest `Retry-After` that is honoured: a longer one is probably a mistake."""

_READS: frozenset[CallStep] = frozenset({"fetch", "find"})

JITTER = 0.2
"""The largest share of a delay that is added at random."""

CRASHES_UNTIL_DEAD = 3
"""Consecutive abandoned attempts after which a delivery is dead: it may be the cause."""


class Schedule:
    """The retry schedule of a route: the delay after each failed attempt, and the end of its window."""

    def __init__(self, retry: Retry, jitter: float | None = None) -> None:
        self._delays, self.window = retry.schedule, retry.window
        self._jitter = JITTER if jitter is None else jitter
        self.first_delay = timedelta(seconds=next(iter(retry.schedule), 0))

    def delay_after(self, attempt: int, elapsed: timedelta = timedelta(0)) -> timedelta | None:
        """Return the delay after this failed attempt (1 for the first); None if it was the last.

        `elapsed` is the time since the first attempt of the run.
        """
        if attempt > len(self._delays):
            return None
        seconds = self._delays[attempt - 1] * random.uniform(1, 1 + self._jitter)  # noqa: S311  # no secret
        is_over = self.window is not None and elapsed.total_seconds() + seconds >= self.window
        return None if is_over else timedelta(seconds=seconds)


class RoutePolicy(msgspec.Struct, frozen=True):
    """The settings of a route for the store and `decide`. Made once per configuration."""

    ordering: Ordering
    blocks_on_death: bool
    schedule: Schedule
    when: When = When()
    """The conditions on its events."""
    fetches: bool = False
    """True when an attempt fetches the entity, so that a later attempt may find new data."""
    outcomes: Mapping[str, str] = {}
    """Rules by error class that override `relay.delivery.outcome.RULES` for its destination."""
    skew: timedelta = timedelta(seconds=5)
    """The largest difference between the source's clock and ours."""
    gates: tuple[GateKey, ...] = ()
    """The gates that it passes: source, route, destination and api."""
    breakers: Mapping[GateKey, BreakerLimits] = {}
    """The gates with a circuit breaker, and its limits."""
    rate_limits: tuple[RateLimit, ...] = ()
    """The rate limits that an attempt uses."""


class History(msgspec.Struct, frozen=True):
    """Results of the earlier attempts of this run."""

    same_in_a_row: int = 0
    """Consecutive last attempts that failed with the same error class as this one."""
    began_at: datetime | None = None
    """The time at which the first attempt of the run was recorded."""


NO_HISTORY = History()


Policies = Mapping[str, RoutePolicy]
"""The policy of each configured route, by name."""

UNKNOWN_ROUTE = RoutePolicy("strict", blocks_on_death=False, schedule=Schedule(Retry()))
"""The policy of a route that was removed from the configuration: its deliveries keep their order, and none is claimed."""


LEFT_TO_OTHERS = timedelta(minutes=10)
"""Time for which work on an unknown route is left to relays whose configuration has the route."""


def policies(config: Config) -> dict[str, RoutePolicy]:
    """Make the policy of every route. Call it once per configuration, and pass the result on."""
    return {name: _policy(config, route) for name, route in config.routes.items()}


def collect_breaker_limits(policies: Policies) -> dict[GateKey, BreakerLimits]:
    """Return the limits of every breaker that these routes pass."""
    return {key: limits for policy in policies.values() for key, limits in policy.breakers.items()}


def _policy(config: Config, route: Route) -> RoutePolicy:
    destination = config.destinations[route.destination]
    endpoints: dict[GateKey, Limited] = {("destination", route.destination): destination}
    calls = {"destination": 1}
    if route.sync is not None:
        calls = {"destination": 1 + (0 if route.sync.find is None else 1), "api": 1}
    if route.api is not None:
        endpoints["api", route.api] = config.apis[route.api]
    return RoutePolicy(
        ordering=config.get_ordering(route),
        blocks_on_death=route.on_dead == "block",
        schedule=Schedule(route.retry),
        when=route.when,
        fetches=route.api is not None,
        outcomes=dict[str, str](destination.outcomes.items()) if isinstance(destination, Downstream) else {},
        skew=timedelta(seconds=config.sources[route.source].clock_skew),
        gates=(("source", route.source), ("route", route.name), *endpoints),
        breakers={
            key: msgspec.structs.replace(BREAKER, open_for=endpoint.breaker.open_for)
            for key, endpoint in endpoints.items()
        },
        rate_limits=tuple(
            RateLimit(key, endpoint.rate, calls[key[0]])
            for key, endpoint in endpoints.items()
            if endpoint.rate is not None
        ),
    )


def needs_history(outcome: Outcome, policy: RoutePolicy) -> bool:
    """Return whether `decide` needs the results of earlier attempts."""
    if not isinstance(outcome, Failed):
        return False
    return (
        policy.schedule.window is not None
        or is_rate_held(outcome, policy)
        or rule_for(outcome.error_class, policy.outcomes)
        in {
            Rule.CONFIRM,
            Rule.AGAIN,
            Rule.REFETCH,
        }
    )


def is_rate_held(outcome: Outcome, policy: RoutePolicy) -> bool:
    """Return whether the attempt failed because the other side's rate limit is used up, which is not its event's fault."""
    return (
        isinstance(outcome, Failed)
        and outcome.error_class == "throttled"
        and rule_for("throttled", policy.outcomes) is Rule.RETRY
        and bool(outcome.calls)
        and outcome.calls[-1].hold is not None
    )


HELD_AT_MOST = 20
"""Consecutive rate-limited attempts that do not count. Later ones do, as the limit may be too small for any attempt."""


def decide(
    delivery: Delivery,
    outcome: Outcome,
    policy: RoutePolicy,
    now: datetime,
    history: History = NO_HISTORY,
    *,
    is_stopped: bool = False,
) -> AnyFact:
    """Turn the outcome of an attempt into a fact.

    Args:
        delivery: the claimed delivery.
        outcome: the outcome of its attempt.
        policy: the policy of its route.
        now: the database's time, UTC.
        history: results of earlier attempts; used only if `needs_history` is true.
        is_stopped: True if the endpoint's breaker was already open, so that the event is not to blame for a failure.
    """
    if isinstance(outcome, Delivered):
        return facts.DeliveredFact(
            did=outcome.did,
            calls=outcome.calls,
            late=delivery.late,
            lane=get_lane_kind(delivery.lane),
            fetch_began_at=outcome.fetch_began_at,
            last_modified=outcome.last_modified,
            applied_hash=None if outcome.applied_hash is None else outcome.applied_hash.hex(),
            stale_suspected=outcome.stale_suspected,
        )
    if isinstance(outcome, Unchanged) and not policy.fetches:
        return msgspec.structs.replace(outcome, lane=get_lane_kind(delivery.lane))
    if not isinstance(outcome, Failed):
        return outcome
    return _decide_failed(delivery, outcome, policy, now, history, is_stopped=is_stopped)


def _decide_failed(
    delivery: Delivery, outcome: Failed, policy: RoutePolicy, now: datetime, history: History, *, is_stopped: bool
) -> AnyFact:
    rule = rule_for(outcome.error_class, policy.outcomes)
    confirmed = rule is Rule.CONFIRM and history.same_in_a_row + 1 >= CONFIRMED_AFTER
    at_once = rule is Rule.NOT_COUNTED or (rule is Rule.AGAIN and history.same_in_a_row < AGAIN_AT_MOST)
    # The gate holds it back until the hold ends or an operator resumes it. Scheduled retries would use up the attempts of
    # every event that shares the limit.
    at_once |= is_rate_held(outcome, policy) and history.same_in_a_row < HELD_AT_MOST
    # An open breaker determines the time of the next call; the schedule applies only to attempts that count.
    is_held_back = is_stopped or rule in {Rule.STOP, Rule.RETIRE}
    spared = at_once or is_held_back or rule is Rule.REFETCH
    delay: timedelta | None = timedelta(0)
    if rule is Rule.REFETCH and not is_held_back:
        delay = REFETCH_AFTER[min(history.same_in_a_row, len(REFETCH_AFTER) - 1)]
    elif not spared:
        delay = policy.schedule.delay_after(delivery.attempt, now - (history.began_at or now))
    if rule is Rule.DEAD or confirmed or delay is None:
        return facts.Dead(
            cause=outcome.error_class if rule is Rule.DEAD or confirmed else "exhausted",
            error=outcome.error,
            calls=outcome.calls,
            blocks_lane=policy.blocks_on_death,
        )
    return facts.AttemptFailed(
        error_class=outcome.error_class,
        error=outcome.error,
        due_at=now if at_once else now + _clamp(delay, outcome),
        calls=outcome.calls,
        counted=not spared,
    )


def can_be_given_back(outcome: Outcome) -> bool:
    """Return whether an attempt was cut before it could have an effect. It then counts as unstarted.

    A call that may have reached the other side becomes a fact instead, so that the log explains the second call.
    """
    return (
        isinstance(outcome, Failed)
        and RULES[outcome.error_class] is Rule.NOT_COUNTED
        and all(call.sent == "not_sent" or call.step in _READS for call in outcome.calls)
    )


def decide_abandoned(delivery: OpenDelivery, relay_node: str, policy: RoutePolicy | None) -> AnyFact:
    """Return the fact for a delivery whose lease expired: abandoned, or dead after the third time in a row.

    Args:
        delivery: the claimed delivery.
        relay_node: the holder of the lease.
        policy: the policy of its route; without one the delivery never becomes dead.
    """
    if delivery.crashes + 1 < CRASHES_UNTIL_DEAD or policy is None:
        return facts.Abandoned(relay_node=relay_node)
    return facts.Dead(
        cause="crash_loop",
        error=f"{CRASHES_UNTIL_DEAD} attempts in a row were abandoned, the last one by {relay_node}",
        blocks_lane=policy.blocks_on_death,
    )


def _clamp(delay: timedelta, outcome: Failed) -> timedelta:
    """Return the delay that the destination asked for, but at least our own and at most a day."""
    if outcome.retry_after is None:
        return delay
    asked = timedelta(seconds=min(outcome.retry_after, LONGEST_RETRY_AFTER.total_seconds()))
    return max(delay, asked)


def find_endpoint(outcome: Outcome, policy: RoutePolicy) -> GateKey | None:
    """Return the endpoint that an attempt called last; None if it made no call or was cut by the relay."""
    if not outcome.calls or (isinstance(outcome, Failed) and RULES[outcome.error_class] is Rule.NOT_COUNTED):
        return None
    return find_called_endpoint(outcome.calls[-1], policy)


def find_failed_endpoint(outcome: Outcome, policy: RoutePolicy) -> GateKey | None:
    """Return the endpoint whose call failed the attempt. None without such a call, as when the event alone is to blame."""
    is_failure = isinstance(outcome, Failed) and outcome.error_class not in OF_THE_EVENT
    return find_endpoint(outcome, policy) if is_failure else None


def list_breaker_reports(outcome: Outcome, policy: RoutePolicy) -> Iterator[Report]:
    """Turn an attempt's outcome into circuit breaker reports.

    Every endpoint called before the last one works; otherwise the attempt would have stopped there.
    """
    last = find_endpoint(outcome, policy)
    if last is None:
        return
    for earlier in {find_called_endpoint(call, policy) for call in outcome.calls} - {last, None}:
        if earlier is not None:
            yield Report(earlier, "well", "")
    yield Report(last, *judge_health(outcome, policy))


def judge_health(outcome: Outcome, policy: RoutePolicy) -> tuple[Health, str]:
    """Return the health of the endpoint that an attempt called last, and the reason."""
    if not isinstance(outcome, Failed):
        return "well", ""
    if is_rate_held(outcome, policy):
        return "well", ""
    rule = rule_for(outcome.error_class, policy.outcomes)
    if rule is Rule.STOP:
        return "refused", outcome.error
    if rule is Rule.RETIRE:
        return "retired", outcome.error
    return HEALTH.get(outcome.error_class, "well"), outcome.error


def find_called_endpoint(call: Call, policy: RoutePolicy) -> GateKey | None:
    """Return the endpoint that a call went to."""
    kind = "api" if call.step == "fetch" else "destination"
    return next((key for key in policy.breakers if key[0] == kind), None)


class HoldRequest(msgspec.Struct, frozen=True):
    """A request of an endpoint to make no calls for some time."""

    key: GateKey
    lasts: timedelta
    why: str


def list_hold_requests(outcome: Outcome, policy: RoutePolicy) -> Iterator[HoldRequest]:
    """Yield the hold requests in the responses to an attempt's calls, limited to `LONGEST_HOLD`."""
    for call in outcome.calls:
        if (key := find_called_endpoint(call, policy)) and (request := read_hold_request(key, call)):
            yield request


def read_hold_request(key: GateKey, call: Call) -> HoldRequest | None:
    """Return the hold request in the response to a call, limited to `LONGEST_HOLD`; None if there is none."""
    if call.hold is None or not call.hold.seconds > 0:  # also excludes NaN
        return None
    lasts = timedelta(seconds=min(call.hold.seconds, LONGEST_HOLD.total_seconds()))
    answered = "" if call.status is None else f" answered {call.status}:"
    return HoldRequest(key, lasts, f"{call.step}{answered} {call.hold.why}") if lasts else None


def asks_for_hold(outcome: Outcome) -> bool:
    """Return whether a response to a call of the attempt asked for a rate hold."""
    return any(call.hold is not None for call in outcome.calls)


def extend_holds(
    requests: Iterable[HoldRequest], held: Mapping[GateKey, datetime], now: datetime
) -> dict[GateKey, tuple[datetime, str]]:
    """Return the end and reason of each hold that ends later than the one in `held`."""
    later: dict[GateKey, tuple[datetime, str]] = {}
    for request in requests:
        until, known = now + request.lasts, held.get(request.key)
        before = later[request.key][0] if request.key in later else known
        if before is None or until > before:
            later[request.key] = (until, request.why)
    return later
