"""Reads answers with llhttp, as strictly as the receiver reads requests (`inbox.http.protocol`).

`http.client` reads a chunk's size by `int(line, 16)`, so that `-1` reads without an end and `-5` raises ValueError. It
skips no interim answer but 100, and reads on after invalid header lines. This module refuses an answer that two parsers
could read differently: the call is `unknown` and its connection closed.
"""

from __future__ import annotations

import socket
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead, RemoteDisconnected

import httptools

LARGEST_HEAD = 64 * 1024
"""Most bytes of a head with the interim answers before it, of a trailer, or between two parts of a body."""
MOST_FIELDS = 100
"""Most header fields of a head, trailers included."""
MOST_INTERIM = 8
"""Most interim answers (1xx) that are skipped. RFC 9110 §15.2 requires parsing them, and sets no limit."""
_PIECE = 16 * 1024
_FIRST_FINAL_STATUS = 200
_FIRST_STATUS = 100
_SWITCHING_PROTOCOLS = 101
_VERSIONS = {"1.1": 11, "1.0": 10}


class NotHttpError(HTTPException):
    """The bytes are no reliable HTTP answer. The text is ours or llhttp's, never the other side's."""


class StrictResponse(HTTPResponse):
    """An answer with the interface of `http.client`: `begin`, `read` with a bound, and `close`. For methods other than HEAD."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.has_leftover = False
        """True when unrequested bytes followed the answer: the connection can't be used again."""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._count = 0
        self._interim = 0
        self._unused = 0
        """Bytes received since the last useful ones."""
        self._in_body = False
        self._until_close = False
        self._whole = False
        self._body = bytearray()

    def begin(self) -> None:
        """Read the head of the final answer.

        Raises:
            NotHttpError: it is no head, or too many interim answers precede it.
            RemoteDisconnected, IncompleteRead: the connection was closed before its end.
        """
        while not self._in_body:
            self._feed()
        message = HTTPMessage()
        for name, value in self._fields:
            message[name.decode("ascii")] = value.decode("latin-1")
        self.headers = self.msg = message

    def read(self, amt: int | None = None) -> bytes:
        """Read up to `amt` bytes of the body, fewer only at its end. The rest stays unread.

        Raises:
            NotHttpError: the framing of the body is unreliable.
            IncompleteRead: the connection was closed before its end.
            ValueError: there is no bound.
        """
        if amt is None:
            raise ValueError("an answer is never read without a bound")
        while len(self._body) < amt and not self._whole:
            self._feed()
        data = bytes(self._body[:amt])
        del self._body[:amt]
        if self._whole and not self._body:
            self.close()
        return data

    def close(self) -> None:
        """Release the connection's stream, and the parser, which refers to this object."""
        self._parser = None
        super().close()

    def _feed(self) -> None:
        parser = self._parser
        if parser is None:
            raise IncompleteRead(b"")
        data = self.fp.read1(_PIECE)
        if not data:
            self._at_end()
            return
        self._unused += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._whole:
                raised = error.__context__  # by one of the methods below
                raise (raised if isinstance(raised, NotHttpError) else NotHttpError(_words(error))) from None
            self.has_leftover = True
        if self._unused > LARGEST_HEAD and not self._whole:
            raise NotHttpError("a head, or what stands between the parts of a body, does not end")

    def _at_end(self) -> None:
        if self._until_close:
            self._whole = True
        elif self._unused or self._interim or self._in_body:
            raise IncompleteRead(b"")
        else:
            raise RemoteDisconnected("")

    # Callbacks of the parser:

    def on_message_begin(self) -> None:
        """Note the begin of another message."""
        self.has_leftover = self._whole

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of a head; those of a trailer are not used."""
        self._count += 1
        if self._count > MOST_FIELDS:
            raise NotHttpError(f"more than {MOST_FIELDS} header fields")
        if not self._in_body:
            self._fields.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Skip an interim answer, and check the framing of the final one."""
        parser = self._parser
        if self._whole or parser is None:
            return
        status = parser.get_status_code()
        version = _VERSIONS.get(parser.get_http_version())
        if version is None:
            raise NotHttpError("neither HTTP/1.1 nor HTTP/1.0")
        if status < _FIRST_STATUS:
            raise NotHttpError("the status is below 100")
        if status == _SWITCHING_PROTOCOLS:
            raise NotHttpError("it switches to a protocol that nobody has asked for")
        if status < _FIRST_FINAL_STATUS:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise NotHttpError(f"more than {MOST_INTERIM} interim answers")
            self._fields.clear()
            self._count = 0
            return
        codings = [value.lower() for name, value in self._fields if name.lower() == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or version == _VERSIONS["1.0"]):
            raise NotHttpError("the only Transfer-Encoding is chunked, and in HTTP/1.0 there is none")
        self.code = self.status = status
        self.version, self.reason = version, ""
        self._until_close = not codings and all(name.lower() != b"content-length" for name, _ in self._fields)
        self.will_close = not parser.should_keep_alive()
        self._in_body = True
        self._unused = 0

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body."""
        if not self._whole:
            self._body += data
            self._unused = 0

    def on_message_complete(self) -> None:
        """Note the end of the final answer."""
        self._whole = self._in_body


def _words(error: Exception) -> str:
    """Return the parser's own reason, a constant of llhttp, with a small letter for the middle of a sentence."""
    reason = str(error)
    return reason[:1].lower() + reason[1:]
