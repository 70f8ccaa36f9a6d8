"""Names the user who runs a command, for the rows that say who did something."""

from __future__ import annotations

import getpass
import os


def login_name() -> str:
    """Return the user's name by the environment or else the system; `uid 12345` where neither knows one, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python before 3.13, and since
        return f"uid {os.getuid()}"
