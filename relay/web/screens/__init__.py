"""Every screen of the page: one file each, and its line here."""

from __future__ import annotations

from relay.web.screen import Screen
from relay.web.screens import (
    alerts,
    commands,
    dead,
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
    dead.SCREEN,
    gates.SCREEN,
    rejected.SCREEN,
    commands.SCREEN,
    commands.COMMAND,
    alerts.SCREEN,
    doctor.SCREEN,
    problems.SCREEN,
)
"""In the order of the menu."""
