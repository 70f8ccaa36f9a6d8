"""Proves that a request comes from its source: by a secret that it shows, by a signature, or by both.

Every rejection takes the same work, whether the source exists or not: the proofs of all sources that may send a body of this
size are tried on the request, each with as many keys as the source of that kind with the most. Only those of its own source
count. So neither the answer nor its time reveals which names exist or which secret was close. A shared secret is held as a
SHA-256 digest: digests of secrets of any length compare in constant time, and no secret can be shown by mistake.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from urllib.parse import unquote_to_bytes

from inbox.config.sources import BasicAuth, BearerAuth, HeaderAuth, InboundAuth, NoAuth, Source, UrlTokenAuth
from inbox.config.values import Secret
from inbox.errors import ConfigError, NotAuthenticated, collect_config_errors
from inbox.events.event import RawRequest
from inbox.sources.base import MADE_UP, Preset, Proof, Revealed
from inbox.sources.certificates import CertificateNeeded, MissingCertificate
from inbox.sources.sender import SentFrom
from inbox.sources.signing import SignatureProof

Way = Callable[[RawRequest], bytes]

REJECTION = "unknown source, or the request does not prove to come from it; check the URL and the secret"
"""One text for all causes, as the answer must not reveal which. The cause is in `rejected_request`."""

UNKNOWN_SOURCE_MAX_BODY = 256 * 1024
"""Bytes: the limit of most presets. A larger request can tell a source with another limit from one that does not exist;
reading all for everybody would let strangers send as much as the largest source may."""

_DIGEST_SIZE = hashlib.sha256().digest_size


class SharedSecretProof:
    """Proves that a request carries one of the valid secrets, in the place that `auth` names."""

    __slots__ = ("_open", "_read_secret", "_secrets", "kind")
    passes = 0

    def __init__(self, auth: InboundAuth, secrets: Revealed) -> None:
        prefix = f"{auth.user}:" if isinstance(auth, BasicAuth) else ""
        self._open = isinstance(auth, NoAuth)
        self._read_secret = _secret_reader(auth)
        self._secrets = tuple((secret, _digest(prefix + revealed)) for secret, revealed in secrets)
        self.kind = (type(auth), auth.name.lower() if isinstance(auth, HeaderAuth) else None)

    @property
    def keys(self) -> int:
        """See Proof."""
        return len(self._secrets)

    def pad(self, keys: int) -> None:
        """See Proof."""
        self._secrets += tuple((MADE_UP, os.urandom(_DIGEST_SIZE)) for _ in range(keys - self.keys))

    def fault(self, raw: RawRequest, now: datetime) -> str | None:
        """See Proof."""
        given = self._read_secret(raw)
        digest = hashlib.sha256(given).digest()
        proven = self._open
        for secret, expected in self._secrets:
            proven |= hmac.compare_digest(digest, expected) & secret.valid_at(now)
        if proven:
            return None
        return "the secret it shows is none that is valid now" if given else "it shows no secret"


class Verifier:
    """All proofs that a request to one source needs, with the secrets as they were when it was made."""

    __slots__ = ("_decoys", "max_body", "passes", "proofs")

    def __init__(self, proofs: Iterable[Proof], max_body: int = 0) -> None:
        """Take the proofs of a source that may send up to `max_body` bytes."""
        self.proofs = tuple(proofs)
        self.max_body = max(max_body, UNKNOWN_SOURCE_MAX_BODY)
        self._decoys: tuple[tuple[int, Proof], ...] = ()
        self.passes = sum(proof.passes for proof in self.proofs)
        """Most passes of a rejection through the body: the same for all padded verifiers."""

    def pad_work_to(self, kinds: Mapping[Hashable, Proof], largest: Mapping[Hashable, int]) -> None:
        """Try a proof of each of these kinds before each rejection, with as many keys as that one has.

        It is not tried on a body of more bytes than `largest` has for its kind: no source of that kind may send it. So a
        stranger's largest body costs the work of few kinds.
        """
        for proof in self.proofs:
            proof.pad(kinds[proof.kind].keys)
        self.passes = sum(proof.passes for proof in kinds.values())
        own = {proof.kind for proof in self.proofs}
        self._decoys = tuple((largest[kind], proof) for kind, proof in kinds.items() if kind not in own)

    def verify(self, raw: RawRequest, now: datetime) -> None:
        """Return if everything is proven at `now`.

        Raises:
            NotAuthenticated: it is not.
            CertificateNeeded: everything else is proven. Nothing else is raised, whatever the request holds.
        """
        faults = [proof.fault(raw, now) for proof in self.proofs]
        why = next((fault for fault in faults if isinstance(fault, str)), None)
        if why is not None:
            size = len(raw.body)
            for largest, decoy in self._decoys:
                if size <= largest:
                    decoy.fault(raw, now)  # the result is ignored: it is a proof of another source
            raise NotAuthenticated(REJECTION, why=why)
        for fault in faults:
            if isinstance(fault, MissingCertificate):
                raise CertificateNeeded(fault)

    def mac(self, raw: RawRequest, content: bytes) -> bytes:
        """Return the HMAC of `content` with the secret that has signed `raw`; empty where none has."""
        found = (proof.mac(raw, content) for proof in self.proofs if isinstance(proof, SignatureProof))
        return next(found, b"")


class _NoSuchSource:
    """The proof of a source that does not exist: always fails."""

    kind = None
    keys = passes = 0

    def pad(self, keys: int) -> None:
        """Add nothing: no key can be tried."""

    def fault(self, _raw: RawRequest, _now: datetime) -> str:
        """Return the fault."""
        return "there is no such source"


def pad_work(verifiers: Iterable[Verifier]) -> Verifier:
    """Make all verifiers do the same work before a rejection. Returns the decoy verifier, for sources that do not exist."""
    verifiers = tuple(verifiers)
    decoy = Verifier([_NoSuchSource()])
    kinds: dict[Hashable, Proof] = {}
    for proof in sorted((proof for each in (decoy, *verifiers) for proof in each.proofs), key=lambda each: each.keys):
        kinds[proof.kind] = proof
    largest: dict[Hashable, int] = {}
    for verifier in (decoy, *verifiers):
        for proof in verifier.proofs:
            largest[proof.kind] = max(verifier.max_body, largest.get(proof.kind, 0))
    for verifier in (decoy, *verifiers):
        verifier.pad_work_to(kinds, largest)
    return decoy


def verifier_of(source: Source, preset: Preset, environment: Mapping[str, str] = os.environ) -> Verifier:
    """Make the verifier of a source: of its shared secret (`auth`), its signature (`secrets`) and its address, each if configured.

    Raises:
        ConfigError: a secret can't be revealed or used, or nothing is asked for. Each line of the text names the source.
    """
    proofs: list[Proof] = []
    mistakes: list[str] = []
    auth = source.auth
    try:
        if auth is not None:
            secrets = [] if isinstance(auth, NoAuth) else revealed(auth.secrets, environment)
            proofs.append(SharedSecretProof(auth, secrets))
    except ConfigError as error:
        mistakes += [f"auth: {mistake}" for mistake in str(error).splitlines()]
    try:
        known = [] if source.secrets is None else revealed(source.secrets, environment)
        if preset.prover is not None and getattr(source, preset.proves_by) is not None:
            proofs.append(preset.prover(source, known))
        elif source.secrets is not None:
            signatures = preset.signatures if source.signature is None else (source.signature,)
            url = source.public_url or ""
            proofs.append(
                SignatureProof(signatures, known, url=url, tolerance=source.tolerance, signed_at=preset.signed_at)
            )
    except ConfigError as error:
        mistakes += [f"{preset.proves_by}: {mistake}" for mistake in str(error).splitlines()]
    if not proofs and not mistakes:
        mistakes.append('auth: is missing; whoever may send without a secret needs auth = { kind = "none" }')
    if mistakes:
        raise ConfigError("\n".join(f"[sources.{source.name}] {mistake}" for mistake in mistakes))
    if source.allow_from is not None:
        proofs.append(SentFrom(source.allow_from))
    return Verifier(proofs, source.max_body or preset.max_body)


def revealed(secrets: Sequence[Secret], environment: Mapping[str, str]) -> Revealed:
    """Return each secret with its text.

    Raises:
        ConfigError: a variable or file that a secret is kept in is not there, or is empty. The text has a line for each.
    """
    texts = collect_config_errors({str(n): partial(secret.reveal, environment) for n, secret in enumerate(secrets)})
    return list(zip(secrets, texts.values(), strict=True))


def _digest(secret: str) -> bytes:
    # A variable of the environment may hold bytes that are not UTF-8; Python shows them as lone surrogates.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _secret_reader(auth: InboundAuth) -> Way:
    """Return the function that reads the secret of this kind of authentication from a request; empty bytes when there is none."""
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
    """Return the bytes of a header, which servers decode as Latin-1, whatever they were (PEP 3333, ASGI in Falcon)."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
