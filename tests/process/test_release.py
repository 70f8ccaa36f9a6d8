"""`make release` builds what is committed, the same bytes each time, and everything that the product needs is in it."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@pytest.mark.long
def test_a_release_is_built_from_the_commit_and_passes_its_own_checks(tmp_path: Path) -> None:
    """The script itself builds twice, at other times and with another umask and zone, and compares the bytes."""
    folder = tmp_path / "dist"
    made = subprocess.run(
        [".ci/release", str(folder)], cwd=ROOT, check=False, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stdout + made.stderr

    listed_sums = (line.split() for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    sums = {name: digest for digest, name in listed_sums}
    wheel, source = f"inbox_relay-{VERSION}-py3-none-any.whl", f"inbox_relay-{VERSION}.tar.gz"
    assert sums.keys() == {wheel, source, "requirements-runtime.lock", "sbom.json"}
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sums} == sums

    listed = subprocess.run(["git", "ls-files", "inbox", "relay"], cwd=ROOT, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(folder / wheel) as packed:
        assert set(listed.stdout.split()) <= set(packed.namelist())
        assert "inbox/migrations/versions/0001_initial.py" in packed.namelist()
    with tarfile.open(folder / source) as archive:
        members = archive.getmembers()
        assert {(each.uid, each.gid, each.uname) for each in members} == {(0, 0, "")}
        assert len({each.mtime for each in members}) == 1


def test_a_folder_that_is_no_release_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    made = subprocess.run([".ci/release", tmp_path], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert (made.returncode, [each.name for each in tmp_path.iterdir()]) == (1, ["thesis.txt"])
    assert "is no release" in made.stderr
