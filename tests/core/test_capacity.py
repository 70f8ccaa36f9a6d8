"""The model of benchmarks/capacity.py: where the answer is known without it, its bounds, and beside what was measured."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.capacity import BAR, MEASURED, compare
from benchmarks.capacity_costs import Run, Usage, fitted, used_between
from benchmarks.capacity_model import Costs, Fleet, bound, simulate
from relay.daemon.generation import PREFETCH

FREE = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
SCATTER = 1.03
"""Processor times are drawn by lot, so that some seconds have a little more of the short ones."""


def costs(**some: float) -> Costs:
    return msgspec.structs.replace(FREE, **some)


def test_without_costs_only_the_downstreams_time_counts() -> None:
    assert simulate(FREE, Fleet(3, 8, 0.02, 3, 1)).rate == pytest.approx(3 * 8 / 0.02, rel=0.02)


def test_no_fleet_is_faster_than_its_lock() -> None:
    some, more = (simulate(costs(commit=0.008), Fleet(number, 8, 0.01, number, 1)) for number in (16, 32))
    assert more.rate == pytest.approx(some.rate, rel=0.1)
    assert some.rate < PREFETCH * 8 / 0.008
    assert some.first() == more.first() == "the order lock"


def test_no_fleet_is_faster_than_the_server() -> None:
    forecast = simulate(costs(server_event=0.002), Fleet(16, 8, 0.01, 16, 2))
    assert forecast.rate == pytest.approx(1000, rel=0.1)
    assert forecast.first() == "the server's cores"


def test_one_interpreter_limits_one_process_and_not_two() -> None:
    forecasts = [simulate(costs(call=0.001), Fleet(number, 64, 0.01, 4, 1)) for number in (1, 2)]
    assert [each.rate for each in forecasts] == pytest.approx([1000, 2000], rel=0.05)
    assert forecasts[0].first() == "each relay's interpreter"


def test_batches_grow_with_the_load_so_that_an_event_costs_less() -> None:
    of_an_event = [simulate(MEASURED, Fleet(4, number, 0.02, 2, 0)).transactions for number in (2, 8, 32)]
    assert all(after < before / 1.5 for before, after in pairwise(of_an_event))


def test_more_processes_and_more_locks_never_deliver_less() -> None:
    by_processes = [simulate(MEASURED, Fleet(number, 8, 0.02, number, 16)).rate for number in (1, 4, 16)]
    by_locks = [simulate(MEASURED, Fleet(16, 8, 0.02, 16, 16, locks)).rate for locks in (1, 2, 8)]
    for rates in (by_processes, by_locks):
        assert all(after * SCATTER > before for before, after in pairwise(rates))


@pytest.mark.parametrize(
    ("some", "fleet", "most"),
    [
        (
            {"server_transaction": 0.05},
            Fleet(8, 4, 0.001, 8, 1),
            120,
        ),  # 12 deliveries are recorded by one, claimed by another
        ({"server_transaction": 0.05, "server_event": 0.01}, Fleet(8, 4, 0.001, 2, 0), 2 / (0.01 + 0.05 * 2 / 12)),
        ({"call": 0.01, "loop_event": 0.01}, Fleet(8, 4, 0.001, 4, 1), 200),
        ({"call": 0.001}, Fleet(2, 8, 0.02, 4, 1), 800),
    ],
)
def test_the_bound_is_of_the_largest_batches(some: dict[str, float], fleet: Fleet, most: float) -> None:
    assert bound(costs(**some), fleet) == pytest.approx(most)


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(0.3, 3),
    processes=st.integers(1, 4),
    concurrency=st.lists(st.integers(1, 32), min_size=2, max_size=2, unique=True).map(sorted),
    answer=st.sampled_from((0.005, 0.02, 0.2)),
    cores=st.tuples(st.integers(1, 4), st.integers(0, 2)),
)
def test_more_calls_never_deliver_less_and_no_fleet_exceeds_its_bound(
    scale: float, processes: int, concurrency: list[int], answer: float, cores: tuple[int, int]
) -> None:
    costs = MEASURED.scaled(scale)
    fleets = [Fleet(processes, number, answer, *cores) for number in concurrency]
    fewer, most = (simulate(costs, fleet).rate for fleet in fleets)
    assert most * SCATTER > fewer
    assert fewer <= bound(costs, fleets[0]) * SCATTER
    assert most <= bound(costs, fleets[1]) * SCATTER


def test_the_loop_is_the_thread_that_is_busiest_now_and_not_at_the_start() -> None:
    threads = [{"main": 9.0, "loop": 1.0, "call-1": 0.5}, {"main": 8.0, "loop": 1.0}]
    later = [{"main": 9.0, "loop": 3.0, "call-1": 1.0, "call-2": 0.5}, {"main": 8.0, "loop": 2.0}]
    before = Usage(100.0, threads, server=5.0, downstream=1.0, busy=50.0, transactions=300)
    after = Usage(104.0, later, server=6.0, downstream=1.5, busy=60.0, transactions=800)
    run = used_between(before, after, 1000)
    assert (run.rate, run.transactions) == (250, 0.5)
    assert (run.loop, run.calls, run.server, run.downstream) == pytest.approx((0.003, 0.001, 0.001, 0.0005))
    assert run.others == pytest.approx((10 - 3 - 1 - 1 - 0.5) / 4)


def test_costs_of_a_transaction_are_told_from_those_of_an_event() -> None:
    def run(transactions: float) -> Run:
        return Run(100, transactions, 0.0004, 0.0001 + 0.002 * transactions, 0.00009 + 0.001 * transactions, 0.00005, 0)

    found = fitted([run(0.1), run(0.3), run(0.8)], 0.0005)
    assert msgspec.structs.astuple(found) == pytest.approx((0.0004, 0.0001, 0.002, 0.00009, 0.001, 0.0005, 0.00005))


@pytest.mark.parametrize(("few", "many"), [(0.003, 0.001), (0.0001, 0.003)])
def test_costs_are_never_negative(few: float, many: float) -> None:
    runs = [Run(100, 0.1, 0.0, few, few, 0.0, 0), Run(100, 0.8, 0.0, many, many, 0.0, 0)]
    assert min(msgspec.structs.astuple(fitted(runs, 0.0))) == 0


def test_other_programs_take_their_part_of_the_cores() -> None:
    fleet = Fleet(4, 16, 0.02, 2, 0)
    alone, beside = (
        float(str(compare(MEASURED, fleet, Run(1700, 0.1, 0, 0, 0, 0, others))["model"])) for others in (0.0, 1.0)
    )
    assert 0.4 * alone < beside < 0.75 * alone


def test_a_comparison_says_how_far_the_model_is_from_the_run() -> None:
    row = compare(FREE, Fleet(1, 8, 0.02, 2, 0), Run(500, 0.5, 0, 0, 0, 0, 0))
    assert (row["measured"], row["model"]) == (500, pytest.approx(400, abs=4))
    assert row["difference"] == pytest.approx(-0.2, abs=0.01)


@pytest.mark.parametrize(
    ("fleet", "measured"),
    [
        # two quiet cores, 2026-11-27: benchmarks.relays, `benchmarks.growth relays` and benchmarks.drain, in latest.json
        (Fleet(1, 8, 0.02, 2, 0), 379),
        (Fleet(2, 8, 0.02, 2, 0), 717),
        (Fleet(1, 16, 0.02, 2, 0), 744),
        (Fleet(2, 16, 0.02, 2, 0), 1295),
        (Fleet(1, 16, 0.0003, 2, 0), 1332),
        # runs of --check beside other work
        (Fleet(2, 8, 0.02, 2, 0, others=0.28), 702),
        (Fleet(4, 8, 0.02, 2, 0, others=0.59), 1021),
    ],
)
def test_the_model_is_within_15_percent_of_a_measurement(fleet: Fleet, measured: float) -> None:
    assert simulate(MEASURED, fleet).rate == pytest.approx(measured, rel=BAR)
