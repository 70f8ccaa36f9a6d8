"""Every screen of the page, in the order of the menu."""

from __future__ import annotations

from relay.web import problems
from relay.web.reading import Screen
from relay.web.screens import alerts, doctor, event, lists, overview

SCREENS: tuple[Screen, ...] = (
    overview.SCREEN,
    lists.DELIVERIES,
    event.SCREEN,
    event.ENTITY,
    event.DIFFERENCE,
    lists.DEAD,
    overview.GATES,
    lists.REJECTED,
    lists.COMMANDS,
    lists.COMMAND,
    alerts.SCREEN,
    doctor.SCREEN,
    problems.SCREEN,
)
"""In the order of the menu."""
