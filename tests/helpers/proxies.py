"""The proxies of docs/deploy.md, as programs: the page's own configuration, with this machine's ports and folders."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.destinations.scripted import CERTIFICATE
from tests.docs.pages import PAGES, blocks
from tests.helpers import debian
from tests.helpers.waiting import until

PATIENCE = "1s"
"""In place of the page's ten seconds for a head and for a body."""


def page_block(info: str) -> str:
    """The one block of this kind on docs/deploy.md."""
    (text,) = (
        block.text for block in blocks(PAGES["docs/deploy.md"].read_text(encoding="utf-8")) if block.info == info
    )
    return text


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """The text with each of these replaced, all of which it must have."""
    for old, new in changes.items():
        assert old in text, f"docs/deploy.md has no {old!r}"
        text = text.replace(old, new)
    return text


def _nginx_command(folder: Path, port: int, receiver: int) -> list[str]:
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = replaced(
        page_block("nginx"),
        {
            "http {": f"http {{ {places}",
            "listen 443": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8000": f"127.0.0.1:{receiver}",
            "/etc/inbox-relay/tls.pem": str(CERTIFICATE),
            "timeout 10s": f"timeout {PATIENCE}",
        },
    )
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    here = f"daemon off; pid {folder}/nginx.pid;" + (" user root;" if os.geteuid() == 0 else "")
    return [str(debian.program("nginx")), "-c", f"{folder}/nginx.conf", "-e", "stderr", "-g", here]


def _caddy_command(folder: Path, port: int, receiver: int) -> list[str]:
    text = replaced(
        page_block("caddyfile"),
        {
            "{\n    servers": "{\n    admin off\n    auto_https off\n    servers",
            "hooks.example.com {": f"https://localhost:{port} {{\n    bind 127.0.0.1\n    tls {CERTIFICATE} {CERTIFICATE}",
            "127.0.0.1:8000": f"127.0.0.1:{receiver}",
        },
    )
    text = re.sub(r"(read_\w+) 10s", rf"\1 {PATIENCE}", text)
    (folder / "Caddyfile").write_text(text, encoding="utf-8")
    caddy = Path(sys.executable).parent / "caddy"
    return [str(caddy), "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]


PROXIES: dict[str, Callable[[Path, int, int], list[str]]] = {"nginx": _nginx_command, "caddy": _caddy_command}


@contextlib.contextmanager
def proxy(name: str, folder: Path, port: int, receiver: int) -> Iterator[None]:
    """A proxy on `port` before a receiver, for as long as the block runs."""
    log = folder / f"{name}.log"
    environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with log.open("wb") as output:
        program = subprocess.Popen(
            PROXIES[name](folder, port, receiver),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    try:
        until(lambda: program.poll() is not None or _listens(port), f"{name} listens", within=20)
        assert program.poll() is None, log.read_text(encoding="utf-8", errors="replace")
        yield
    finally:
        program.terminate()
        program.wait(10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
