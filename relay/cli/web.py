"""`relay web`: the operator's page and its accounts; `relay demo`: the product with demo services."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from relay.cli.options import Commands
from relay.cli.output import FINDING, answer, console, fail, say

web_app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None)
demo_app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None)

_Role = Annotated[str, typer.Option(help="viewer, which is read-only, or operator, which may also act.")]
_Into = Annotated[
    Path | None,
    typer.Option(help="Write the line to this file, replacing one with the same name, instead of printing it."),
]


def become_gunicorn(settings: str, bind: str, workers: int | None) -> NoReturn:
    """Replace this process with gunicorn, which also handles its signals."""
    _check_address(bind)
    arguments = ["--config", f"python:{settings}", "--bind", bind]
    arguments += [] if workers is None else ["--workers", str(workers)]
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *arguments])  # noqa: S606  # replaces this process on purpose


def _check_address(bind: str) -> None:
    """Exit if this address can't be bound: gunicorn would retry for five seconds, or print a traceback."""
    if "LISTEN_FDS" in os.environ or bind.startswith(("unix:", "fd://")):
        return  # a socket that is inherited or has a path
    host, separator, port = bind.rpartition(":")
    if not separator or not port.isdecimal() or "/" in host:
        fail(f"--bind names an address and a port, such as 127.0.0.1:8000, not {bind!r}")
    host = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except (OSError, OverflowError, UnicodeError) as error:
        why = str(getattr(error, "strerror", None) or error).rstrip(".")
        fail(f"can't listen on {bind}: {why}; name another address and port with --bind")


@web_app.callback(invoke_without_command=True)
def web(
    context: typer.Context,
    *,
    bind: Annotated[
        str, typer.Option(help="Address and port; use a proxy with TLS to make it reachable from other hosts.")
    ] = "127.0.0.1:8025",
) -> None:
    """Serve the operator's page and its API with gunicorn. SIGHUP reloads the configuration.

    Access is configured by `web.users`, `web.tokens` or `web.proxy`; without any of these, the page does not start.

    Examples:
      relay web passwd anna --role operator --into users
      relay web
      relay web --bind 0.0.0.0:8025
    """
    if context.invoked_subcommand is not None:
        return
    from inbox.loader.load import load_file
    from relay.web.app import make_page

    load_file().make(make_page)  # report mistakes before gunicorn prints its own lines
    become_gunicorn("relay.web.gunicorn_settings", bind, 1)


@web_app.command()
def passwd(
    name: Annotated[str, typer.Argument(help="Name of the person.")],
    *,
    role: _Role,
    into: _Into = None,
) -> None:
    """Hash a password, and print the person's line for the file that `web.users` names.

    Prompts twice for the password. If standard input is not a terminal, its first line is the password.

    Examples:
      relay web passwd anna --role operator
      relay web passwd ben --role viewer --into users
    """
    from relay.accounts import hash_password

    _check(name, role)
    if sys.stdin.isatty():
        password = str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    try:
        line = f"{name}:{role}:{hash_password(password)}"
    except ValueError as error:
        fail(str(error))
    _put_line(name, line, into, "users")


@web_app.command()
def token(
    name: Annotated[str, typer.Argument(help="Name of the program that uses the token.")],
    *,
    role: _Role,
    into: _Into = None,
) -> None:
    """Create an API token, print it once, and print the program's line for the file that `web.tokens` names.

    The line contains only the token's hash. The program sends the token as `Authorization: Bearer TOKEN`.

    Examples:
      relay web token grafana --role viewer --into tokens
    """
    from relay.accounts import hash_token, new_token

    _check(name, role)
    made = new_token()
    line = f"{name}:{role}:{hash_token(made)}"
    if into is None:
        say("the token, shown only once, and its line for the file that web.tokens names:")
        answer(made)
        answer(line)
        return
    _put_line(name, line, into, "tokens")
    say("the token, shown only once:")
    answer(made)


def _check(name: str, role: str) -> None:
    from relay.accounts import NAMES, ROLES, is_name

    if not is_name(name):
        fail(f"a name has {NAMES}")
    if role not in ROLES:
        fail(f"--role must be {' or '.join(ROLES)}")


def _put_line(name: str, line: str, into: Path | None, key: Literal["users", "tokens"]) -> None:
    """Print a line, or write it to the file."""
    from relay.accounts import write_entry

    if into is None:
        answer(line)
        return
    write_entry(into, name, line, key)
    say(f'wrote the line of {name} to {into}; the configuration needs `{key} = "file:{into}"` in [web]')


# --- the demo


@demo_app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    *,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep everything running after the verdict, until Ctrl-C.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Empty folder in which to keep the configuration, the database and the logs; by default they are deleted."
        ),
    ] = None,
) -> None:
    """Run the product with demo services, and watch webhooks become calls to another system.

    Starts an identity service, the receiver, the relay, its page and a commercial service, changes some users, and kills
    the relay at work. After up to a minute it compares both services, and exits with 0 when they agree, or with 1 and the
    differences.

    Examples:
      relay demo
      relay demo --stay
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if context.invoked_subcommand is not None:
        return
    from relay.demo.run import DemoError, run_demo

    try:
        is_well = run_demo(console(), folder, stay=stay)
    except (DemoError, OSError) as error:
        fail(str(error))
    if not is_well:
        raise typer.Exit(FINDING)


@demo_app.command()
def identity(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")],
    webhook_url: Annotated[str | None, typer.Option(help="URL that receives a webhook for each change.")] = None,
    webhook_token: Annotated[str | None, typer.Option(help="Value of the webhooks' header X-Webhook-Token.")] = None,
    users: Annotated[int, typer.Option(help="Number of initial users.")] = 20,
) -> None:
    """Run only the demo identity service, with the paths of the Trivore Management API; client `demo`, secret `demo`.

    Example:
      relay demo identity --port 8301 --webhook-url http://127.0.0.1:8000/webhooks/trivore
    """
    from relay.demo.scenario import sample_user
    from relay.demo.services import USER, IdentityService, WebhookSender

    webhooks = WebhookSender(headers={"X-Webhook-Token": webhook_token} if webhook_token else None)
    service = IdentityService(webhooks)
    for number in range(users):
        service.create(USER, sample_user(number))
    webhooks.url = webhook_url
    _serve(service.app, port, "the identity service")
    webhooks.close()


@demo_app.command()
def commercial(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")],
    fail_share: Annotated[float, typer.Option(min=0, max=1, help="Share of calls answered with 503.")] = 0.0,
) -> None:
    """Run only the demo commercial service: contacts and teams found by external id; token `demo`.

    Example:
      relay demo commercial --port 8302 --fail-share 0.1
    """
    from relay.demo.services import CommercialService

    _serve(CommercialService(fail_share=fail_share).app, port, "the commercial service")


def _serve(app: Any, port: int, name: str) -> None:  # noqa: ANN401  # a Falcon app: other commands don't import Falcon
    from relay.demo.services import serve

    try:
        with suppress(KeyboardInterrupt), serve(app, port) as url:
            say(f"{name} listens at {url}; press Ctrl-C to stop")
            threading.Event().wait()
    except OSError as error:
        fail(f"{name} can't listen on 127.0.0.1:{port}: {error.strerror or error}; name another --port")
