"""Interquartile means and bootstrap intervals over seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrocraft.lab.statistics import Interval, difference_interval, interval, ratio_interval

numbers = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=1, max_size=9)
positive = st.lists(st.floats(0.01, 100).map(lambda x: round(x, 3)), min_size=1, max_size=9)
few = settings(max_examples=30, deadline=None)


@pytest.mark.parametrize(
    ("values", "center"),
    [
        ([3.0, 1.0, 5.0], 3.0),  # a quarter of three is none
        ([9.0, 1.0, 3.0, 5.0], 4.0),
        ([100.0, 2.0, 0.0, 3.0, 4.0], 3.0),
        (range(8), 3.5),  # 2 ... 5
    ],
)
def test_interquartile_mean_by_hand(values, center):
    assert interval(values).center == pytest.approx(center)


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_interval_against_a_bootstrap_in_numpy(n):
    values = np.random.default_rng(n).normal(0.4, 0.1, n)
    drawn = np.random.default_rng(1).choice(values, (200_000, n))
    cut = n // 4
    means = np.sort(drawn, axis=1)[:, cut : n - cut].mean(axis=1)
    found = interval(values)
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)
    assert interval(values[::-1]) == found
    if n < 5:
        assert (found.low, found.high) == pytest.approx((values.min(), values.max()))


@pytest.mark.filterwarnings("error")
def test_equal_few_and_missing_values():
    assert interval([0.1] * 5) == interval([0.1, None, *[0.1] * 4]) == Interval(0.1, 0.1, 0.1, 5)
    assert interval([0.3, None, 0.1, float("nan")]) == Interval(0.2, 0.1, 0.3, 2)
    assert interval([0.1]) == Interval(0.1, 0.1, 0.1, 1)
    assert interval([None]) is None
    assert ratio_interval([1.0, None], [None, 2.0]) is None
    assert difference_interval([], [1.0]) is None


@few
@given(numbers)
def test_an_interval_holds_its_center_and_stays_within_the_values(values):
    found = interval(values)
    assert found.low <= found.center <= found.high
    assert min(values) - 1e-9 <= found.low
    assert found.high <= max(values) + 1e-9
    assert interval(sorted(values)) == found


@few
@given(numbers, st.floats(0.5, 10), st.floats(-10, 10))
def test_an_interval_moves_with_the_unit_of_its_values(values, scale, shift):
    found, moved = interval(values), interval([scale * x + shift for x in values])
    for before, after in zip(
        (found.center, found.low, found.high), (moved.center, moved.low, moved.high), strict=True
    ):
        assert after == pytest.approx(scale * before + shift, abs=1e-6)


@few
@given(positive, positive)
def test_ratios_and_differences_agree_with_the_single_intervals(a, b):
    ratio, difference = ratio_interval(a, b), difference_interval(a, b)
    x, y = interval(a).center, interval(b).center
    assert difference.center == pytest.approx(x - y, abs=1e-9)
    assert ratio.center == pytest.approx(x / y)
    assert ratio.n == difference.n == min(len(a), len(b))
    assert ratio.low <= ratio.center <= ratio.high
    assert difference_interval(a, a) == Interval(0.0, 0.0, 0.0, len(a))


def test_pairs_share_what_their_seed_does_to_both():
    easy_or_hard = np.array([0.1, 0.5, 0.9, 0.3, 0.7])
    paired = difference_interval(easy_or_hard + 0.1, easy_or_hard)
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1))
    apart = difference_interval([*(easy_or_hard + 0.1), 0.6], easy_or_hard)
    assert apart.low < 0 < apart.high
    assert apart.n == 5
    assert ratio_interval([2.0, 4.0], [1.0, 4.0]) == Interval(3.0 / 2.5, 1.0, 2.0, 2)


def test_a_ratio_to_zero_is_refused():
    with pytest.raises(ValueError, match="above zero"):
        ratio_interval([1.0], [0.0])


def test_format():
    assert f"{Interval(0.254, 0.1, 0.9, 4):.2f}" == "0.25 [0.10, 0.90]"
    assert f"{Interval(0.5, 0.25, 1.0, 3):.0%}" == "50% [25%, 100%]"
    assert f"{Interval(0.2, 0.1, 0.3, 2):.1f}" == "0.2 (0.1 to 0.3)"
    assert f"{Interval(0.2, 0.2, 0.2, 5):.1f}" == "0.2"
