"""The presets by name: the one place where a new one is registered."""

from __future__ import annotations

from dataclasses import replace

from inbox.config import Source
from inbox.config_shape import nearest
from inbox.errors import ConfigError
from inbox.sources import slack_message, trivore
from inbox.sources.base import Preset

PRESETS: dict[str, Preset] = {
    "slack-message": slack_message.PRESET,
    "trivore": trivore.PRESET,
}


def preset_of(source: Source) -> Preset:
    """The preset that `source` names, as `source` configures it.

    Raises:
        ConfigError: there is none of that name, or it can't be configured so.
    """
    try:
        preset = PRESETS[source.preset]
    except KeyError:
        raise ConfigError(
            f"[sources.{source.name}] preset: there is no preset {source.preset!r}; {nearest(source.preset, PRESETS)}"
        ) from None
    if preset.reader is None:
        return preset
    try:
        return replace(preset, read=preset.reader(source))
    except ValueError as error:
        raise ConfigError(f"[sources.{source.name}] pattern {error}") from None
