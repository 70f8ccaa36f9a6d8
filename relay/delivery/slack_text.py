"""Values in a message of Slack's markup: they mention nobody, begin no line, and hide nowhere where a link leads. Pure.

Facts: https://docs.slack.dev/messaging/formatting-message-text (`&`, `<` and `>` are escaped, and nothing else can be; a
link is `<url|text>`). Of those that do as Slack does, Mattermost reads `@channel` and `[text](url)` in plain text:
https://docs.mattermost.com/collaborate/mention-people.html. A character that no markup can escape is parted from what
it would begin by U+2060, which shows nothing, or takes the form of a lookalike.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from inbox.logs.visible import visible_line

_BREAKS = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
_MENTION = re.compile(r"(?<!\w)@(?=\w)")
_JOINER = "\u2060"
_URL = re.compile(r"https?://[^/?#]", re.IGNORECASE)
_OF_A_URL = "/:?#[]@!$&'()*+,;=%"
"""Characters with a meaning in a URL (RFC 3986 §2.2), which stay as the value has them."""


def escaped(value: str) -> str:
    """A value on one line, without markup. An address in it may still be made a link, which shows where it leads."""
    text = visible_line(_BREAKS.sub(" ", value))
    text = _MENTION.sub(f"@{_JOINER}", text).replace("](", f"]{_JOINER}(").replace("`", "\u02cb")
    return _entities(text)


def link_text(value: str) -> str:
    """A value behind the bar of a link, which it can't move."""
    return escaped(value).replace("|", "\u00a6")


def link_url(value: str) -> str:
    """A value that is a whole URL, or the beginning of one.

    Raises:
        ValueError: it is none, and would be a mention instead; or it holds half of a character.
    """
    if _URL.match(value) is None:
        raise ValueError("is no http or https URL, so it can't be a link")
    return _entities(quote(value, safe=_OF_A_URL))


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
