"""A message for each event, as Slack's incoming webhooks take it, and those that do as Slack does.

Facts: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks (`text`, and the errors: 400
`invalid_payload`, 403 `action_prohibited`, 404 `channel_not_found` and `no_service`, 410 `channel_is_archived`). The
errors come with statuses that mean here what they mean everywhere, so their words are for the log alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from inbox.config.model import Route, SlackDestination
from inbox.errors import MappingError
from relay.delivery import slack_text
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome, Skipped
from relay.destinations.base import Caller, Clients, Context
from relay.http.client import Request
from relay.http.endpoint import header_value
from relay.sync.expressions import Scope, encode
from relay.sync.forms import FORMS
from relay.sync.plan import event_scope
from relay.sync.templates import Placeholder, Template, encoded


class Message(Template):
    """A message's text: what is put into it is escaped, so that it can't mention everybody, forge a line or hide a link."""

    def expand(self, scope: Scope) -> str:
        """The text, each value in the form of its place: in text, as a link's text, as its URL, or as a part of that.

        Raises:
            MappingError: an expression finds nothing, or something that can't stand in its place.
        """
        said = ""
        for part in self.parts:
            said += part if isinstance(part, str) else self._placed(self._text(part, scope), part, said)
        return said

    def _is_query(self, around: Sequence[str], placeholders: Sequence[Placeholder]) -> bool:  # noqa: ARG002
        return False  # its one language is escaped for here

    def _placed(self, value: str, placeholder: Placeholder, before: str) -> str:
        if before.rfind("<") <= before.rfind(">"):
            return slack_text.escaped(value)
        link = before.rpartition("<")[2]
        if "|" in link:
            return slack_text.link_text(value)
        if link:
            return value if placeholder.form is FORMS["url"] else encoded(value, self.where)
        try:
            return slack_text.link_url(value)
        except ValueError as error:  # a UnicodeEncodeError is one
            raise MappingError(f"{{{placeholder.text}}}: {error}", field=self.where) from None


class Slack:
    """The deliverer of one route to a slack destination."""

    def __init__(self, client: Caller, message: Message) -> None:
        self._client = client
        self._message = message

    def deliver(self, delivery: Delivery, context: Context) -> Outcome:
        """One POST: any 2xx is success."""
        if delivery.body is None:
            return Skipped((), "the event's body was erased")
        try:
            text = self._message.expand({"event": event_scope(delivery)})
            body = encode({"text": text})
        except MappingError as error:
            return Failed((), "mapping", str(error))
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": delivery.idempotency_key,
        }
        if delivery.traceparent is not None:
            headers["Traceparent"] = header_value(delivery.traceparent)
        answer = self._client.call(Request("forward", "POST", headers, body=body), context)
        calls = (answer.call,)
        return Delivered(calls, "forwarded") if answer.error_class is None else answer.failed(calls)

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()


def build(route: Route, destination: SlackDestination, clients: Clients) -> Slack:  # noqa: ARG001  # as every kind's
    """The deliverer of `route`.

    Raises:
        ConfigError: the URL or the template can't be used.
    """
    url = destination.url.reveal()
    path = urlsplit(url).path
    secrets = [url, path, *path.split("/")[-1:]]  # the path of a chat's hook is its secret, most of all its end
    client = clients.destination(destination, url, secrets=secrets, shown_path="/…")
    return Slack(client, Message(destination.text, f"destinations.{destination.name}.text", {"event"}))
