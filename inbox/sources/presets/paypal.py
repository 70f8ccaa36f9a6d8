"""PayPal's webhooks of REST apps, signed with a private key whose certificate PayPal publishes.

From https://developer.paypal.com/api/rest/webhooks/rest/ (the self verification:
`transmissionId|timeStamp|webhookId|crc32`, RSA with SHA-256, retries for three days),
https://developer.paypal.com/api/webhooks/v1/ (the event), and PayPal's own client `paypalrestsdk` on PyPI
(`notifications.py`: the names and the validity of the certificate). The webhook's ids are the `secrets`: they are part
of the signed text, so that a request to another account's webhook proves nothing.

The signature covers only the body's CRC-32, which an attacker with a captured request could match with another body.
The signed transmission id is therefore the dedup key, and the signed time is valid only as long as PayPal retries: a
captured request is a duplicate whatever its body, and later too old.
"""

from __future__ import annotations

import re
import zlib
from datetime import datetime

from inbox.config.sources import Source
from inbox.errors import ConfigError
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, Proof, Revealed, json_sample
from inbox.sources.keys import CertificateStore, Claim, MissingCertificate, signature_bytes
from inbox.sources.signing import check_time

MOST_IDS = 5
"""Maximum webhook ids tried on one request."""
TOLERANCE_SECONDS = 4 * 86400.0
"""Seconds between signing and arrival. Retries come for three days, perhaps with the old signature; events are kept longer."""
_TRANSMISSION = "paypal-transmission-id"
_LONGEST_TRANSMISSION = 100

_URL = re.compile(
    r"https://(?P<host>api(?:\.sandbox)?\.paypal\.com)(?P<path>/v1/notifications/certs/[A-Za-z0-9_-]{1,100})", re.ASCII
)
_NAMES = re.compile(r"([a-z0-9-]{1,40}\.){1,3}paypal\.com", re.ASCII | re.IGNORECASE)
_WEBHOOK = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_PRINTED = re.compile(r"[!-{}~]{1,100}", re.ASCII)
"""Pattern of printable characters except `|`, which separates the parts of the signed text."""


class Transmission(Proof):
    """Proof that PayPal signed the request for one of the source's webhooks."""

    passes = 1

    def __init__(self, source: Source, secrets: Revealed) -> None:
        """Read the webhook ids.

        Raises:
            ConfigError: a secret is not a webhook id, or there are too many.
        """
        if not all(_WEBHOOK.fullmatch(text) for _, text in secrets):
            raise ConfigError("a secret is not a webhook id, which has only letters and digits")
        if len(secrets) > MOST_IDS:
            raise ConfigError(f"there are {len(secrets)} webhook ids, but at most {MOST_IDS} may be tried on a request")
        self._webhooks = tuple(secrets)
        self._tolerance = TOLERANCE_SECONDS if source.tolerance is None else source.tolerance
        self.certificates = CertificateStore(_URL, _NAMES)
        # One kind per source: its ids and certificates determine the work of a request. Without that work, the time of
        # another source's rejection would reveal which source they belong to.
        self.kind = (Transmission, source.name)

    def fault(self, raw: RawRequest, now: datetime) -> str | MissingCertificate | None:
        """See Proof."""
        claim = self._claim(raw, now)
        return claim if isinstance(claim, str) else self.certificates.fault(claim, now)

    def _claim(self, raw: RawRequest, now: datetime) -> Claim | str:
        """Return the claim made by a request's signature, or the reason why it is invalid."""
        checksum = zlib.crc32(raw.body)
        transmission, time = raw.headers.get(_TRANSMISSION, ""), raw.headers.get("paypal-transmission-time", "")
        signature = signature_bytes(raw.headers.get("paypal-transmission-sig", ""))
        if not _PRINTED.fullmatch(transmission) or not _PRINTED.fullmatch(time) or signature is None:
            return "the id, the time or the signature of the transmission is missing, or not written as PayPal does"
        if raw.headers.get("paypal-auth-algo", "").lower() != "sha256withrsa":
            return "PAYPAL-AUTH-ALGO is not SHA256withRSA"
        url = self.certificates.url(raw.headers.get("paypal-cert-url", ""))
        if url is None:
            return "PAYPAL-CERT-URL is not a certificate at api.paypal.com or api.sandbox.paypal.com"
        contents = [
            f"{transmission}|{time}|{webhook}|{checksum}".encode()
            for secret, webhook in self._webhooks
            if secret.valid_at(now)
        ]
        if not contents:
            return "no secret is valid now"
        why = next(check_time("rfc3339", time.encode(), now, self._tolerance), None)
        return why or Claim(url, contents, signature, "sha256")


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    event_type = fields.text_field(event, "event_type", fields.LONGEST_TYPE)
    return Identity(
        *fields.entity(event.get("resource_type"), fields.member(event, "resource", "id")),
        event_type=event_type,
        action=fields.classify_action(event_type.rpartition(".")[2]),
        occurred_ns=fields.time_field(event, "create_time", raw.received_at),
        key_parts=(fields.header_field(raw, _TRANSMISSION, _LONGEST_TRANSMISSION),),
        event_id=fields.text_field(event, "id", fields.LONGEST_ID),
    )


_SAMPLE = {"id": "WH-{unique}", "create_time": "{time}", "resource_type": "{kind}", "event_type": "{type}"}

PRESET = Preset(
    title="PayPal",
    shown_at="the webhook's ID: Apps & Credentials, the app, Webhooks; for events of the simulator it is `WEBHOOK_ID`",
    read=fields.make_object_reader(_event),
    sample=json_sample({**_SAMPLE, "resource": {"id": "{id}"}}, {"PAYPAL-TRANSMISSION-ID": "{unique}"}),
    prover=Transmission,
    needs=frozenset({"auth"}),  # otherwise strangers could trigger fetches of certificates and discover the source
    kept_headers=frozenset({_TRANSMISSION}),
    starter="""\
secrets = ["env:{variable}"]
[sources.paypal.auth]  # of the webhook's URL: /webhooks/paypal/TOKEN
kind = "url_token"
secrets = ["env:{token}"]""",
)
