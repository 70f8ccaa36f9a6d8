"""Escapes values in Slack's markup: they can't mention anybody, begin a line, or hide the target of a link. Pure.

Facts: https://docs.slack.dev/messaging/formatting-message-text (`&`, `<` and `>` are escaped, and nothing else can be; a
link is `<url|text>`). Of the services compatible with Slack, Mattermost reads `@channel` and `[text](url)` in plain text:
https://docs.mattermost.com/collaborate/mention-people.html. Other special characters can't be escaped. U+2060, which is
invisible, separates such a character from its effect, or a lookalike replaces it.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from inbox.observe.visible import visible_line

_BREAKS = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
_MENTION = re.compile(r"(?<!\w)@(?=\w)")
_JOINER = "\u2060"
_URL = re.compile(r"https?://[^/?#]", re.IGNORECASE)
_OF_A_URL = "/:?#[]@!$&'()*+,;=%"
"""Characters with a meaning in a URL (RFC 3986 §2.2). They stay as they are."""


def escaped(value: str) -> str:
    """Write a value on one line, without markup. Slack may still link a URL in it; that link shows its target."""
    text = visible_line(_BREAKS.sub(" ", value))
    text = _MENTION.sub(f"@{_JOINER}", text).replace("](", f"]{_JOINER}(").replace("`", "\u02cb")
    return _entities(text)


def link_text(value: str) -> str:
    """Write a value as the text of a link. It can't end the link's URL."""
    return escaped(value).replace("|", "\u00a6")


def link_url(value: str) -> str:
    """Write a value that is a whole URL, or the beginning of one.

    Raises:
        ValueError: it is no URL, and would be a mention instead; or it holds half of a surrogate pair.
    """
    if _URL.match(value) is None:
        raise ValueError("is no http or https URL, so it can't be a link")
    return _entities(quote(value, safe=_OF_A_URL))


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
