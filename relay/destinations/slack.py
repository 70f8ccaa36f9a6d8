"""Slack: posts a message for each event to an incoming webhook of Slack or of a compatible service.

Facts: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks (`text`, and the errors: 400
`invalid_payload`, 403 `action_prohibited`, 404 `channel_not_found` and `no_service`, 410 `channel_is_archived`). The
statuses have their usual meaning, so the words of the errors are for the log alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from inbox.config.model import Route, SlackDestination
from inbox.errors import BodyErased, MappingError, collect_config_errors
from relay.delivery import slack_escape
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome, Skipped
from relay.destinations.base import Caller, Clients, Context
from relay.http.client import Request
from relay.http.target import header_value
from relay.sync.compiled_route import event_scope
from relay.sync.expressions import Scope, encode
from relay.sync.forms import FORMS
from relay.sync.templates import Placeholder, Template, encoded

LONGEST_MESSAGE = 40_000
"""Characters that Slack takes of a message."""


class MessageTemplate(Template):
    """A message's text. Values in it are escaped, so that they can't mention everybody, forge a line or hide a link."""

    longest = LONGEST_MESSAGE

    def expand(self, scope: Scope) -> str:
        """Return the text. Each value is escaped for its place: plain text, a link's text, its URL, or a part of that.

        Raises:
            MappingError: an expression finds nothing, or a value that its place can't hold.
        """
        text = ""
        for part in self.parts:
            text += part if isinstance(part, str) else self._placed(self._text(part, scope), part, text)
        return text

    def _is_query(self, around: Sequence[str], placeholders: Sequence[Placeholder]) -> bool:  # noqa: ARG002
        return False  # this class escapes for its one language

    def _placed(self, value: str, placeholder: Placeholder, before: str) -> str:
        if before.rfind("<") <= before.rfind(">"):
            return slack_escape.escaped(value)
        link = before.rpartition("<")[2]
        if "|" in link:
            return slack_escape.link_text(value)
        if link:
            return value if placeholder.form is FORMS["url"] else encoded(value, self.where)
        try:
            return slack_escape.link_url(value)
        except ValueError as error:  # a UnicodeEncodeError is one
            raise MappingError(f"{{{placeholder.text}}}: {error}", field=self.where) from None


class Slack:
    """The deliverer of one route to a slack destination."""

    def __init__(self, client: Caller, message: MessageTemplate) -> None:
        self._client = client
        self._message = message

    def deliver(self, delivery: Delivery, context: Context) -> Outcome:
        """Make one POST. Any 2xx is success."""
        try:
            text = self._message.expand({"event": event_scope(delivery)})
            body = encode({"text": text})
        except MappingError as error:
            return Failed((), "mapping", str(error))
        except BodyErased as erased:
            return Skipped((), str(erased))
        headers = {"Content-Type": "application/json", "Idempotency-Key": delivery.idempotency_key}
        if delivery.traceparent is not None:
            headers["Traceparent"] = header_value(delivery.traceparent)
        answer = self._client.call(Request("forward", "POST", headers, body=body), context)
        calls = (answer.call,)
        return Delivered(calls, "forwarded") if answer.error_class is None else answer.failed(calls)

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()


def build(route: Route, destination: SlackDestination, clients: Clients) -> Slack:  # noqa: ARG001  # as every kind's
    """Make the deliverer of `route`.

    Raises:
        ConfigError: the URL or the template can't be used.
    """
    where = f"destinations.{destination.name}"
    parts: dict[str, Callable[[], Any]] = {
        "message": partial(MessageTemplate, destination.text, f"{where}.text", {"event"}),
        "client": partial(_client, destination, clients, where),
    }
    made = collect_config_errors(parts)
    return Slack(made["client"], made["message"])


def _client(destination: SlackDestination, clients: Clients, where: str) -> Caller:
    url = destination.url.reveal(at=f"{where}.url")
    path = urlsplit(url).path
    secrets = [url, path, *path.split("/")[-1:]]  # the path of a chat's webhook is its secret, above all its end
    return clients.destination(destination, url, secrets=secrets, shown_path="/…")
