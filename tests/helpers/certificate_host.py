"""A host of certificates over HTTPS, as AWS and PayPal have one, with an authority of its own."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from inbox.receiver.fetcher import Get, get_over_https

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Answer = Callable[["Request"], None]


@cache
def signing_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """The provider's key, made once."""
    return rsa.generate_private_key(65537, bits)


def pem_of(
    name: str,
    key: PrivateKey,
    *,
    begins: datetime = datetime(2025, 1, 1, tzinfo=UTC),
    lasts: timedelta = timedelta(days=36_500),
    by: tuple[str, ec.EllipticCurvePrivateKey] | None = None,
    alternative: str | None = None,
) -> bytes:
    """A certificate of `name`: signed with its own key, or `by` an authority, for TLS then."""
    issuer, signer = by or (name, key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + lasts)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if by is None:
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        )
        signs = x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False)
        made = made.add_extension(signs, critical=True)
    if by is not None or alternative is not None:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(alternative or name)]), critical=False)
    return made.sign(signer, SHA256()).public_bytes(Encoding.PEM)


class Request(http.server.BaseHTTPRequestHandler):
    """One request to the host."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:  # the library's name
        self.server.asked.append(f"{self.headers['Host']}{self.path}")
        self.server.arrived.set()
        answer = self.server.answers.get(self.path)
        with contextlib.suppress(OSError):  # who asked may have left
            self.send(404, b"") if answer is None else answer(self)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:  # noqa: ANN401  # the library's signature
        """Stay silent."""


class _Server(http.server.ThreadingHTTPServer):
    asked: list[str]
    answers: dict[str, Answer]
    arrived: threading.Event
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:  # noqa: ANN401
        """Stay silent: who does not trust the host leaves in the middle of the handshake."""


class CertificateHost:
    """A running host: its answers, the requests it got, and the way to it."""

    def __init__(self, server: _Server, trusting: ssl.SSLContext) -> None:
        self._server = server
        self.trusting = trusting
        self.asked, self.answers, self.arrived = server.asked, server.answers, server.arrived

    def dial(self, _host: str) -> socket.socket:
        return socket.create_connection(self._server.server_address[:2], timeout=5)  # type: ignore[arg-type]

    def get(self, **options: Any) -> Get:  # noqa: ANN401
        """The product's own function, which finds every name here."""
        return partial(get_over_https, dial=self.dial, context=self.trusting, **options)

    def serve(self, path: str, body: bytes) -> None:
        """Answer 200 with this body."""
        self.answers[path] = lambda request: request.send(200, body)


@contextlib.contextmanager
def certificate_host(folder: Path, name: str) -> Iterator[CertificateHost]:
    """A host that proves to be `name` to whoever trusts its authority."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = pem_of("the authority of a test", authority)
    chain = folder / "chain.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain.write_bytes(private + pem_of(name, key, by=("the authority of a test", authority)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    with _Server(("127.0.0.1", 0), Request) as server:
        server.asked, server.answers, server.arrived = [], {}, threading.Event()
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield CertificateHost(server, ssl.create_default_context(cadata=root.decode()))
        finally:
            server.shutdown()
            thread.join()
