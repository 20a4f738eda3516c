"""Averages, intervals, calibration and spread against values derived by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.evaluation import statistics

NUMBERS = st.floats(-1e3, 1e3, allow_nan=False)


def test_interval_by_hand() -> None:
    """1, 2, 3, 4, 5: mean 3, s = sqrt(10 / 4), t for 4 degrees of freedom 2.776."""
    mean, low, high = statistics.confidence_interval([1, 2, 3, 4, 5])
    half = 2.776 * math.sqrt(2.5) / math.sqrt(5)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half))


def test_interval_of_two_values() -> None:
    """0 and 1: s = sqrt(1/2), s / sqrt(2) = 1/2, t for 1 degree of freedom 12.706."""
    assert statistics.confidence_interval([0, 1]) == pytest.approx((0.5, 0.5 - 6.353, 0.5 + 6.353))


def test_one_value_has_no_ends_and_none_no_mean() -> None:
    assert statistics.confidence_interval([0.25]) == (0.25, -math.inf, math.inf)
    with pytest.raises(ValueError, match="no values"):
        statistics.confidence_interval([])


def test_equal_values_leave_no_doubt() -> None:
    assert statistics.confidence_interval([0.5] * 7) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("df", "exact"), [(1, 12.706), (10, 2.228), (30, 2.042), (31, 2.0395), (40, 2.0211), (60, 2.0003), (120, 1.9799)]
)
def test_quantiles_of_student(df: int, exact: float) -> None:
    """Values of the printed tables; the formula beyond 30 is within 0.005 of them."""
    values = [0.0, 1.0] * ((df + 1) // 2) + [0.5] * ((df + 1) % 2)
    mean, low, high = statistics.confidence_interval(values)
    assert len(values) == df + 1
    assert (high - low) / 2 * math.sqrt(df + 1) / np.std(values, ddof=1) == pytest.approx(exact, abs=0.005)
    assert mean == pytest.approx(0.5)


def test_quantiles_fall_without_a_jump_where_the_formula_begins() -> None:
    all_t = [*statistics.T95, *(1.96 * (1 + 1.25 / df) for df in (31, 32, 100, 10_000))]
    assert len(statistics.T95) == 30
    assert all(a >= b for a, b in itertools.pairwise(all_t)) and all_t[-1] > 1.96


@given(st.lists(NUMBERS, min_size=2, max_size=40), st.floats(0.1, 10), NUMBERS)
@settings(max_examples=60, deadline=None)
def test_intervals_move_and_grow_with_their_values(values: list[float], scale: float, shift: float) -> None:
    mean, low, high = statistics.confidence_interval(values)
    assert low <= mean <= high
    moved = statistics.confidence_interval([scale * v + shift for v in values])
    assert moved == pytest.approx(
        tuple(scale * v + shift for v in (mean, low, high)), abs=1e-6 * (1 + abs(high) * scale)
    )


def test_the_interval_holds_the_true_mean_19_times_in_20() -> None:
    """2000 samples of 5 normal values: the share's own deviation is 0.005."""
    samples = np.random.default_rng(0).normal(3, 2, (2000, 5))
    held = [low <= 3 <= high for _, low, high in map(statistics.confidence_interval, samples)]
    assert abs(np.mean(held) - 0.95) < 0.02


def test_calibrated_ends() -> None:
    assert statistics.calibrate(0.3, 0.3, 0.8) == 0 and statistics.calibrate(0.8, 0.3, 0.8) == 1
    assert statistics.calibrate(0.55, 0.3, 0.8) == pytest.approx(0.5)
    assert statistics.calibrate(1.8, 0.3, 0.8) == pytest.approx(3)  # beyond the ends the line goes on
    assert statistics.calibrate(2, 3, 1) == 0.5  # 1 may be the smaller end
    with pytest.raises(ValueError, match="the same raw value 0.5"):
        statistics.calibrate(1, 0.5, 0.5)


def test_similarity_is_the_mean_cosine() -> None:
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    references = np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(statistics.mean_cosine(vectors, references), [0.5, 0.7, -0.5])


def test_spread_by_hand() -> None:
    """Corners of a right triangle with legs 3 and 4: (3 + 4 + 5) / 3."""
    assert statistics.mean_distance(np.array([[0.0, 0], [3, 0], [0, 4]])) == pytest.approx(4)
    assert statistics.mean_distance(np.ones((5, 4))) == 0
    with pytest.raises(ValueError, match="one pose"):
        statistics.mean_distance(np.ones((1, 4)))


def test_pose_counts_shifts_and_scalings_alike() -> None:
    x, y, w, h = statistics.pose_vector((0.2, 0.1, 0.6, 0.5))
    assert (x, y, w, h) == pytest.approx((0.4, 0.3, math.log(0.4), math.log(0.4)))
    doubled = statistics.pose_vector((0.0, -0.1, 0.8, 0.7))  # about the same centre
    assert doubled == pytest.approx((x, y, w + math.log(2), h + math.log(2)))
    assert all(math.isfinite(v) for v in statistics.pose_vector((0.5, 0.5, 0.5, 0.4)))  # an empty box


FOUND = [{"identity": 0.5, "leak": 0.0}, {"identity": 0.7, "presence": 1.0, "leak": 0.0}]


def test_rows_average_over_the_objects_that_have_a_measure() -> None:
    table = {row["measure"]: row for row in statistics.table_rows("ours", FOUND)}
    assert list(table) == ["identity", "leak", "presence"]
    assert all(
        set(row) == {"method", "measure", "mean", "low", "high", "n"} and row["method"] == "ours"
        for row in table.values()
    )
    half = 12.706 * 0.1  # s / sqrt(2) of two values is half their difference
    assert (table["identity"]["mean"], table["identity"]["n"]) == (0.6, 2)
    assert (table["identity"]["low"], table["identity"]["high"]) == pytest.approx((0.6 - half, 0.6 + half), abs=1e-4)
    assert table["presence"] == {
        "method": "ours",
        "measure": "presence",
        "mean": 1.0,
        "low": None,
        "high": None,
        "n": 1,
    }
    assert (table["leak"]["low"], table["leak"]["high"]) == (0, 0)


def test_nothing_found_is_no_row() -> None:
    assert statistics.table_rows("ours", []) == statistics.table_rows("ours", [{}]) == []


def test_pivot_has_a_line_for_each_method_and_gaps_where_nothing_was_measured() -> None:
    rows = statistics.table_rows("truth", [{"identity": 1.0}]) + statistics.table_rows(
        "ours", [*FOUND, {"seconds": 61.6}]
    )
    header, lines = statistics.pivot(rows)
    assert header == ["method", "identity", "leak", "presence", "seconds"]
    assert lines == [["truth", "1.00", "", "", ""], ["ours", "0.60 ±1.27", "0.00 ±0.00", "1.00", "62"]]
