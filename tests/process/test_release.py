"""`make release` and `make sbom`: the same bytes each time, with everything that the product needs, and nothing else."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)


def test_the_bill_of_materials_has_every_runtime_package_with_its_version_and_hashes(tmp_path: Path) -> None:
    """The tool checks it against CycloneDX's schema before it writes it, or else ends with an error."""
    made = run("make", "--assume-old=.venv/.ready", "sbom", f"SBOM={tmp_path}/sbom.json")
    assert made.returncode == 0, made.stderr
    document = msgspec.json.decode((tmp_path / "sbom.json").read_bytes())
    assert (document["bomFormat"], document["metadata"]["component"]["name"]) == ("CycloneDX", "inbox-relay")
    lock = (ROOT / "requirements-runtime.lock").read_text(encoding="utf-8")
    listed = {(each["name"], each["version"]) for each in document["components"]}
    assert listed == set(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    places = [place for component in document["components"] for place in component["externalReferences"]]
    hashes = {digest["content"] for place in places for digest in place.get("hashes", ())}
    assert hashes == set(re.findall(r"--hash=sha256:(\w+)", lock))


@pytest.mark.long
def test_a_release_is_built_from_the_commit_and_passes_its_own_checks(tmp_path: Path) -> None:
    """The script itself builds twice, at other times and with another umask and zone, and compares the bytes."""
    folder = tmp_path / "dist"
    made = run(".ci/release", folder)
    assert made.returncode == 0, made.stdout + made.stderr
    lines = (line.split() for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    sums = {name: digest for digest, name in lines}
    wheel, source = f"inbox_relay-{VERSION}-py3-none-any.whl", f"inbox_relay-{VERSION}.tar.gz"
    assert sums.keys() == {wheel, source, "requirements-runtime.lock", "sbom.json"}
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sums} == sums
    with zipfile.ZipFile(folder / wheel) as packed:
        assert set(run("git", "ls-files", "inbox", "relay").stdout.split()) <= set(packed.namelist())
        assert "inbox/migrations/versions/0001_initial.py" in packed.namelist()
    with tarfile.open(folder / source) as archive:
        assert {(each.uid, each.gid, each.uname) for each in archive.getmembers()} == {(0, 0, "")}
        assert len({each.mtime for each in archive.getmembers()}) == 1


def test_a_folder_that_is_no_release_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    made = run(".ci/release", tmp_path)
    assert (made.returncode, "is no release" in made.stderr) == (1, True)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]
