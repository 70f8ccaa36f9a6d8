"""The command line of `relay` starts fast: its help loads nothing that only some commands use."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "alembic",
    "jwt",
    "prometheus_client",
    "requests",
    "sqlalchemy.orm",
    "relay.daemon",
    "relay.store",
    "relay.sweep",
)


def test_the_help_of_relay_loads_no_daemon_no_demo_services_and_nothing_that_makes_calls() -> None:
    program = "import sys, relay.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert [name for name in loaded if name in HEAVY] == []
    assert [name for name in loaded if name.startswith("relay.demo.")] == ["relay.demo.cli"]
