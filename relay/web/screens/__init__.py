"""Every screen of the page, in the order of the menu."""

from __future__ import annotations

from relay.web.reading import Screen
from relay.web.screens import (
    alerts,
    commands,
    deliveries,
    doctor,
    entity,
    event,
    gates,
    overview,
    problems,
    rejected,
)

SCREENS: tuple[Screen, ...] = (
    overview.SCREEN,
    deliveries.SCREEN,
    event.SCREEN,
    entity.SCREEN,
    entity.DIFFERENCE,
    deliveries.DEAD,
    gates.SCREEN,
    rejected.SCREEN,
    commands.SCREEN,
    commands.COMMAND,
    alerts.SCREEN,
    doctor.SCREEN,
    problems.SCREEN,
)
"""In the order of the menu."""
