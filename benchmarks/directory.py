"""A source that lists so many entities of a kilobyte each, in pages, as SCIM does; none is ever changed."""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

CHANGED = "2026-01-01T00:00:00Z"
_REST = {"username": "somebody", "emails": [{"address": "somebody@example.com"}], "about": "x" * 850}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("entities", type=int)
    given = parser.parse_args()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            start, count = (int(asked.get(name, ["0"])[0]) for name in ("startIndex", "count"))
            numbers = range(start + 1, min(start + count, given.entities) + 1)
            page = [{"id": f"u{n}", "meta": {"lastModified": CHANGED}, **_REST} for n in numbers]
            body = json.dumps({"resources": page}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
            """Say nothing."""

    ThreadingHTTPServer(("127.0.0.1", given.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
