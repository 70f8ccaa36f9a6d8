"""An HTTPS host for certificates, like those of AWS and PayPal, with its own authority."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
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
from tests.helpers.scripted import Act, ScriptedServer, answer

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@cache
def signing_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the provider's key, generated once."""
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
    """Return a certificate of `name`: self-signed, or signed `by` an authority for TLS."""
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


class CertificateHost(ScriptedServer):
    """A running certificate host; `asked` are host names and paths."""

    def __init__(self, context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
        super().__init__(answer(404), tls=context)
        self.trusting = trusting

    @property
    def asked(self) -> list[str]:
        return [f"{seen.headers['host']}{seen.target}" for seen in self.seen]

    def dial(self, _host: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def get(self, **options: Any) -> Get:  # noqa: ANN401
        """Return the product's own function, which resolves every name to this host."""
        return partial(get_over_https, dial=self.dial, context=self.trusting, **options)

    def serve(self, path: str, body: bytes) -> None:
        """Answer requests for this path with 200 and this body."""
        self.meet(path, answer(200, body))

    def meet(self, path: str, act: Act) -> None:
        """Answer requests for this path with this act."""
        self.routes[f"GET {path}"] = [act]


@contextlib.contextmanager
def certificate_host(folder: Path, name: str) -> Iterator[CertificateHost]:
    """Serve as host `name` for clients that trust its authority."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = pem_of("the authority of a test", authority)
    chain = folder / "chain.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain.write_bytes(private + pem_of(name, key, by=("the authority of a test", authority)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    trusting = ssl.create_default_context(cadata=root.decode())
    with contextlib.closing(CertificateHost(context, trusting)) as host:
        yield host
