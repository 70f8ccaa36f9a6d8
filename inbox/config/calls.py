"""Keys that the calls of sync routes and of sweeps have in common."""

from __future__ import annotations

from inbox.config.types import Table


class CallKeys(Table, frozen=True, kw_only=True):
    """Keys that every call of a sync route or a sweep has."""

    headers: dict[str, str] = {}
    """Headers of this call, before those of the endpoint; values are templates, as in `path`. Secrets belong in the
    endpoint's `auth` or `headers`."""
    graphql: str | None = None
    """GraphQL document, sent by `POST` as `query` in the JSON body. It is no template; `body = { variables = { … } }` has
    its values. Then `errors` is by default "errors"."""
    errors: str | None = None
    """JMESPath into an answer of a success (2xx) that gives errors, as text or a list of texts. If it finds any, the call
    has failed as `rejected`. With `graphql`, an expression that doesn't look at "errors" counts besides them."""
    throttled: str | None = None
    """JMESPath into an answer of a success (2xx): if it finds something, the call has failed as `throttled`."""
