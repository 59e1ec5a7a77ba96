"""Feedback on a simulated plant with known truth, and its bookkeeping."""

import json
import math
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrocraft.feedback import Band, GainTracker, ProportionalIntegral, Relay


class Plant:
    """Entropy integrates a push that momentum (beta 0.9) delays; a collapse pulls it down."""

    def __init__(self, start, seed=0, collapse=0.003, noise=0.02, push=0.002):
        self.entropy, self.velocity = start, 0.0
        self.collapse, self.noise, self.push = collapse, noise, push
        self.random = random.Random(seed)

    def measure(self):
        return self.entropy + self.random.gauss(0, self.noise)

    def step(self, pressure):
        # what rejection can do is bounded, and less than linear in the pressure
        force = self.push * 5 * math.tanh(pressure / 5) - self.collapse
        self.velocity = 0.9 * self.velocity + 0.1 * force
        self.entropy = max(self.entropy + self.velocity, 0.0)


def run(loop, plant, target, steps):
    """True entropy before each step, and the pressures."""
    entropies, pressures = [], []
    for step in range(steps):
        entropies.append(plant.entropy)
        ahead = target(step + loop.lead(1))
        pressures.append(loop.update(plant.measure(), target(step), ahead, 1))
        plant.step(pressures[-1])
    return np.array(entropies), np.array(pressures)


def pi(**changes):
    """Return a loop with gains of its own: the defaults are free to change."""
    settings = {"proportional_gain": 40.0, "integral_gain": 1.0, "smoothing": 0.5, "lead": 2}
    return ProportionalIntegral(**(settings | {"limit": 8.0} | changes))


def ramp(start, end, steps):
    return lambda step: start + (end - start) * min(step / steps, 1.0)


@pytest.mark.parametrize("make", [pi, ProportionalIntegral])
@pytest.mark.parametrize(("start", "end"), [(0.6, 0.4), (0.55, 0.75), (2.0, 1.6), (0.5, 0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_follows_ramps(make, start, end, seed):
    target = ramp(start, end, 400)
    entropies, _ = run(make(), Plant(start, seed), target, 500)
    wanted = np.array([target(step) for step in range(500)])
    assert np.abs(entropies - wanted)[50:].mean() < 0.015
    free, _ = run(pi(proportional_gain=0, integral_gain=0), Plant(start, seed), target, 500)
    assert np.abs(free - wanted)[50:].mean() > 0.1, "the plant must need control"


@pytest.mark.parametrize(("start", "end"), [(0.6, 0.4), (0.55, 0.75), (0.5, 0.5)])
def test_the_integral_leaves_no_offset(start, end):
    target = ramp(start, end, 1500)

    def offset(loop):
        entropies = run(loop, Plant(start), target, 1500)[0][300:1400]
        wanted = [target(step) for step in range(300, 1400)]
        return abs(float((entropies - np.array(wanted)).mean()))

    assert offset(pi()) < 0.0015
    assert offset(pi(integral_gain=0.0)) > 0.005


def test_saturates_at_an_unreachable_target_and_recovers_at_once():
    plant, loop = Plant(0.6), pi()
    _, pressures = run(loop, plant, lambda step: 50.0, 300)
    assert pressures[-1] == 8.0
    assert loop.saturated
    hold = plant.entropy
    entropies, pressures = run(loop, plant, lambda step: hold, 300)
    assert not loop.saturated
    assert (np.abs(pressures[:5]) < 8).any(), "a wound-up integral would stay at the limit"
    assert entropies.max() < hold + 0.15
    assert abs(entropies[100:].mean() - hold) < 0.01


def test_the_integral_is_frozen_while_it_pushes_into_the_limit():
    loop = pi(smoothing=0.0, lead=0)
    loop.update(1.0, 1.0, 1.0, 1)
    before = loop.state_dict()["integral"]
    for _ in range(100):
        assert loop.update(1.0, 3.0, 3.0, 1) == 8.0
    assert loop.state_dict()["integral"] == before
    assert loop.update(1.0, 0.9, 0.9, 1) == pytest.approx(-4.0 - 0.1)


def test_the_integral_never_outgrows_the_limit():
    loop = pi(proportional_gain=0.0, integral_gain=5.7, smoothing=0.0, lead=0)
    pressures = [loop.update(1.0, 1.9, 1.9, 1) for _ in range(10)]
    np.testing.assert_allclose(pressures[:3], [2.7, 5.4, 8.0])
    assert loop.state_dict()["integral"] <= 8.0
    assert loop.update(1.0, 0.1, 0.1, 1) < 6


def test_pressure_by_hand():
    loop = pi(proportional_gain=10, integral_gain=2, smoothing=0.75, lead=3, limit=100)
    assert loop.estimate is None
    assert loop.lead(4) == 7
    # H_0 0.5; error ahead (0.6 - 0.5) / 0.5 = 0.2; integral 2 * 1 * (0.45 - 0.5) / 0.5
    assert loop.update(0.5, 0.45, 0.6, 1) == pytest.approx(10 * 0.2 - 0.2)
    assert loop.estimate == 0.5
    # filter 0.75 * 0.5 + 0.25 * 0.9 = 0.6; error -0.1 / 0.5 = -0.2; integral -0.2 - 2 * 4 * 1.2
    assert loop.update(0.9, 0.3, 0.5, 4) == pytest.approx(-2 - 0.2 - 9.6)
    assert loop.estimate == pytest.approx(0.6)
    assert not loop.saturated


def test_gains_are_pure_numbers():
    small, large = pi(), pi()
    for measured, target in ((0.3, 0.31), (0.29, 0.33), (0.32, 0.2)):
        p = small.update(measured, target, target, 1)
        assert large.update(10 * measured, 10 * target, 10 * target, 1) == pytest.approx(p)


def test_a_policy_without_entropy_is_no_division_by_zero():
    loop = pi()
    assert math.isfinite(loop.update(0.0, 0.0, 0.0, 1))
    assert loop.update(0.0, 0.5, 0.5, 1) == 8.0


@pytest.mark.parametrize("make", [pi, ProportionalIntegral, lambda: Relay(0.02)])
def test_state_round_trip_continues_bit_for_bit(make):
    target = ramp(0.6, 0.4, 100)
    whole = run(make(), Plant(0.6), target, 80)[1]
    plant, first = Plant(0.6), make()
    head = run(first, plant, target, 40)[1]
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert (second.estimate, second.saturated) == (first.estimate, first.saturated)
    tail = run(second, plant, lambda step: target(step + 40), 40)[1]
    assert np.array_equal(whole, np.concatenate([head, tail]))


def test_a_fresh_state_is_serialisable_too():
    for loop in (pi(), Relay()):
        loop.load_state_dict(json.loads(json.dumps(loop.state_dict())))
        assert loop.estimate is None


@given(
    st.lists(
        st.tuples(st.floats(0, 1e30), st.floats(0, 1e30), st.integers(1, 1000)),
        min_size=1,
        max_size=20,
    )
)
def test_pressure_is_always_within_the_limit(history):
    loop = pi()
    for measured, target, steps in history:
        assert abs(loop.update(measured, target, target, steps)) <= 8.0
        assert loop.saturated == (abs(loop.state_dict()["pressure"]) == 8.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proportional_gain": -1.0}, "proportional_gain must be finite and at least 0, got -1"),
        ({"integral_gain": math.nan}, "integral_gain must be finite and at least 0, got nan"),
        ({"smoothing": -0.1}, "smoothing must be finite and at least 0, got -0.1"),
        ({"smoothing": 1.0}, "smoothing must be below 1, got 1.0; 0 uses the raw measurement"),
        ({"lead": -1}, "lead must be finite and at least 0, got -1"),
        ({"limit": 0.0}, "limit must be finite and at least 1e-09, got 0.0"),
        ({"limit": math.inf}, "limit must be finite and at least 1e-09, got inf"),
    ],
)
def test_bad_gains(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pi(**changes)


def test_relay_edges_belong_to_the_band():
    relay = Relay((-0.25, 0.125))
    for measured, expected in ((0.25, 0), (0.2499, 1), (0.625, 0), (0.6251, -1), (0.5, 0)):
        assert relay.update(measured, 0.5, 9.0, 1) == expected
        assert relay.estimate == measured
        assert relay.saturated == (expected != 0)
    assert relay.lead(4) == 0


def test_a_band_without_width_is_a_switch_at_the_target():
    relay = Relay(0)
    assert [relay.update(h, 0.5, 0.5, 1) for h in (0.4999, 0.5, 0.5001)] == [1, 0, -1]


@pytest.mark.parametrize(
    ("band", "message"),
    [
        (-0.1, "band must be a half-width of at least 0 nats, got -0.1"),
        (math.nan, "band must be a half-width of at least 0 nats, got nan"),
        ((0.1, -0.1), "lower bound 0.1 is above its upper bound -0.1; give (low, high) as offsets"),
        ((-math.inf, 0.1), "band edges must be finite, got (-inf, 0.1)"),
    ],
)
def test_bad_bands(band, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Relay(band)


def test_band_from_half_width_and_list():
    assert Band.of(0.05) == Band(-0.05, 0.05) == Band.of([-0.05, 0.05])


def feed(tracker, gain, steps, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    entropy = 1.0
    for _ in range(steps):
        measured = entropy + noise * generator.standard_normal()
        tracker.observe(measured)
        change = -0.01 + 0.005 * generator.standard_normal()
        tracker.predict(measured, change)
        entropy += gain * change


@pytest.mark.parametrize("gain", [0.02, 1.0, 30.0])
def test_gain_is_recovered(gain):
    tracker = GainTracker()
    feed(tracker, gain, 200, noise=0.02 * gain)
    assert tracker.gain == pytest.approx(gain, rel=0.2)


def test_gain_without_noise_is_exact():
    tracker = GainTracker()
    feed(tracker, 0.7, 19)
    assert tracker.gain is None, "one window to compare over, one of comparisons"
    tracker = GainTracker()
    feed(tracker, 0.7, 60)
    assert tracker.gain == pytest.approx(0.7, rel=1e-9)


def test_gain_follows_a_change():
    tracker = GainTracker(window=5, memory=0.9)
    feed(tracker, 1.0, 100)
    feed(tracker, 3.0, 100, seed=1)
    assert tracker.gain == pytest.approx(3.0, rel=0.05)


def test_no_gain_while_entropy_moves_the_other_way():
    tracker = GainTracker()
    feed(tracker, -1.0, 50)
    assert tracker.gain is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_ignored(bad):
    tracker = GainTracker()
    feed(tracker, 2.0, 50)
    before = tracker.state_dict()
    tracker.observe(bad)
    tracker.predict(bad, 0.1)
    tracker.predict(1.0, bad)
    assert tracker.state_dict() == before
    assert tracker.gain == pytest.approx(2.0)


def test_tracker_state_round_trip():
    one, two = GainTracker(), GainTracker()
    feed(one, 2.0, 37, noise=0.01)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    feed(one, 2.0, 15, noise=0.01, seed=5)
    feed(two, 2.0, 15, noise=0.01, seed=5)
    assert one.state_dict() == two.state_dict()


def test_bad_tracker_settings():
    for settings in ({"window": 0}, {"memory": 1.5}, {"memory": math.nan}):
        with pytest.raises(ValueError, match=r"window must be at least 1 and memory in \[0, 1\]"):
            GainTracker(**settings)


def test_a_target_above_the_first_entropy_sets_the_scale():
    """A collapsed policy that is led back up is not steered bang-bang: 0.05 -> 0.4 nats."""
    loop, target = pi(), ramp(0.05, 0.4, 200)
    assert loop.update(0.05, 0.4, 0.45, 1) == 8.0
    loop = pi(proportional_gain=2.0, integral_gain=0.0)
    assert loop.update(0.05, 0.4, 0.45, 1) == pytest.approx(2 * (0.45 - 0.05) / 0.4)
    entropies, pressures = run(pi(), Plant(0.05), target, 300)
    wanted = np.array([target(step) for step in range(300)])
    assert np.abs(entropies - wanted)[50:].mean() < 0.015
    assert (np.abs(pressures) == 8).mean() < 0.3


@pytest.mark.parametrize("band", [(0.1, 0.2, 0.3), "0.1", True, None])
def test_a_band_of_another_form_is_refused(band):
    with pytest.raises(ValueError, match="half-width or a"):
        Band.of(band)
