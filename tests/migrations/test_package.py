"""An installed package can migrate: the wheel has the migrations and their statements."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKED = ("inbox", "relay", "migrations", "pyproject.toml", "README.md", "LICENSE")


def test_the_wheel_holds_every_file_of_both_sides_and_the_migrations_below_inbox(tmp_path: Path) -> None:
    """Build the wheel from a copy, in a second or two: a `build` folder in the checkout could hide a missing file."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    copy.mkdir()
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(out), str(copy)], check=False, capture_output=True, text=True, timeout=120
    )
    assert built.returncode == 0, built.stderr

    (wheel,) = out.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {
        ("inbox/" if folder == "migrations" else "") + str(path.relative_to(ROOT))
        for folder in ("inbox", "relay", "migrations")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in {".py", ".sql", ".mako", ".typed", ".html", ".css", ".js", ".svg", ".toml"}
    }
    assert packed == here
    assert any(name.endswith(".sql") for name in here)
