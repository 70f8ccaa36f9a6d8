"""`make sbom` lists what production installs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]


def test_the_bill_of_materials_has_every_runtime_package_with_its_version_and_hashes(tmp_path: Path) -> None:
    """The tool checks it against CycloneDX's schema before it writes it, or else ends with an error."""
    bill = tmp_path / "sbom.json"
    made = ["make", "--assume-old=.venv/.ready", "sbom", f"SBOM={bill}"]
    subprocess.run(made, cwd=ROOT, check=True, capture_output=True, timeout=60)
    document = msgspec.json.decode(bill.read_bytes())
    assert (document["bomFormat"], document["metadata"]["component"]["name"]) == ("CycloneDX", "inbox-relay")
    lock = (ROOT / "requirements-runtime.lock").read_text(encoding="utf-8")
    listed = {(each["name"], each["version"]) for each in document["components"]}
    assert listed == set(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    hashes = {
        digest["content"]
        for component in document["components"]
        for place in component["externalReferences"]
        for digest in place.get("hashes", ())
    }
    assert hashes == set(re.findall(r"--hash=sha256:(\w+)", lock))
