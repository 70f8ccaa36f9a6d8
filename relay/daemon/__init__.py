"""The long-running relay: its loop, worker pools, leases, maintenance, and the supervisor of its processes."""

GRACE_SECONDS = 20.0
"""How long a relay that was told to stop keeps the leases of calls that still run, before it cuts them."""
