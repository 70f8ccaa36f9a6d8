"""The presets by name, where new ones are registered."""

from __future__ import annotations

from dataclasses import replace

from inbox.config.sources import Source
from inbox.sources.base import Preset
from inbox.sources.expressions import read_entity
from inbox.sources.presets import (
    adyen,
    auth0,
    cloudevents,
    custom,
    discord,
    docusign,
    github,
    gitlab,
    google,
    hubspot,
    jira,
    keycloak,
    linear,
    mailgun,
    msgraph,
    notion,
    okta,
    paypal,
    salesforce,
    secevent,
    sendgrid,
    shopify,
    slack,
    slack_message,
    sns,
    square,
    standard_webhooks,
    stripe,
    trivore,
    twilio,
    zendesk,
    zoom,
)

PRESETS: dict[str, Preset] = {
    "adyen": adyen.PRESET,
    "auth0": auth0.PRESET,
    "cloudevents": cloudevents.PRESET,
    "custom": custom.PRESET,
    "discord": discord.PRESET,
    "docusign": docusign.PRESET,
    "github": github.PRESET,
    "gitlab": gitlab.PRESET,
    "google": google.PRESET,
    "hubspot": hubspot.PRESET,
    "jira": jira.PRESET,
    "keycloak": keycloak.PRESET,
    "linear": linear.PRESET,
    "mailgun": mailgun.PRESET,
    "msgraph": msgraph.PRESET,
    "notion": notion.PRESET,
    "okta": okta.PRESET,
    "paypal": paypal.PRESET,
    "salesforce": salesforce.PRESET,
    "secevent": secevent.PRESET,
    "sendgrid": sendgrid.PRESET,
    "shopify": shopify.PRESET,
    "slack": slack.PRESET,
    "slack-message": slack_message.PRESET,
    "sns": sns.PRESET,
    "square": square.PRESET,
    "standard-webhooks": standard_webhooks.PRESET,
    "stripe": stripe.PRESET,
    "trivore": trivore.PRESET,
    "twilio": twilio.PRESET,
    "zendesk": zendesk.PRESET,
    "zoom": zoom.PRESET,
}


def build_preset(source: Source, passed: frozenset[str] = frozenset()) -> Preset:
    """Return the preset of `source`, with its configuration; `passed` headers are kept too.

    `inbox.loader` has checked that the preset exists and accepts the configuration. Signatures are never kept.
    """
    preset = PRESETS[source.preset]
    if preset.keeps is not None:
        passed |= preset.keeps(source)
    read = preset.read if preset.reader is None else preset.reader(source)
    signatures = (*preset.signatures, *([] if source.signature is None else [source.signature]))
    return replace(
        preset,
        read=read if source.entity is None else read_entity(source.entity, read),
        kept_headers=(preset.kept_headers | passed) - {each.header.lower() for each in signatures},
    )
