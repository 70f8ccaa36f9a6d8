"""The presets by name: each file of `inbox/sources/presets/` is one."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

from inbox.config.sources import Source
from inbox.sources import presets
from inbox.sources.base import Preset

PRESETS: dict[str, Preset] = {
    name.replace("_", "-"): import_module(f"{presets.__name__}.{name}").PRESET
    for name in sorted(module.name for module in iter_modules(presets.__path__))
}


def preset_of(source: Source, passed: frozenset[str] = frozenset()) -> Preset:
    """Return the preset that `source` names, as `source` configures it; headers that are `passed` on are kept, too.

    `inbox.loader` has checked that there is such a preset, and that it can be configured so. A signature is never kept.
    """
    preset = PRESETS[source.preset]
    if preset.keeps is not None:
        passed |= preset.keeps(source)
    signatures = (*preset.signatures, *([] if source.signature is None else [source.signature]))
    return replace(
        preset,
        read=preset.read if preset.reader is None else preset.reader(source),
        kept_headers=(preset.kept_headers | passed) - {each.header.lower() for each in signatures},
    )
