"""The form of `delivery_log.detail` after an erasure, in SQL: one expression, which the trigger checks too."""

from __future__ import annotations

from inbox.db.dialect import POSTGRES
from inbox.db.erasure.subject import ERASED

KEPT = (
    "attempt", "because", "blocks_lane", "by", "cause", "counted", "crashes", "did", "due_at", "duplicate", "error_class",
    "fetch_began_at", "lane", "last_modified", "late", "of", "relay_node", "run", "stale_suspected", "state", "was_due_at",
    "who",
)  # fmt: skip
"""Keys that stay: from them follows the state of the delivery. `who` is an operator."""
EMPTIED = ("error", "why")
"""Keys whose text gives way to a word, since a fact can't be read without them. Every other key goes."""


def emptied(dialect: str, detail: str) -> str:
    """Return the expression of `detail` without anything of a person. Applied again, it changes nothing."""
    kept, texts = _list(KEPT + EMPTIED), _list(EMPTIED)
    if dialect == POSTGRES:
        value = f"CASE WHEN d.key IN ({texts}) THEN to_jsonb(CAST('{ERASED}' AS text)) ELSE d.value END"
        return f"coalesce((SELECT jsonb_object_agg(d.key, {value}) FROM jsonb_each({detail}) d WHERE d.key IN ({kept})), '{{}}')"
    value = f"CASE WHEN d.key IN ({texts}) THEN '{ERASED}' ELSE json({detail} -> d.fullkey) END"
    return f"(SELECT json_group_object(d.key, {value}) FROM json_each({detail}) d WHERE d.key IN ({kept}))"


def _list(keys: tuple[str, ...]) -> str:
    return ", ".join(f"'{key}'" for key in keys)
