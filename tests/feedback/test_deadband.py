"""The deadband: edges, and bands that make no sense."""

import math
import re
from types import SimpleNamespace

import pytest

from entrocraft import FeedbackSettings
from entrocraft.feedback import Deadband, Planner, Situation
from entrocraft.rollouts import StepInfo


def choose(loop, measured, target=0.5, size=1.0):
    situation = Situation(
        measured=measured,
        target=lambda ahead: target if ahead == 0 else 9.0,
        step=StepInfo(0),
        response=SimpleNamespace(size=size),
    )
    memory = loop.measure(loop.start(), measured, 0.01, size)
    pressure, metrics = loop.plan(memory, situation)
    return pressure, memory, metrics


def test_edges_belong_to_the_band():
    loop = Deadband((-0.25, 0.125))
    for measured, expected in ((0.25, 0), (0.2499, 1), (0.625, 0), (0.6251, -1), (0.5, 0)):
        pressure, state, metrics = choose(loop, measured)
        assert pressure.value == expected
        assert pressure.saturated == (expected != 0)
        assert pressure.shortfall == 0
        assert state is None
        assert metrics == {"entropy/low": 0.25, "entropy/high": 0.625}


def test_a_band_without_width_is_a_switch_at_the_target():
    assert [choose(Deadband(0), h)[0].value for h in (0.4999, 0.5, 0.5001)] == [1, 0, -1]


@pytest.mark.parametrize("size", [0.0, math.inf, math.nan])
def test_nothing_to_choose_from_asks_for_nothing(size):
    pressure, _, _ = choose(Deadband(0.1), 3.0, size=size)
    assert pressure.value == 0
    assert not pressure.saturated


def test_it_has_no_memory():
    loop = Deadband(0.1)
    assert loop.limit == 1
    assert loop.start() is None


@pytest.mark.parametrize(
    ("band", "message"),
    [
        (-0.1, "band must be a half-width of at least 0 nats, got -0.1"),
        (math.nan, "band must be a half-width of at least 0 nats, got nan"),
        (math.inf, "band must be a half-width of at least 0 nats, got inf"),
        ((0.1, -0.1), "lower bound 0.1 is above its upper bound -0.1; give (low, high) as offsets"),
        ((-math.inf, 0.1), "band edges must be finite, got (-inf, 0.1)"),
        ((0.1, 0.2, 0.3), "band must be a half-width or a (low, high) pair"),
        ("0.1", "band must be a half-width or a (low, high) pair"),
        (True, "band must be a half-width or a (low, high) pair"),
        (None, "band must be a half-width or a (low, high) pair"),
    ],
)
def test_bad_bands(band, message):
    for make in (Deadband, lambda band: FeedbackSettings(band=band)):
        with pytest.raises(ValueError, match=re.escape(message)):
            make(band)


def test_a_half_width_is_a_pair_and_a_list_too():
    for band in (0.05, (-0.05, 0.05), [-0.05, 0.05]):
        loop = Deadband(band)
        assert (loop.low, loop.high) == (-0.05, 0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon is 0; use 1 to 100000 optimizer steps"),
        ({"limit": 0.0}, "limit is 0.0; use a number from 1e-09"),
        ({"limit": math.inf}, "limit is inf; it has to be a finite number"),
        ({"limit": math.nan}, "limit is nan; it has to be a finite number"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FeedbackSettings(**changes)


def test_the_least_settings():
    least = FeedbackSettings(horizon=1, limit=1e-9, band=0)
    assert (least.horizon, least.limit, least.band) == (1, 1e-9, 0)


def test_settings_build_the_loop_that_the_rule_asks_for():
    settings = FeedbackSettings(horizon=7, limit=3.0, band=0.2)
    band, planner = settings.build(deadband=True), settings.build(deadband=False)
    assert isinstance(band, Deadband)
    assert (band.low, band.high) == (-0.2, 0.2)
    assert isinstance(planner, Planner)
    assert (planner.horizon, planner.limit) == (7, 3.0)
