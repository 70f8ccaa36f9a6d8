"""Security event tokens (RFC 8417) pushed over HTTP (RFC 8935), such as shared signals of identity services.

The body is a JWT signed with the sender's private key: `secrets` are its public keys (`inbox/sources/keys.py`), and the
token must name `issuer` and `audience`. Tokens don't expire; duplicates have the same `jti`. Only asymmetric algorithms
are accepted, each with its own kind of key. The header's `typ` should be `secevent+jwt`, but Google's is `JWT`
(https://developers.google.com/identity/protocols/risc), so the claim `events` identifies these tokens.

The response is 202 without a body, or 400 with `{"err": …, "description": …}`; unauthenticated requests get the usual 401.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from inbox.config.sources import Source
from inbox.config.values import Secret
from inbox.errors import ConfigError, InvalidEvent, RequestError, TooLarge, Unreadable
from inbox.events.event import Action, Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, Proof, Revealed

if TYPE_CHECKING:
    from inbox.sources.keys import PublicKey


MOST_KEYS = 5
"""Maximum keys tried on one token."""
LARGEST_HEADER = 4096
"""Maximum encoded bytes of the JWT header, which is read once for each key tried."""
LEEWAY_SECONDS = 300.0
_LONGEST_ISSUER = 500
_IDS = ("sub", "id", "email", "phone_number", "uri", "url")
"""Members of a subject identifier (RFC 9493) that hold its value, most specific first."""

_ACTIONS = fields.actions(
    create=("create",),
    update=("account-disabled", "account-enabled", "identifier-changed", "update"),
    delete=("account-purged", "delete", "revoke"),
)
"""Last parts of the names of RISC events that change an account, and `change_type` of CAEP's credential-change."""


class _TokenKey(msgspec.Struct, frozen=True):
    secret: Secret
    public: PublicKey


class Token(Proof):
    """Proof that the body is a token of this issuer for this audience, signed with one of its keys."""

    def __init__(self, source: Source, secrets: Revealed) -> None:
        """Read the source's keys.

        Raises:
            ConfigError: a secret has no usable key, or issuer or audience is missing.
        """
        from inbox.sources.keys import public_keys  # noqa: PLC0415  # only a source of this preset needs the JWT library

        if not source.issuer or not source.audience:
            raise ConfigError("secevent needs the issuer and the audience that tokens have to name")
        self._issuer, self._audience = source.issuer, source.audience
        self._leeway = LEEWAY_SECONDS if source.tolerance is None else source.tolerance
        self._keys = [_TokenKey(secret, public) for secret, text in secrets for public in public_keys(text)]
        self.kind = (Token, source.name)

    @property
    def passes(self) -> int:
        """See Proof."""
        return min(len(self._keys), MOST_KEYS)

    def fault(self, raw: RawRequest, now: datetime) -> str | None:
        """See Proof."""
        import jwt  # noqa: PLC0415  # as above

        token = raw.body.strip()
        try:  # the library's own header function would decode the whole token
            header = _segment(token, 0) if 0 < token.find(b".") <= LARGEST_HEADER else {}
        except RequestError:
            header = {}
        kid, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):
            return "the body is not a JWT"
        fitting = [
            each
            for each in self._keys
            if algorithm in each.public.algorithms
            and (kid is None or each.public.kid in {kid, None})
            and each.secret.valid_at(now)
        ]
        why = "no key that is valid now has the token's kid and alg"
        for each in fitting[:MOST_KEYS]:
            try:
                jwt.decode(
                    token,
                    each.public.key,
                    algorithms=[algorithm],
                    issuer=self._issuer,
                    audience=self._audience,
                    leeway=self._leeway,
                    # Tokens don't expire (RFC 8417 §2.2), and retries may be days old.
                    options={"require": ["iss", "aud", "iat", "jti"], "verify_exp": False},
                )
            except jwt.PyJWTError as error:
                why = f"the token is not valid: {type(error).__name__}"
            else:
                return None
        return why


def read(raw: RawRequest, dedup: fields.Dedup) -> tuple[Identity, ...]:
    """Return the event of a verified token: see `Read`."""
    claims = _segment(raw.body.strip(), 1)
    events = claims.get("events")
    if not isinstance(events, Mapping) or not events:
        raise InvalidEvent("events must name at least one event", field="events")
    name, event = next(iter(events.items()))
    event_type = fields.entity_type(name) or fields.entity_type(str(name).rpartition("/")[2][: fields.LONGEST_TYPE])
    if event_type is None:
        raise InvalidEvent("the name of the event can't be stored", field="events")
    jti = fields.text_field(claims, "jti", fields.LONGEST_ID)
    identity = Identity(
        *fields.entity("subject", _subject(claims, event)),
        event_type=event_type,
        action=_action(event_type, event),
        occurred_ns=fields.epoch_field(claims, "iat" if claims.get("toe") is None else "toe", raw.received_at),
        key_parts=(fields.text_field(claims, "iss", _LONGEST_ISSUER), jti),
        event_id=jti,
    )
    return (fields.with_key(identity, claims, dedup),)


def _action(event_type: str, event: object) -> Action:
    change = fields.member(event, "change_type")
    word = change if isinstance(change, str) else event_type.rpartition("/")[2]
    return _ACTIONS.get(word, "other")


def _segment(token: bytes, number: int) -> dict[str, object]:
    """Return the JSON object of the header (0) or the claims (1).

    Raises:
        Unreadable, InvalidEvent: it is not a JSON object.
    """
    parts = token.split(b".", 3)
    if len(parts) != 3:  # noqa: PLR2004  # header, claims and signature
        raise Unreadable("the body is not a JWT", field="body")
    try:
        text = base64.b64decode(parts[number] + b"=" * (-len(parts[number]) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise Unreadable("the body is not a JWT", field="body") from None
    return fields.json_object(text)


def _subject(claims: fields.Payload, event: object) -> str | None:
    """Return the token's subject, or the event's, as in older drafts; for a complex subject, its user."""
    for subject in (claims.get("sub_id"), fields.member(event, "subject"), claims):
        inner = fields.member(subject, "user") or subject
        for name in _IDS if subject is not claims else ("sub",):
            identifier = fields.entity_id(fields.member(inner, name))
            if identifier is not None:
                return identifier
    return None


def rejection(error: RequestError) -> tuple[int, bytes]:
    """Return the error response of RFC 8935 §2.3."""
    status = error.status if isinstance(error, TooLarge) else 400
    return status, msgspec.json.encode({"err": "invalid_request", "description": error.detail})


PRESET = Preset(
    title="Security event tokens (shared signals)",
    shown_at="its JWKS document, which the transmitter publishes as jwks_uri; save it to a file",
    read=read,
    has_own_time=True,
    prover=Token,
    own_keys=frozenset({"issuer", "audience"}),
    needs=frozenset({"issuer", "audience"}),
    media_types=frozenset({"application/secevent+jwt"}),
    status=202,
    answers_empty=True,
    rejection=rejection,
    starter="""\
secrets = ["env:{variable}"]  # public keys: a JWKS document, or "file:/path"
issuer = "https://login.example.com"  # required in a token as iss,
audience = "https://hooks.example.com/webhooks/secevent"  # and in aud""",
)
