"""`[traces]`: where each side exports its traces to."""

from __future__ import annotations

from typing import Annotated

import msgspec

from inbox.config.types import Table

CollectorUrl = Annotated[str, msgspec.Meta(pattern=r"\Ahttps?://[^\s/@]+(/[^\s@]*)?\Z")]


class Traces(Table, frozen=True):
    """Traces of both sides by OpenTelemetry, with the extra `otel`. Its standard variables (`OTEL_…`) win over these keys."""

    endpoint: CollectorUrl | None = None
    """URL of a collector that takes OTLP by HTTP, such as `http://127.0.0.1:4318/v1/traces`. Without it, and without the
    standard variables, nothing is traced."""
    ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Share of the traces that begin here which are sampled. A trace that the sender began is sampled as the sender said."""
