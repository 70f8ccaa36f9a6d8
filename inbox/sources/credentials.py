"""Authenticate requests by a shared secret, by a signature, or by both.

Every rejection takes the same work, whether or not the source exists: the proofs of all sources that may send a body of
this size are tried, each with the largest number of keys of its kind. Only those of the request's source count. Neither
the response nor its time therefore reveals which sources exist or which secret was close. Shared secrets are kept as
SHA-256 digests, which compare in constant time and can't be shown by mistake.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from urllib.parse import unquote_to_bytes

from inbox.config.sources import BasicAuth, BearerAuth, HeaderAuth, InboundAuth, NoAuth, Source, UrlTokenAuth
from inbox.config.values import Network, Secret
from inbox.errors import ConfigError, NotAuthenticated, collect_config_errors
from inbox.events.event import RawRequest
from inbox.sources.base import KeyedProof, Preset, Proof, Revealed, compute_digest
from inbox.sources.keys import CertificateNeeded, MissingCertificate
from inbox.sources.signing import SignatureProof

Way = Callable[[RawRequest], bytes]

REJECTION = "unknown source, or the request does not prove to come from it; check the URL and the secret"
"""One text for all causes, as the response must not reveal the cause. `rejected_request` has it."""

UNKNOWN_SOURCE_MAX_BODY = 256 * 1024
"""Bytes, the limit of most presets. A larger request can reveal a source with a higher limit, but reading more would
let strangers send as much as the largest source may."""


class SharedSecretProof(KeyedProof):
    """Proof by one of the valid secrets, in the place that `auth` names."""

    def __init__(self, auth: InboundAuth, secrets: Revealed) -> None:
        prefix = f"{auth.user}:" if isinstance(auth, BasicAuth) else ""
        super().__init__((secret, compute_digest(prefix + reveal_all)) for secret, reveal_all in secrets)
        self._is_open = isinstance(auth, NoAuth)
        self._read_secret = _secret_reader(auth)
        self.kind = (type(auth), auth.name.lower() if isinstance(auth, HeaderAuth) else None)

    def fault(self, raw: RawRequest, now: datetime) -> str | None:
        """See Proof."""
        given = self._read_secret(raw)
        if self.is_known(given, now) | self._is_open:
            return None
        return "the secret is not currently valid" if given else "it has no secret"


class Verifier:
    """All required proofs of one source, with the secrets at the time of its creation."""

    __slots__ = ("_decoys", "max_body", "passes", "proofs")

    def __init__(self, proofs: Iterable[Proof], max_body: int = 0) -> None:
        """Combine the proofs of a source that may send up to `max_body` bytes."""
        self.proofs = tuple(proofs)
        self.max_body = max(max_body, UNKNOWN_SOURCE_MAX_BODY)
        self._decoys: tuple[tuple[int, Proof], ...] = ()
        self.passes = sum(proof.passes for proof in self.proofs)
        """Maximum passes of a rejection through the body, the same for all padded verifiers."""

    def pad_work_to(self, kinds: Mapping[Hashable, Proof], largest: Mapping[Hashable, int]) -> None:
        """Make each rejection try a proof of each of these kinds, with the same number of keys.

        A kind is not tried on bodies larger than its `largest`, which no source of the kind may send. The largest
        bodies of strangers therefore cost the work of only few kinds.
        """
        for proof in self.proofs:
            proof.pad(kinds[proof.kind].keys)
        self.passes = sum(proof.passes for proof in kinds.values())
        own = {proof.kind for proof in self.proofs}
        self._decoys = tuple((largest[kind], proof) for kind, proof in kinds.items() if kind not in own)

    def verify(self, raw: RawRequest, now: datetime) -> None:
        """Check all proofs of a request at `now`.

        Raises:
            NotAuthenticated: a proof failed.
            CertificateNeeded: only a certificate is missing. Nothing else is ever raised.
        """
        faults = [proof.fault(raw, now) for proof in self.proofs]
        why = next((fault for fault in faults if isinstance(fault, str)), None)
        if why is not None:
            size = len(raw.body)
            for largest, decoy in self._decoys:
                if size <= largest:
                    decoy.fault(raw, now)  # ignored, as it is another source's proof
            raise NotAuthenticated(REJECTION, why=why)
        for fault in faults:
            if isinstance(fault, MissingCertificate):
                raise CertificateNeeded(fault)

    def mac(self, raw: RawRequest, content: bytes) -> bytes:
        """Return the HMAC of `content` with the secret that signed `raw`; empty if none did."""
        found = (proof.mac(raw, content) for proof in self.proofs if isinstance(proof, SignatureProof))
        return next(found, b"")


class _NoSuchSource(Proof):
    """The proof of a source that does not exist, which always fails."""

    def fault(self, _raw: RawRequest, _now: datetime) -> str:
        """Return the fault."""
        return "there is no such source"


def pad_work(verifiers: Iterable[Verifier]) -> Verifier:
    """Make all verifiers do the same work before a rejection. Returns the decoy verifier, for unknown sources."""
    verifiers = tuple(verifiers)
    decoy = Verifier([_NoSuchSource()])
    of_all = [(proof, each.max_body) for each in (decoy, *verifiers) for proof in each.proofs]
    kinds = {proof.kind: proof for proof, _ in sorted(of_all, key=lambda each: each[0].keys)}
    largest = {proof.kind: most for proof, most in sorted(of_all, key=lambda each: each[1])}
    for verifier in (decoy, *verifiers):
        verifier.pad_work_to(kinds, largest)
    return decoy


def build_verifier(source: Source, preset: Preset, environment: Mapping[str, str] = os.environ) -> Verifier:
    """Create the verifier of a source's shared secret (`auth`), signature (`secrets`) and address, as configured.

    Raises:
        ConfigError: a secret can't be read or used, or none is required. Each line of the message names the source.
    """
    proofs: list[Proof] = []
    mistakes: list[str] = []
    auth = source.auth
    try:
        if auth is not None:
            secrets = [] if isinstance(auth, NoAuth) else reveal_all(auth.secrets, environment)
            proofs.append(SharedSecretProof(auth, secrets))
    except ConfigError as error:
        mistakes += [f"auth: {mistake}" for mistake in str(error).splitlines()]
    try:
        known = [] if source.secrets is None else reveal_all(source.secrets, environment)
        if preset.prover is not None and getattr(source, preset.proves_by) is not None:
            proofs.append(preset.prover(source, known))
        elif source.secrets is not None:
            signatures = preset.signatures if source.signature is None else (source.signature,)
            url = source.public_url or ""
            tolerance = preset.tolerance if source.tolerance is None else source.tolerance
            proofs.append(SignatureProof(signatures, known, url=url, tolerance=tolerance, signed_at=preset.signed_at))
    except ConfigError as error:
        mistakes += [f"{preset.proves_by}: {mistake}" for mistake in str(error).splitlines()]
    if not proofs and not mistakes:
        mistakes.append('auth: is missing; to accept requests without a secret, use auth = { kind = "none" }')
    if mistakes:
        raise ConfigError("\n".join(f"[sources.{source.name}] {mistake}" for mistake in mistakes))
    if source.allow_from is not None:
        proofs.append(SentFrom(source.allow_from))
    return Verifier(proofs, source.max_body or preset.max_body)


def reveal_all(secrets: Sequence[Secret], environment: Mapping[str, str]) -> Revealed:
    """Read each secret, and return it with its text.

    Raises:
        ConfigError: a secret's variable or file is missing or empty. The message has a line for each.
    """
    texts = collect_config_errors({str(n): partial(secret.reveal, environment) for n, secret in enumerate(secrets)})
    return list(zip(secrets, texts.values(), strict=True))


def _secret_reader(auth: InboundAuth) -> Way:
    """Return the function that reads this kind of secret from a request; it returns empty bytes if there is none."""
    match auth:
        case BasicAuth():
            return _basic_credentials
        case BearerAuth():
            return _bearer_token
        case HeaderAuth():
            name = auth.name.lower()
            return lambda raw: _header_bytes(raw.headers.get(name, ""))
        case UrlTokenAuth():
            return lambda raw: (raw.url_token or "").encode("utf-8", "surrogatepass")
        case NoAuth():
            return lambda _: b""


def _basic_credentials(raw: RawRequest) -> bytes:
    try:
        return base64.b64decode(_credentials(raw, "basic"), validate=True)
    except ValueError:  # not base64, or not even ASCII
        return b""


def _bearer_token(raw: RawRequest) -> bytes:
    token = _credentials(raw, "bearer")
    if token or not raw.query:
        return _header_bytes(token)
    values = [
        value for name, _, value in (each.partition("=") for each in raw.query.split("&")) if name == "access_token"
    ]
    return unquote_to_bytes(values[0]) if len(values) == 1 else b""


def _credentials(raw: RawRequest, scheme: str) -> str:
    given, _, credentials = raw.headers.get("authorization", "").partition(" ")
    return credentials.strip(" ") if given.lower() == scheme else ""


def _header_bytes(value: str) -> bytes:
    """Return the bytes of a header, which servers decode as Latin-1 (PEP 3333, ASGI in Falcon)."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")


# --- The sender's address: that of the connection, or the one reported by a trusted proxy.


_LONGEST = len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255")
"""Maximum characters of an address; longer texts are not cached."""
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_ip_address(text: str | None) -> IpAddress | None:
    """Parse an address without its zone, and IPv4-mapped IPv6 as IPv4; None if it is invalid.

    A proxy may pass on its sender's claim, and Python takes any text after `%` for a zone.
    """
    found = (text or "").partition("%")[0]
    return _known(found)[0] if len(found) <= _LONGEST else None


def address_text(text: str | None) -> str | None:
    """Return the canonical text of an address, parsed by `parse_ip_address`."""
    found = (text or "").partition("%")[0]
    return _known(found)[1] if len(found) <= _LONGEST else None


@lru_cache(maxsize=4096)  # a worker sees few senders' addresses
def _known(text: str) -> tuple[IpAddress, str] | tuple[None, None]:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None, None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, str(mapped or address)


class SentFrom(Proof):
    """Proof that the sender's address is in one of these networks.

    A sender that wants a response can't forge its address, but others in the provider's network share it. It is
    therefore required in addition to a secret, never instead.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        networks = tuple(networks)
        self.kind = (SentFrom, networks)
        parsed = [ipaddress.ip_network(network) for network in networks]
        self._networks = {  # as numbers: thirty networks add 7 µs to a rejection, not 11 as by the library's comparison
            version: [(int(each.netmask), int(each.network_address)) for each in parsed if each.version == version]
            for version in (4, 6)
        }

    def fault(self, raw: RawRequest, _now: datetime) -> str | None:
        """See Proof."""
        address = parse_ip_address(raw.remote_address)
        if address is None:
            return "it comes from an address that is not known, and allow_from lists addresses"
        number = int(address)
        if any(number & mask == network for mask, network in self._networks[address.version]):
            return None
        return f"it comes from {address}, which allow_from does not have"
