"""Security event tokens (RFC 8417) that are pushed over HTTP (RFC 8935), as shared signals of identity services come.

The body is a JWT, signed with a private key of the sender's: `secrets` are its public keys (`inbox/sources/keys.py`), and
`issuer` and `audience` are what the token has to name. Tokens have no end of validity: what is sent again is known by its
`jti`. Only asymmetric algorithms are taken, each with its own kind of key. The header's `typ` should be
`secevent+jwt`; Google's says `JWT` (https://developers.google.com/identity/protocols/risc), so what makes a token one of
these is its claim `events`.

A token is answered 202 without a body, or 400 with `{"err": …, "description": …}`; but what does not prove who sent it gets
the 401 that everybody gets.
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
"""Most keys tried on one token."""
LARGEST_HEADER = 4096
"""Bytes, encoded: an algorithm, a type and the name of a key, read once for each key that is tried."""
LEEWAY_SECONDS = 300.0
_LONGEST_ISSUER = 500
_IDS = ("sub", "id", "email", "phone_number", "uri", "url")
"""Members of a subject identifier (RFC 9493) that hold its value, the most identifying first."""

_ACTIONS = fields.actions(
    create=("create",),
    update=("account-disabled", "account-enabled", "identifier-changed", "update"),
    delete=("account-purged", "delete", "revoke"),
)
"""The ends of the names of RISC events that change an account, and the `change_type` of CAEP's credential-change."""


class _TokenKey(msgspec.Struct, frozen=True):
    secret: Secret
    public: PublicKey


class Token(Proof):
    """Proves that the body is a token of this issuer, for this audience, signed with one of its keys."""

    def __init__(self, source: Source, secrets: Revealed) -> None:
        """Read the keys.

        Raises:
            ConfigError: a secret holds no key that can be used, or there is no issuer or audience.
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
        try:  # the library's own way to the header decodes all of the token, which it does again below
            header = _segment(token, 0) if 0 < token.find(b".") <= LARGEST_HEADER else {}
        except RequestError:
            header = {}
        kid, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):
            return "the body is no JWT"
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
                    # A token has no end (RFC 8417 §2.2), and what is pushed again may be days old.
                    options={"require": ["iss", "aud", "iat", "jti"], "verify_exp": False},
                )
            except jwt.PyJWTError as error:
                why = f"the token is not valid: {type(error).__name__}"
            else:
                return None
        return why


def read(raw: RawRequest, dedup: fields.Dedup) -> tuple[Identity, ...]:
    """Return the one event of a token that has been verified: see `Read`."""
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
    """Return the JSON object that the header (0) or the claims (1) are.

    Raises:
        Unreadable, InvalidEvent: they are none.
    """
    parts = token.split(b".", 3)
    if len(parts) != 3:  # noqa: PLR2004  # header, claims and signature
        raise Unreadable("the body is no JWT", field="body")
    try:
        text = base64.b64decode(parts[number] + b"=" * (-len(parts[number]) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise Unreadable("the body is no JWT", field="body") from None
    return fields.json_object(text)


def _subject(claims: fields.Payload, event: object) -> str | None:
    """Return the subject of the token, or of the event where older drafts have it; of a complex one the user."""
    for subject in (claims.get("sub_id"), fields.member(event, "subject"), claims):
        inner = fields.member(subject, "user") or subject
        for name in _IDS if subject is not claims else ("sub",):
            identifier = fields.entity_id(fields.member(inner, name))
            if identifier is not None:
                return identifier
    return None


def rejection(error: RequestError) -> tuple[int, bytes]:
    """Return the error answer of RFC 8935 §2.3."""
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
issuer = "https://login.example.com"  # what a token has to say in iss,
audience = "https://hooks.example.com/webhooks/secevent"  # and in aud""",
)
