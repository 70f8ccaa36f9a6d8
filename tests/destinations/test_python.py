"""Python handlers: accepted functions, the event passed to them, and their outcomes."""

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
from relay.sync.expressions import load_function
from tests.helpers.delivering import NOW, a_delivery, as_delivered, as_failed, build, config_text, context, deliver
from tests.helpers.waiting import until

EVENT = a_delivery(attempt=2, run=1, event_id="e1", headers={"x-request-id": "r1"}, body=b'{"id": "u1", "n": 1.10}')
MODULE = "handlers_of_a_test"

Act = Callable[[Event], object]


def write_config(function: str, extra: str = "") -> str:
    return config_text("python", f'function = "{function}"\n{extra}')


class Handled:
    """Delivers to a function, without state of other tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._module = ModuleType(MODULE)
        monkeypatch.setitem(sys.modules, MODULE, self._module)
        monkeypatch.setattr(python, "_SLOTS", {})

    def are_free(self, number: int) -> bool:
        """Return whether exactly so many slots of the destination are free."""
        (slots,) = python._SLOTS.values()
        return slots._value == number

    def __call__(
        self, function: Act, *, extra: str = "", lease: Callable[[], float] = lambda: float("inf"), **changes: object
    ) -> Outcome:
        vars(self._module)["on_event"] = function
        delivery = msgspec.structs.replace(EVENT, **changes)
        return deliver(write_config(f"{MODULE}:on_event", extra), delivery, context(lease))


class Held:
    """A function that blocks until `let_go`; `began` is released for each call."""

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
    """Succeed."""


def failure(outcome: Outcome) -> tuple[str, str, str]:
    """Return error class, error and `sent` of the one call."""
    (call,) = as_failed(outcome).calls
    return as_failed(outcome).error_class, as_failed(outcome).error, call.sent


# --- the event


def test_a_handler_gets_all_fields_of_the_event(handled: Handled) -> None:
    seen: list[Event] = []
    outcome = as_delivered(handled(seen.append))
    (call,) = outcome.calls
    assert (outcome.did, call.step, call.method, call.sent) == ("handled", "handle", "CALL", "answered")
    assert call.url == f"{MODULE}:on_event"
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
def test_the_body_is_parsed_if_possible(handled: Handled, content_type: str, raw: bytes, body: object) -> None:
    seen: list[Event] = []
    handled(seen.append, content_type=content_type, body=raw)
    assert (seen[0].body, seen[0].raw) == (body, raw)


def test_an_erased_event_is_skipped_without_a_call(handled: Handled) -> None:
    assert handled(raising(AssertionError()), body=None) == Skipped((), "the event's body was erased")


# --- exceptions


@pytest.mark.parametrize(
    ("raised", "told", "ends"),
    [
        (Skip("not one of ours"), None, None),
        (GiveUp("the customer has left"), "handler_abort", "handler_abort"),
        (Retry("the CRM is closed"), "handler_retry", 30),
        (Retry("the CRM is closed", after=600), "handler_retry", 600),
        (Retry("the CRM is closed", after=1), "handler_retry", 30),
        (Retry("the CRM is closed", after=Decimal(600)), "handler_retry", 600),  # type: ignore[arg-type]  # as handlers do
    ],
)
def test_exceptions_decide(handled: Handled, raised: Exception, told: str | None, ends: str | float | None) -> None:
    """The delivery is skipped, dead, or retried by the schedule but not before the requested time."""
    outcome = handled(raising(raised))
    fact = decide(EVENT, outcome, POLICY, NOW)
    if told is None:
        assert isinstance(outcome, Skipped)
        assert isinstance(fact, Skipped)
        assert outcome.why == str(raised)
        return
    assert failure(outcome) == (told, f"handle: {raised}", "answered")
    if isinstance(ends, str):
        assert isinstance(fact, facts.Dead)
        assert fact.cause == ends
    else:
        assert isinstance(fact, facts.AttemptFailed)
        assert (fact.due_at, fact.counted) == (NOW + timedelta(seconds=ends or 0), True)


@pytest.mark.parametrize("error", [KeyError("s3cr3t"), SystemExit("s3cr3t"), KeyboardInterrupt("s3cr3t")])
def test_other_exceptions_are_logged_without_text(
    handled: Handled, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    with caplog.at_level(logging.ERROR):
        outcome = handled(raising(error))
    name = type(error).__name__
    assert failure(outcome) == ("crashed", f"handle: the function raised {name}", "answered")
    assert f"handler {MODULE}:on_event raised {name} at test_python.py:" in caplog.text
    assert "s3cr3t" not in caplog.text + repr(outcome)
    assert isinstance(decide(EVENT, outcome, POLICY, NOW), facts.AttemptFailed)


def test_any_text_of_an_exception_can_be_stored(handled: Handled) -> None:
    outcome = as_failed(handled(raising(GiveUp("\ud800" + "x" * 10_000))))
    assert len(outcome.error.encode()) < 600
    json.dumps(facts.get_detail(decide(EVENT, outcome, POLICY, NOW)), ensure_ascii=False).encode()


# --- timeouts and leases


def test_a_handler_beyond_its_timeout_is_left_behind_with_an_unknown_outcome(handled: Handled, held: Held) -> None:
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

    as_delivered(handled(lambda _: enough.wait(30), lease=lease))


def test_nothing_is_called_while_as_many_calls_as_the_concurrency_are_left_behind(handled: Handled, held: Held) -> None:
    short = 'timeout = "10ms"\nconcurrency = 2'
    for _ in range(2):
        assert failure(handled(held, extra=short))[0] == "unknown"
    why = "handle: not called: earlier calls occupy all slots of the destination's concurrency"
    assert failure(handled(raising(AssertionError()), extra=short)) == ("not_sent", why, "not_sent")

    held.let_go()
    until(lambda: handled.are_free(2), "both have returned")
    as_delivered(handled(nothing, extra="concurrency = 2"))


def test_a_call_waits_for_a_slot_and_is_not_made_after_its_timeout(handled: Handled, held: Held) -> None:
    one = "concurrency = 1"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(handled, held, extra=one)
        held.began.acquire()
        assert failure(handled(raising(AssertionError()), extra=f'timeout = "20ms"\n{one}'))[0] == "not_sent"
        second = pool.submit(handled, nothing, extra=one)
        held.let_go()
        as_delivered(first.result())
        as_delivered(second.result())


_numbers = count(1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of inbox.toml, whose imported modules are removed afterwards."""
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
    """Function that writes a module into the folder and returns its name."""

    def write(text: str) -> str:
        name = f"module_of_a_test_{next(_numbers)}"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        return name

    return write


def refusal(function: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(write_config(function))
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
    assert callable(load_function(f"{written(text)}:on_event", "here"))


def test_modules_are_imported_from_the_folder_of_the_configuration_or_the_present_one(
    written: Callable[[str], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = written("def on_event(event): ...")
    (folder / "json.py").write_text("def loads(event): ...", encoding="utf-8")
    assert load_function("json:loads", "here") is json.loads
    monkeypatch.delenv("INBOX_CONFIG")
    monkeypatch.chdir(folder)
    assert callable(load_function(f"{name}:on_event", "here"))


def test_a_failing_import_is_reported_with_its_reason_but_not_its_text(written: Callable[[str], str]) -> None:
    told = refusal("no_such.module:on_event")
    assert told.startswith(
        "destinations.crm.function: there is no module 'no_such.module'; write no_such/module.py in "
    )
    for text, error in (
        ("import no_such_library", "which is not installed"),
        ("def on_event(event)", "SyntaxError"),
        ("raise KeyError('s3cr3t')", "KeyError"),
        ("import sys\nsys.exit('s3cr3t')", "SystemExit"),
        ("from json import s3cr3t", "ImportError"),
    ):
        told = refusal(f"{written(text)}:on_event")
        assert error in told
        assert "s3cr3t" not in told


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("on_event = 5", "is not a function, but of type int"),
        ("def on_event(): ...", "must take one argument, the event"),
        ("def on_event(event, other): ...", "must take one argument, the event"),
        ("async def on_event(event): ...", "is async or a generator, so calling it has no effect; write a plain def"),
        ("def on_event(event): yield", "is async or a generator, so calling it has no effect; write a plain def"),
        ("async def on_event(event): yield", "is async or a generator, so calling it has no effect; write a plain def"),
        ("class H:\n    async def __call__(self, event): ...\non_event = H()", "is async or a generator"),
    ],
)
def test_an_unusable_function_is_refused_before_any_call(written: Callable[[str], str], text: str, why: str) -> None:
    assert why in refusal(f"{written(text)}:on_event")


# --- the configuration


@pytest.mark.parametrize("function", ["", "module", "module:", ":name", "a.b:c d", "a..b:c", "1a:b", "a:b()", "a/b:c"])
def test_a_function_is_named_by_module_and_name(function: str) -> None:
    with pytest.raises(ConfigError, match=r'\[destinations.crm\] function: expected "package.module:name", got'):
        build(write_config(function))
