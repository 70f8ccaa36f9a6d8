"""Python handlers: the functions that are accepted, the event they get, and the outcome of what they do."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from inbox.clock import steady
from inbox.config.model import PythonDestination
from inbox.config.model import Retry as RetryTable
from inbox.errors import ConfigError
from relay.delivery import facts
from relay.delivery.outcome import Outcome, Skipped
from relay.delivery.policy import RoutePolicy, Schedule, can_be_given_back, decide
from relay.destinations import python
from relay.handler import Event, GiveUp, Retry, Skip
from relay.sync.expressions import function_of
from tests.helpers.delivering import NOW, a_delivery, build, config_text, context, deliver, delivered, failed
from tests.helpers.waiting import until

EVENT = a_delivery(attempt=2, run=1, event_id="e1", headers={"x-request-id": "r1"}, body=b'{"id": "u1", "n": 1.10}')
MODULE = "handlers_of_a_test"

Act = Callable[[Event], object]


def configured(function: str, extra: str = "") -> str:
    return config_text("python", f'function = "{function}"\n{extra}')


class Handled:
    """Delivers to a function, with nothing left behind by other tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._module = ModuleType(MODULE)
        monkeypatch.setitem(sys.modules, MODULE, self._module)
        monkeypatch.setattr(python, "_SLOTS", {})

    def are_free(self, number: int) -> bool:
        """True when as many slots of the one destination are free."""
        (slots,) = python._SLOTS.values()
        return slots._value == number

    def __call__(
        self, function: Act, *, extra: str = "", lease: Callable[[], float] = lambda: float("inf"), **changes: object
    ) -> Outcome:
        vars(self._module)["on_event"] = function
        delivery = msgspec.structs.replace(EVENT, **changes)
        return deliver(configured(f"{MODULE}:on_event", extra), delivery, context(lease))


class Held:
    """A function that does not return before it is let go; `began` is released once for each call."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self._go = threading.Event()

    def __call__(self, event: Event) -> None:
        del event
        self.began.release()
        self._go.wait(30)

    def let_go(self) -> None:
        self._go.set()


CONCURRENCY = PythonDestination(function="x:y").concurrency
POLICY = RoutePolicy("strict", blocks_on_death=False, schedule=Schedule(RetryTable(), jitter=0))


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> Handled:
    return Handled(monkeypatch)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.let_go()


def raising(error: BaseException) -> Act:
    def function(_: Event) -> None:
        raise error

    return function


def nothing(_: Event) -> None:
    """All is well."""


def failure(outcome: Outcome) -> tuple[str, str, str]:
    """Its class, its error, and what is known of its one call."""
    (call,) = failed(outcome).calls
    return failed(outcome).error_class, failed(outcome).error, call.sent


def fact_of(outcome: Outcome) -> facts.AnyFact:
    return decide(EVENT, outcome, POLICY, NOW)


# --- what it is given


def test_a_function_that_returns_has_delivered_the_event(handled: Handled) -> None:
    outcome = delivered(handled(lambda _: "whatever it returns"))
    assert outcome.did == "handled"
    (call,) = outcome.calls
    assert (call.step, call.method, call.url, call.sent) == ("handle", "CALL", f"{MODULE}:on_event", "answered")


def test_it_is_given_all_that_is_known_of_the_event(handled: Handled) -> None:
    seen: list[Event] = []
    handled(seen.append)
    assert seen == [
        Event(
            seq=7,
            source="trivore",
            entity_type="USER",
            entity_id="u1",
            event_type="UPDATE",
            action="update",
            event_id="e1",
            occurred_at=NOW,
            received_at=NOW,
            headers={"x-request-id": "r1"},
            body={"id": "u1", "n": 1.1},
            raw=b'{"id": "u1", "n": 1.10}',
            attempt=2,
            idempotency_key=f"{EVENT.webhook_id}-1",
        )
    ]
    with pytest.raises(AttributeError):
        seen[0].seq = 8  # type: ignore[misc]  # it is frozen


@pytest.mark.parametrize(
    ("content_type", "raw", "body"),
    [
        ("application/json", b"[1]", [1]),
        ("application/x-www-form-urlencoded", b"a=1&b=%C3%A4", {"a": "1", "b": "ä"}),
        ("text/plain", b"hello", None),
        ("application/json", b"", None),
    ],
)
def test_the_body_is_parsed_when_it_can_be_and_there_as_it_came(
    handled: Handled, content_type: str, raw: bytes, body: object
) -> None:
    seen: list[Event] = []
    handled(seen.append, content_type=content_type, body=raw)
    assert (seen[0].body, seen[0].raw) == (body, raw)


def test_an_erased_event_is_skipped_without_a_call(handled: Handled) -> None:
    assert handled(raising(AssertionError()), body=None) == Skipped((), "the event's body was erased")


# --- what it raises


def test_skip_ends_it_and_the_log_says_why(handled: Handled) -> None:
    outcome = handled(raising(Skip("not one of ours")))
    assert isinstance(outcome, Skipped)
    assert outcome.why == "not one of ours"
    assert isinstance(fact_of(outcome), Skipped)


@pytest.mark.parametrize(("after", "delay"), [(None, 30), (600, 600), (1, 30), (Decimal(600), 600)])
def test_retry_is_tried_again_by_the_schedule_and_not_before_it_asked(
    handled: Handled,
    after: Any,  # noqa: ANN401  # whatever a handler gives
    delay: int,
) -> None:
    outcome = handled(raising(Retry("the CRM is closed", after=after)))
    assert failure(outcome) == ("handler_retry", "handle: the CRM is closed", "answered")
    fact = fact_of(outcome)
    assert isinstance(fact, facts.AttemptFailed)
    assert (fact.due_at, fact.counted) == (NOW + timedelta(seconds=delay), True)


def test_give_up_is_dead_at_once(handled: Handled) -> None:
    outcome = handled(raising(GiveUp("the customer has left")))
    assert failure(outcome) == ("handler_abort", "handle: the customer has left", "answered")
    fact = fact_of(outcome)
    assert isinstance(fact, facts.Dead)
    assert fact.cause == "handler_abort"


@pytest.mark.parametrize("error", [KeyError("s3cr3t"), SystemExit("s3cr3t"), KeyboardInterrupt("s3cr3t")])
def test_anything_else_is_a_bug_of_which_the_log_has_type_and_place_but_not_the_text(
    handled: Handled, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    with caplog.at_level(logging.ERROR):
        outcome = handled(raising(error))
    name = type(error).__name__
    assert failure(outcome) == ("crashed", f"handle: the function raised {name}", "answered")
    assert f"handler {MODULE}:on_event raised {name} at test_python.py:" in caplog.text
    assert "s3cr3t" not in caplog.text + repr(outcome)
    assert isinstance(fact_of(outcome), facts.AttemptFailed)


def test_any_text_that_it_says_can_be_stored(handled: Handled) -> None:
    outcome = failed(handled(raising(GiveUp("\ud800" + "x" * 10_000))))
    assert len(outcome.error.encode()) < 600
    json.dumps(facts.detail_of(fact_of(outcome)), ensure_ascii=False).encode()


# --- what it takes too long for


def test_one_that_does_not_return_in_time_is_left_behind_and_what_it_did_is_unknown(
    handled: Handled, held: Held
) -> None:
    outcome = handled(held, extra='timeout = "10ms"')
    assert failure(outcome) == ("unknown", "handle: no return within 0.01 s", "unknown")
    held.let_go()
    until(lambda: handled.are_free(CONCURRENCY), "it has returned after all")


def test_one_whose_lease_ends_is_left_behind_and_has_a_fact_that_says_so(handled: Handled, held: Held) -> None:
    began = threading.Event()

    def hanging(event: Event) -> None:
        began.set()
        held(event)

    def lease() -> float:
        return 0.0 if began.is_set() else float("inf")

    outcome = handled(hanging, lease=lease)
    assert failure(outcome) == ("lease_lost", "handle: left behind: the lease ended", "unknown")
    assert not can_be_given_back(outcome)


def test_a_lease_that_ended_before_is_given_back_without_a_call(handled: Handled) -> None:
    outcome = handled(raising(AssertionError()), lease=lambda: 0.0)
    assert failure(outcome) == ("lease_lost", "handle: not called: the lease ended", "not_sent")
    assert can_be_given_back(outcome)


def test_a_lease_that_is_renewed_lets_it_run_on(handled: Handled) -> None:
    looks: list[float] = []
    enough = threading.Event()

    def lease() -> float:
        looks.append(steady())
        if len(looks) == 4:
            enough.set()
        return looks[-1] + 0.05

    delivered(handled(lambda _: enough.wait(30), lease=lease))


def test_when_as_many_as_the_concurrency_are_left_behind_nothing_more_is_called(handled: Handled, held: Held) -> None:
    short = 'timeout = "10ms"\nconcurrency = 2'
    for _ in range(2):
        assert failure(handled(held, extra=short))[0] == "unknown"
    why = "handle: not called: the calls before it, as many as the concurrency, have not returned yet"
    assert failure(handled(raising(AssertionError()), extra=short)) == ("not_sent", why, "not_sent")

    held.let_go()
    until(lambda: handled.are_free(2), "both have returned")
    delivered(handled(nothing, extra="concurrency = 2"))


def test_a_call_waits_for_room_while_others_still_work(handled: Handled, held: Held) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(handled, held, extra="concurrency = 1")
        held.began.acquire()
        second = pool.submit(handled, nothing, extra="concurrency = 1")
        held.let_go()
        delivered(first.result())
        delivered(second.result())


def test_a_call_that_finds_no_room_in_its_time_was_not_made(handled: Handled, held: Held) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(handled, held, extra="concurrency = 1")
        held.began.acquire()
        outcome = handled(raising(AssertionError()), extra='timeout = "20ms"\nconcurrency = 1')
        assert failure(outcome)[0] == "not_sent"
        held.let_go()
        delivered(first.result())


_numbers = count(1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of inbox.toml; modules imported from it are forgotten afterwards."""
    monkeypatch.setenv("INBOX_CONFIG", str(tmp_path / "inbox.toml"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(python, "_SLOTS", {})
    before = set(sys.modules)
    yield tmp_path
    for name in {name for name in sys.modules if name.startswith("module_of_a_test_")} - before:
        del sys.modules[name]


@pytest.fixture
def written(folder: Path) -> Callable[[str], str]:
    """Writes a module into the folder; gives its name."""

    def write(text: str) -> str:
        name = f"module_of_a_test_{next(_numbers)}"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        return name

    return write


def refusal(function: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(configured(function))
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "def on_event(event): ...",
        "def on_event(event, tries=3, *, log=None): ...",
        "on_event = lambda *_: None",
        "import functools\non_event = functools.partial(print, 1)",
        "class Handler:\n    def __call__(self, event): ...\non_event = Handler()",
        "on_event = print",
    ],
)
def test_anything_that_can_be_called_with_an_event_is_taken(written: Callable[[str], str], text: str) -> None:
    assert callable(function_of(f"{written(text)}:on_event", "here"))


def test_the_present_folder_is_searched_when_no_file_is_named(
    written: Callable[[str], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = written("def on_event(event): ...")
    monkeypatch.delenv("INBOX_CONFIG")
    monkeypatch.chdir(folder)
    assert callable(function_of(f"{name}:on_event", "here"))


def test_a_file_beside_inbox_toml_takes_nobodys_place(folder: Path) -> None:
    (folder / "json.py").write_text("def loads(event): ...", encoding="utf-8")
    assert function_of("json:loads", "here") is json.loads


def test_a_missing_module_is_told_with_the_file_to_write(folder: Path) -> None:
    assert refusal("no_such.module:on_event") == (
        "destinations.crm.function: there is no module 'no_such.module'; "
        f"write no_such/module.py in {folder}, or install the package that has it"
    )


def test_a_module_that_misses_another_is_told_with_that_ones_name(written: Callable[[str], str]) -> None:
    name = written("import no_such_library")
    assert refusal(f"{name}:on_event").endswith(f"{name} imports 'no_such_library', which is not installed")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def on_event(event)", "SyntaxError"),
        ("raise KeyError('s3cr3t')", "KeyError"),
        ("import sys\nsys.exit('s3cr3t')", "SystemExit"),
        ("from json import s3cr3t", "ImportError"),
    ],
)
def test_a_module_that_can_not_be_imported_is_told_without_what_it_says(
    written: Callable[[str], str], folder: Path, text: str, error: str
) -> None:
    name = written(text)
    told = refusal(f"{name}:on_event")
    assert f"{name} can't be imported: {error}; try python -c 'import {name}' in {folder}" in told
    assert "s3cr3t" not in told


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("on_event = 5", "is not a function, but of type int"),
        ("def on_event(): ...", "must take one argument, the event"),
        ("def on_event(event, other): ...", "must take one argument, the event"),
        ("async def on_event(event): ...", "being async or a generator; write a plain def"),
        ("def on_event(event): yield", "being async or a generator; write a plain def"),
        ("async def on_event(event): yield", "being async or a generator; write a plain def"),
        ("class H:\n    async def __call__(self, event): ...\non_event = H()", "being async or a generator"),
    ],
)
def test_a_function_that_would_not_work_is_refused_before_it_is_called(
    written: Callable[[str], str], text: str, why: str
) -> None:
    assert why in refusal(f"{written(text)}:on_event")


# --- what the file may say


@pytest.mark.parametrize("function", ["", "module", "module:", ":name", "a.b:c d", "a..b:c", "1a:b", "a:b()", "a/b:c"])
def test_a_function_is_named_by_module_and_name(function: str) -> None:
    with pytest.raises(ConfigError, match=r'\[destinations.crm\] function: expected "package.module:name", got'):
        build(configured(function))
