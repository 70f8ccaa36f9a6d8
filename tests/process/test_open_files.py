"""A worker may have as many connections as it needs, though most systems let a process open 1,024 files at first."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))
from inbox.gunicorn_worker import allow_files
allow_files(1000, 'connections')
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("hard", "allowed", "told"), [(5000, 1100, ""), (500, 500, "too few for connections = 1000\n")]
)
def test_as_many_files_may_be_open_as_are_needed_or_it_is_told(hard: int, allowed: int, told: str) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= hard
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(hard=hard)], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) == allowed
    assert done.stderr.endswith(told)
    assert bool(done.stderr) == bool(told)
