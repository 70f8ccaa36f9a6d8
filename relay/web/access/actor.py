"""The person or program behind a request, and what each role may do. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["viewer", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "operator")


class Actor(msgspec.Struct, frozen=True):
    """The person or program that asks."""

    name: str
    role: Role
    by: Literal["session", "token", "proxy"] = "session"

    @property
    def may_act(self) -> bool:
        """Tell whether it may change something."""
        return self.role == "operator"
