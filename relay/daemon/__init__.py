"""The long-running relay: its loop, worker pools, leases and maintenance, and the supervisor of its processes."""
