"""JSON of answers."""

from __future__ import annotations

import msgspec

encode = msgspec.json.Encoder(enc_hook=str, decimal_format="number").encode
"""Encode an answer. Figures that Postgres has as numeric are numbers."""
