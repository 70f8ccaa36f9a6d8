"""What an attempt says of the endpoints that it called: the breakers hear of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from relay.delivery.gates import GateKey, Health
from relay.delivery.outcome import Call, Failed, Outcome
from relay.delivery.policy import RoutePolicy
from relay.delivery.rules import HEALTH, RULES, Rule, rule_for


def endpoint_of(outcome: Outcome, policy: RoutePolicy) -> GateKey | None:
    """The breaker of what an attempt called last; None when that says nothing: it called nobody, or we cut it ourselves."""
    if not outcome.calls or (isinstance(outcome, Failed) and RULES[outcome.error_class] is Rule.NOT_COUNTED):
        return None
    return _endpoint(outcome.calls[-1], policy)


def heard_of(outcome: Outcome, policy: RoutePolicy) -> Iterator[tuple[GateKey, Health, str]]:
    """What an attempt says of each endpoint that it called, and why: it would not have gone on from one that is unwell."""
    last = endpoint_of(outcome, policy)
    if last is None:
        return
    for earlier in {_endpoint(call, policy) for call in outcome.calls} - {last, None}:
        if earlier is not None:
            yield earlier, "well", ""
    yield last, *health_of(outcome, policy)


def _endpoint(call: Call, policy: RoutePolicy) -> GateKey | None:
    kind = "api" if call.step == "fetch" else "destination"
    return next((key for key in policy.breakers if key[0] == kind), None)


def health_of(outcome: Outcome, policy: RoutePolicy) -> tuple[Health, str]:
    """What an attempt says of the endpoint that it called last, and why."""
    if not isinstance(outcome, Failed):
        return "well", ""
    rule = rule_for(outcome.error_class, policy.outcomes)
    if rule is Rule.STOP:
        return "refused", outcome.error
    if rule is Rule.RETIRE:
        return "retired", outcome.error
    return HEALTH.get(outcome.error_class, "well"), outcome.error
