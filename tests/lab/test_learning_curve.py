"""Fits against curves of known shape, and plateaus by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrocraft.lab.learning_curve import Ceiling, fit_ceiling, plateau

STEPS = np.arange(10, 410, 10)


@given(
    ceiling=st.floats(0.4, 0.95),
    exponent=st.floats(0.8, 3.0),
    middle=st.floats(20, 150),
    start=st.floats(0.0, 0.3),
)
@settings(max_examples=25, deadline=None)
def test_a_curve_of_the_family_is_found(ceiling, exponent, middle, start):
    truth = Ceiling(start, ceiling, exponent, middle)
    rewards = [truth.at(step) for step in STEPS]
    found = fit_ceiling(STEPS, rewards, start)
    assert found.ceiling == pytest.approx(ceiling, abs=0.01)
    assert found.middle == pytest.approx(middle, rel=0.05)
    assert found.extrapolation < 0.02
    assert truth.at(middle) == pytest.approx((start + ceiling) / 2)


def test_noise_moves_the_ceiling_little():
    truth = Ceiling(0.1, 0.7, 1.5, 60)
    rng = np.random.default_rng(0)
    rewards = [truth.at(step) + rng.normal(0, 0.01) for step in STEPS]
    assert fit_ceiling(STEPS, rewards, 0.1).ceiling == pytest.approx(0.7, abs=0.03)


def test_a_run_that_learns_nothing_has_its_start_as_ceiling_or_no_middle():
    found = fit_ceiling(STEPS, [0.2] * len(STEPS), 0.2)
    assert found.at(400) == pytest.approx(0.2, abs=0.01)


def test_few_points_have_no_extrapolation():
    assert math.isnan(fit_ceiling([1, 2, 3, 4, 5], [0.2, 0.3, 0.35, 0.37, 0.38], 0.1).extrapolation)


@pytest.mark.parametrize(
    ("compute", "rewards", "start", "message"),
    [
        ([1, 2, 3, 4], [0.1] * 4, 0.0, "at least 5"),
        ([1, 2, 3, 4, 5], [0.1] * 4, 0.0, "as many of both"),
        ([0, 1, 2, 3, 4], [0.1] * 5, 0.0, "above 0"),
        ([1, 2, 3, 4, 5], [0.1, math.nan, 0.1, 0.1, 0.1], 0.0, "finite"),
        ([1, 2, 3, 4, 5], [0.1] * 5, 1.0, "start is 1.0"),
    ],
)
def test_what_cannot_be_fitted_is_told(compute, rewards, start, message):
    with pytest.raises(ValueError, match=message):
        fit_ceiling(compute, rewards, start)


def test_a_plateau_is_the_first_step_without_a_gain_behind_it():
    steps = list(range(0, 110, 10))
    rewards = [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.51, 0.5, 0.5, 0.5, 0.5]
    assert plateau(steps, rewards, [0.01] * 11) == 40
    # no difference of the 20 steps behind step 0 is beyond the noise
    assert plateau(steps, rewards, [0.2] * 11) == 0
    # without noise 0.51 is a gain over 0.5
    assert plateau(steps, rewards, [0.0] * 11) == 60
    rising = [0.1 * step for step in range(11)]
    assert plateau(steps, rising, [0.01] * 11) is None
    # a gain after the window ends it no more
    late = [0.1] * 5 + [0.9] * 6
    assert plateau(steps, late, [0.01] * 11) == 0
    assert plateau(steps, late, [0.01] * 11, share=0.5) == 50
