"""deploy/Containerfile: hadolint finds nothing, nothing secret can get in, and it is built where a builder is installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.deploy.shipped import DEPLOY, image
from tests.docs.pages import ROOT

CONTAINERFILE = DEPLOY / "Containerfile"
BUILDAH = shutil.which("buildah")
TAG = "localhost/inbox-relay:test"
SHOWN = """
import importlib.metadata, importlib.util, json, os, subprocess
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
print(json.dumps({
    "user": os.getuid(),
    "inbox": subprocess.run(["inbox", "--help"], **quiet).returncode,
    "relay": subprocess.run(["relay", "--help"], **quiet).returncode,
    "bill": json.load(open("/usr/share/doc/inbox-relay/sbom.json"))["bomFormat"],
    "pip": importlib.util.find_spec("pip") is not None,
    "packages": sorted(each.name.lower().replace("_", "-") for each in importlib.metadata.distributions()),
    "writable": [each for each in ("/opt/inbox-relay", "/etc/inbox-relay", "/usr") if os.access(each, os.W_OK)],
}))
"""


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", CONTAINERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_of_an_unprivileged_user_and_holds_what_is_named_alone() -> None:
    """No `COPY .`, no secret as an argument or variable: what is in a layer, everybody has who has the image."""
    lines = CONTAINERFILE.read_text(encoding="utf-8").splitlines()
    copied = {
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    }
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored[1:]} == copied
    assert [line.split()[1] for line in lines if line.startswith("USER ")] == ["10001:10001"]
    assert [line for line in lines if line.startswith("ARG ")] == ["ARG PYTHON=python:3.13-slim-trixie"]
    assert image()["CMD"][:2] == ["inbox", "serve"]


def lacking(stderr: str) -> str | None:
    """The line in which buildah says that the machine can build no image at all; None: the error is another."""
    signs = ("initializing source docker://", 'could not find "netavark"')  # the base image, and buildah's own helper
    return next((line for line in stderr.splitlines() if any(sign in line for sign in signs)), None)


@pytest.mark.nightly
@pytest.mark.skipif(BUILDAH is None, reason="no buildah: nobody builds deploy/Containerfile")
def test_it_is_built_and_holds_the_programs_and_the_bill_of_materials() -> None:
    """Takes a minute. IMAGE_BUILD has further options, such as `--build-arg=PYTHON=localhost/python` for another base image."""
    options = shlex.split(os.environ.get("IMAGE_BUILD", ""))
    build = shlex.join([str(BUILDAH), "build", "--format=docker", "--isolation=chroot", "--retry=0", *options])
    made = ["make", "--assume-old=.venv/.ready", "image", f"BUILD={build}", f"IMAGE={TAG}"]
    done = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=False)
    if (lacks := lacking(done.stderr)) is not None:
        pytest.skip(f"nobody builds deploy/Containerfile: {lacks}")
    assert done.returncode == 0, done.stderr
    about = msgspec.json.decode(buildah("inspect", "--type=image", TAG))["Docker"]["config"]
    assert (about["User"], about["WorkingDir"], about["Cmd"]) == ("10001:10001", "/etc/inbox-relay", image()["CMD"])
    assert about["Healthcheck"]["Test"] == ["CMD", *image()["HEALTHCHECK"]]
    container = buildah("from", TAG).strip()
    try:
        shown = msgspec.json.decode(buildah("run", "--isolation=chroot", container, "python3", "-c", SHOWN))
    finally:
        buildah("rm", container)
    lock = (ROOT / "requirements-runtime.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==[^;]*$", lock, re.MULTILINE))
    assert locked <= set(shown.pop("packages"))
    assert shown == {"user": 10001, "inbox": 0, "relay": 0, "bill": "CycloneDX", "pip": False, "writable": []}


def buildah(*arguments: str) -> str:
    assert BUILDAH is not None
    return subprocess.run([BUILDAH, *arguments], capture_output=True, text=True, check=True, timeout=300).stdout
