"""`relay web`: the operator's page, and who may use it; `relay demo`: the product with services to try it on."""

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

_Role = Annotated[str, typer.Option(help="viewer, who sees, or operator, who may also act.")]
_Into = Annotated[
    Path | None,
    typer.Option(help="File that gets the line, in place of the one with the same name; else it is printed."),
]


def become_gunicorn(settings: str, bind: str, workers: int | None) -> NoReturn:
    """Let gunicorn take this process over, and its signals."""
    _check_address(bind)
    arguments = ["--config", f"python:{settings}", "--bind", bind]
    arguments += [] if workers is None else ["--workers", str(workers)]
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *arguments])  # noqa: S606  # the point of it


def _check_address(bind: str) -> None:
    """Exit where nobody can listen on this address: gunicorn would try for five seconds, or show a traceback."""
    host, separator, port = bind.rpartition(":")
    if "LISTEN_FDS" in os.environ or not separator or not port.isdecimal() or "/" in host:
        return  # a socket, or something that gunicorn judges
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
        str, typer.Option(help="Address and port; behind a proxy with TLS if others are to reach it.")
    ] = "127.0.0.1:8025",
) -> None:
    """Serve the operator's page and its API with gunicorn. SIGHUP reads the configuration again.

    It is closed until `web.users`, `web.tokens` or `web.proxy` in the configuration says who may use it.

    Examples:
      relay web passwd anna --role operator --into users
      relay web
      relay web --bind 0.0.0.0:8025
    """
    if context.invoked_subcommand is not None:
        return
    from inbox.loader.load import load_file
    from relay.web.app import page_of

    load_file().make(page_of)  # gunicorn would say the same, below its own lines
    become_gunicorn("relay.web.gunicorn_settings", bind, 1)


@web_app.command()
def passwd(
    name: Annotated[str, typer.Argument(help="Name of the person.")],
    *,
    role: _Role,
    into: _Into = None,
) -> None:
    """Hash a password, and print the line of the person for the file that `web.users` names.

    Asks for the password twice without showing it. Where standard input is no terminal, its first line is the password.

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
    name: Annotated[str, typer.Argument(help="Name of the program that will use the token.")],
    *,
    role: _Role,
    into: _Into = None,
) -> None:
    """Make a token for the API, print it once, and print the line of the program for the file that `web.tokens` names.

    Only the hash of the token is in the line. The program sends it as `Authorization: Bearer TOKEN`.

    Examples:
      relay web token grafana --role viewer --into tokens
    """
    from relay.accounts import hash_token, new_token

    _check(name, role)
    made = new_token()
    line = f"{name}:{role}:{hash_token(made)}"
    if into is None:
        say("the token, which is shown only this once, and its line for the file that web.tokens names:")
        answer(made)
        answer(line)
        return
    _put_line(name, line, into, "tokens")
    say("the token, which is shown only this once:")
    answer(made)


def _check(name: str, role: str) -> None:
    from relay.accounts import NAMES, ROLES, is_name

    if not is_name(name):
        fail(f"a name has {NAMES}")
    if role not in ROLES:
        fail(f"--role must be {' or '.join(ROLES)}")


def _put_line(name: str, line: str, into: Path | None, key: Literal["users", "tokens"]) -> None:
    """Print a line, or write it into its file."""
    from relay.accounts import write_entry

    if into is None:
        answer(line)
        return
    write_entry(into, name, line, key)
    say(f'{into} has the line of {name}; `{key} = "file:{into}"` below [web] names the file')


# --- the demo


@demo_app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    *,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep everything running after the verdict, until Ctrl-C, to look around.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(help="An empty folder that keeps the configuration, the database and the logs; else they go."),
    ] = None,
) -> None:
    """Run the whole product with demo services, and watch webhooks become calls of another system.

    Starts an identity service, the receiver, the relay, its page and a commercial service, changes some users, kills the
    relay over its work, and shows what follows. At the end, after a minute, it compares both services, and exits 0 when
    they agree, or else 1 with what differs.

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
    webhook_url: Annotated[str | None, typer.Option(help="Where a webhook goes when something changes.")] = None,
    webhook_token: Annotated[str | None, typer.Option(help="Sent with it as X-Webhook-Token.")] = None,
    users: Annotated[int, typer.Option(help="Made-up users to begin with.")] = 20,
) -> None:
    """The demo identity service alone, with the Trivore Management API's paths; client `demo`, secret `demo`.

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
    fail_share: Annotated[float, typer.Option(min=0, max=1, help="Share of calls answered 503.")] = 0.0,
) -> None:
    """The demo commercial service alone: contacts and teams found by external id; token `demo`.

    Example:
      relay demo commercial --port 8302 --fail-share 0.1
    """
    from relay.demo.services import CommercialService

    _serve(CommercialService(fail_share=fail_share).app, port, "the commercial service")


def _serve(app: Any, port: int, name: str) -> None:  # noqa: ANN401  # a Falcon app, which other commands need not load
    from relay.demo.services import served

    try:
        with suppress(KeyboardInterrupt), served(app, port) as url:
            say(f"{name} answers at {url}; Ctrl-C ends it")
            threading.Event().wait()
    except OSError as error:
        fail(f"{name} can't listen on 127.0.0.1:{port}: {error.strerror or error}; name another --port")
