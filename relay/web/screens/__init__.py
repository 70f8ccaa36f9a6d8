"""Every screen of the page: one file each, and its line here."""

from __future__ import annotations

from relay.web.screen import Screen
from relay.web.screens import problems, rejected

SCREENS: tuple[Screen, ...] = (rejected.SCREEN, problems.SCREEN)
"""In the order of the menu."""
