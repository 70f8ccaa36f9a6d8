"""The long-running relay: its loop, worker pools, leases, maintenance, and the supervisor of its processes."""
