"""Mistakes in a configuration."""

from __future__ import annotations

import pytest

from inbox.errors import ConfigError
from inbox.loader.load import parse_config


def mistake(text: str) -> str:
    """Give the mistakes that the reader finds in this inbox.toml."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return str(caught.value)
