"""Options that several commands share: times and checked names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import typer

from inbox.events.timestamps import parse_time
from relay.cli.options import require_known
from relay.cli.output import WRONG_USE

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T10:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("2026-01-31T10:00:05", datetime(2026, 1, 31, 10, 0, 5, tzinfo=UTC)),
        ("2026-01-31T10:00:05.123Z", datetime(2026, 1, 31, 10, 0, 5, 123_000, tzinfo=UTC)),
        ("2026-01-31 10:00:05.123456Z", datetime(2026, 1, 31, 10, 0, 5, 123_456, tzinfo=UTC)),
        ("2026-01-31T12:00:05+02:00", datetime(2026, 1, 31, 10, 0, 5, tzinfo=UTC)),
        ("30s", NOW - timedelta(seconds=30)),
        ("15m", NOW - timedelta(minutes=15)),
        ("1h", NOW - timedelta(hours=1)),
        ("2d", NOW - timedelta(days=2)),
        ("1w", NOW - timedelta(weeks=1)),
    ],
)
def test_a_time_is_what_listings_print_a_date_or_a_span_back_from_now(given: str, meant: datetime) -> None:
    assert parse_time(given, NOW) == meant


@pytest.mark.parametrize("given", ["", "yesterday", "1", "-1h", "1y", "2026-13-01", "2026-01-31Z", "999999999w", "٣h"])
def test_anything_else_is_an_error_that_says_the_forms(given: str) -> None:
    with pytest.raises(ValueError, match=r"2026-01-31T10:00:00.123Z.* a date .*1h"):
        parse_time(given, NOW)


def test_a_mistyped_name_exits_with_2_and_says_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        require_known("route", "to-crn", ["to-crm", "audit"])
    assert ended.value.exit_code == WRONG_USE
    assert "there is no route 'to-crn'; did you mean 'to-crm'?" in capsys.readouterr().err
