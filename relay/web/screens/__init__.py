"""Every screen of the page: one file each, and its line here."""

from __future__ import annotations

from relay.web.screen import Screen
from relay.web.screens import commands, dead, deliveries, entity, event, problems, rejected

SCREENS: tuple[Screen, ...] = (
    deliveries.SCREEN,
    event.SCREEN,
    entity.SCREEN,
    dead.SCREEN,
    rejected.SCREEN,
    commands.SCREEN,
    commands.COMMAND,
    problems.SCREEN,
)
"""In the order of the menu."""
