"""The certificate that an endpoint presents: read in a handshake without a request."""

from __future__ import annotations

import math
import ssl
from datetime import UTC, datetime
from urllib.parse import urlsplit

from inbox.clock import steady
from relay.http import guard
from relay.http.target import Target
from relay.http.watchdog import RunningCall

_HTTPS_PORT = 443


def certificate_end(target: Target) -> datetime | None:
    """Return when the certificate of the endpoint ends; None for plain http, and behind a proxy.

    Raises:
        ssl.SSLError: the certificate is not accepted.
        OSError, OutboundRefused: it can't be reached, or may not be.
    """
    parts = urlsplit(target.base)
    if parts.scheme != "https" or target.proxies or parts.hostname is None:
        return None
    running = RunningCall(steady() + target.timeout, lambda: math.inf)
    with guard.connect(parts.hostname, parts.port or _HTTPS_PORT, running, target.rules) as plain:
        plain.settimeout(running.remaining())
        running.detach()  # wrapping takes the socket over, which has a timeout of its own
        with target.tls.wrap_socket(plain, server_hostname=parts.hostname) as wrapped:
            found = wrapped.getpeercert() or {}
    end = found.get("notAfter")
    return None if not isinstance(end, str) else datetime.fromtimestamp(ssl.cert_time_to_seconds(end), UTC)
