"""PayPal's webhooks of REST apps, signed with a private key whose certificate PayPal publishes.

From https://developer.paypal.com/api/rest/webhooks/rest/ (the self verification: `transmissionId|timeStamp|webhookId|crc32`, RSA
with SHA-256, retries for three days), https://developer.paypal.com/api/webhooks/v1/ (the event), and PayPal's own client
`paypalrestsdk` on PyPI (`notifications.py`: the names and the validity of the certificate). The ids of the webhook are `secrets`
here: they are part of the text that is signed, so that a request to somebody else's webhook proves nothing.

The signature covers no more of the body than its CRC-32, to which anybody can fit another body. So whoever captures a request
could forge others. The signed id of the transmission is the dedup key here, and the signed time counts for as long as PayPal
sends again: a captured request is a duplicate, whatever body it comes with, and later too old.
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
from inbox.sources.signing import out_of_time

MOST_IDS = 5
"""Ids of webhooks that are tried on one request."""
TOLERANCE_SECONDS = 4 * 86400.0
"""Retries come for three days; it is not documented whether they are signed anew. Events are kept for longer than this."""
_TRANSMISSION = "paypal-transmission-id"
_LONGEST_TRANSMISSION = 100

_URL = re.compile(
    r"https://(?P<host>api(?:\.sandbox)?\.paypal\.com)(?P<path>/v1/notifications/certs/[A-Za-z0-9_-]{1,100})", re.ASCII
)
_NAMES = re.compile(r"([a-z0-9-]{1,40}\.){1,3}paypal\.com", re.ASCII | re.IGNORECASE)
_WEBHOOK = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_PRINTED = re.compile(r"[!-{}~]{1,100}", re.ASCII)
"""Printable characters without the `|` between the parts of the signed text."""


class Transmission(Proof):
    """Proves that PayPal has signed the request for one of the source's webhooks."""

    passes = 1

    def __init__(self, source: Source, secrets: Revealed) -> None:
        """Read the ids of the webhooks.

        Raises:
            ConfigError: a secret can't be one, or there are too many.
        """
        if not all(_WEBHOOK.fullmatch(text) for _, text in secrets):
            raise ConfigError("a secret is no id of a webhook: it has letters and digits alone")
        if len(secrets) > MOST_IDS:
            raise ConfigError(f"there are {len(secrets)} ids of webhooks, and {MOST_IDS} may be tried on a request")
        self._webhooks = tuple(secrets)
        self._tolerance = TOLERANCE_SECONDS if source.tolerance is None else source.tolerance
        self.certificates = CertificateStore(_URL, _NAMES)
        # Of each source: its ids and certificates decide how much work a request makes. Another source's rejection without
        # that work would tell by its time whose they are.
        self.kind = (Transmission, source.name)

    def fault(self, raw: RawRequest, now: datetime) -> str | MissingCertificate | None:
        """See Proof."""
        claim = self._claim(raw, now)
        return claim if isinstance(claim, str) else self.certificates.fault(claim, now)

    def _claim(self, raw: RawRequest, now: datetime) -> Claim | str:
        """Return what a request claims by its signature, or why that can't be true."""
        checksum = zlib.crc32(raw.body)
        transmission, time = raw.headers.get(_TRANSMISSION, ""), raw.headers.get("paypal-transmission-time", "")
        signature = signature_bytes(raw.headers.get("paypal-transmission-sig", ""))
        if not _PRINTED.fullmatch(transmission) or not _PRINTED.fullmatch(time) or signature is None:
            return "the id, the time or the signature of the transmission is missing, or not written as PayPal does"
        if raw.headers.get("paypal-auth-algo", "").lower() != "sha256withrsa":
            return "PAYPAL-AUTH-ALGO is not SHA256withRSA"
        url = self.certificates.url(raw.headers.get("paypal-cert-url", ""))
        if url is None:
            return "PAYPAL-CERT-URL is no certificate at api.paypal.com or api.sandbox.paypal.com"
        contents = [
            f"{transmission}|{time}|{webhook}|{checksum}".encode()
            for secret, webhook in self._webhooks
            if secret.valid_at(now)
        ]
        if not contents:
            return "no secret is valid now"
        why = next(out_of_time("rfc3339", time.encode(), now, self._tolerance), None)
        return why or Claim(url, contents, signature, "sha256")


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    event_type = fields.text_field(event, "event_type", fields.LONGEST_TYPE)
    return Identity(
        *fields.entity(event.get("resource_type"), fields.member(event, "resource", "id")),
        event_type=event_type,
        action=fields.action_of(event_type.rpartition(".")[2]),
        occurred_ns=fields.time_field(event, "create_time", raw.received_at),
        key_parts=(fields.header_field(raw, _TRANSMISSION, _LONGEST_TRANSMISSION),),
        event_id=fields.text_field(event, "id", fields.LONGEST_ID),
    )


_SAMPLE = {"id": "WH-{unique}", "create_time": "{time}", "resource_type": "{kind}", "event_type": "{type}"}

PRESET = Preset(
    title="PayPal",
    shown_at="the webhook's ID: Apps & Credentials, the app, Webhooks; for events of the simulator it is `WEBHOOK_ID`",
    read=fields.reader_of_object(_event),
    sample=json_sample({**_SAMPLE, "resource": {"id": "{id}"}}, {"PAYPAL-TRANSMISSION-ID": "{unique}"}),
    prover=Transmission,
    needs=frozenset({"auth"}),  # else strangers could have certificates fetched, and see that the source exists
    kept_headers=frozenset({_TRANSMISSION}),
    starter="""\
secrets = ["env:{variable}"]
[sources.paypal.auth]  # of the webhook's URL: /webhooks/paypal/TOKEN
kind = "url_token"
secrets = ["env:{token}"]""",
)
