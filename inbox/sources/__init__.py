"""The presets by name: the one place where a new one is registered."""

from __future__ import annotations

from inbox.config import Source
from inbox.config_shape import nearest
from inbox.errors import ConfigError
from inbox.sources import trivore
from inbox.sources.base import Preset

PRESETS: dict[str, Preset] = {"trivore": trivore.PRESET}


def preset_of(source: Source) -> Preset:
    """The preset that `source` names.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return PRESETS[source.preset]
    except KeyError:
        raise ConfigError(
            f"[sources.{source.name}] preset: there is no preset {source.preset!r}; {nearest(source.preset, PRESETS)}"
        ) from None
