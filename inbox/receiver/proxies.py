"""Requires that the proxies are known by which a source's `allow_from` is judged."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from inbox.config.model import Config
from inbox.errors import ConfigError


def require_known_proxies(config: Config, trusted: Iterable[str]) -> None:
    """Require that not everybody is a trusted proxy, who may claim any address, where a source lists addresses.

    Raises:
        ConfigError: everybody is, by gunicorn's `forwarded_allow_ips`. The text has a line for each source.
    """
    listing = [name for name, source in config.sources.items() if source.allow_from is not None]
    if listing and any(_is_everybody(proxy.strip()) for proxy in trusted):
        told = "FORWARDED_ALLOW_IPS lets every sender claim any address; name your proxies there"
        raise ConfigError("\n".join(f"[sources.{name}] allow_from: {told}" for name in listing))


def _is_everybody(proxy: str) -> bool:
    try:
        return proxy == "*" or ipaddress.ip_network(proxy).prefixlen == 0
    except ValueError:  # gunicorn says so
        return False
