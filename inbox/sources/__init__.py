"""The presets by name: the one place where a new one is registered."""

from __future__ import annotations

from dataclasses import replace

from inbox.config.mistakes import nearest
from inbox.config.sources import Source
from inbox.errors import ConfigError
from inbox.sources.base import Preset
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


def preset_of(source: Source, passed: frozenset[str] = frozenset()) -> Preset:
    """Return the preset that `source` names, as `source` configures it; headers that are `passed` on are kept, too.

    Raises:
        ConfigError: there is none of that name, or it can't be configured so.
    """
    try:
        preset = PRESETS[source.preset]
    except KeyError:
        raise ConfigError(
            f"[sources.{source.name}] preset: there is no preset {source.preset!r}; {nearest(source.preset, PRESETS)}"
        ) from None
    if preset.reader is None:
        return replace(preset, kept_headers=preset.kept_headers | passed) if passed else preset
    try:
        read = preset.reader(source)
        kept = preset.kept_headers if preset.keeps is None else preset.kept_headers | preset.keeps(source)
        return replace(preset, read=read, kept_headers=kept | passed)
    except ValueError as error:
        raise ConfigError(f"[sources.{source.name}] {preset.reads_by} {error}") from None
