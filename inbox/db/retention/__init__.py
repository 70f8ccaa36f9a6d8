"""Retention: deletes expired rows of each kind in short steps, for relays and for `inbox prune`."""
