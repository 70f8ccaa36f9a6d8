"""Other systems that the configuration names: asked only with `--online`, by the probes of `inbox check --online`."""

from __future__ import annotations

from collections.abc import Iterator

from inbox import check
from inbox.examination import DoctorFinding, Examination, FindingKind, Installation

UNREACHED = FindingKind(
    "system_unreached",
    "warning",
    "An api or a destination does not answer.",
    "its deliveries wait and are retried; when the schedule ends they are dead",
    "inbox check --online",
)
DENIED = FindingKind(
    "system_denied",
    "warning",
    "An api or a destination answered 401 or 403.",
    "its credentials may be wrong or over, so that its circuit breaker opens at the first delivery",
    "inbox check --online # after correcting its auth",
)


def _systems(installation: Installation) -> Iterator[DoctorFinding]:
    probes = [probe for side in check.sides() for probe in side.probes(installation.config)]
    for reply in check.asked(probes, lambda _: None) if probes else ():
        if not reply.reached:
            yield UNREACHED.found(reply.key, f"{reply.key}: {reply.url} was not reached: {reply.text}")
        elif reply.is_denied:
            yield DENIED.found(reply.key, f"{reply.key}: {reply.url} {reply.text}")


EXAMINATIONS = (
    Examination(
        "systems",
        "Other systems",
        "Each api and destination, and the one of the alerts.",
        _systems,
        (UNREACHED, DENIED),
        needs_database=False,
        is_online=True,
    ),
)
