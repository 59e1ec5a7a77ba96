"""Feedback on a simulated plant with known truth, and its bookkeeping."""

import json
import math
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrocraft.feedback import (
    Band,
    Deadband,
    Planner,
    ProportionalIntegral,
    Situation,
    get_feedback,
)
from entrocraft.feedback.filter import EntropyFilter


class Plant:
    """Entropy integrates a push that momentum (beta 0.9) delays; a collapse pulls it down."""

    def __init__(self, start, seed=0, collapse=0.003, noise=0.02, push=0.002):
        self.entropy, self.velocity = start, 0.0
        self.collapse, self.noise, self.push = collapse, noise, push
        self.random = random.Random(seed)

    def measure(self):
        return self.entropy + self.random.gauss(0, self.noise)

    def force(self, pressure):
        # what rejection can do is bounded, and less than linear in the pressure
        return self.push * 5 * math.tanh(pressure / 5)

    def step(self, pressure):
        force = self.force(pressure) - self.collapse
        self.velocity = 0.9 * self.velocity + 0.1 * force
        self.entropy = max(self.entropy + self.velocity, 0.0)


def update(loop, measured, target, ahead=None, steps=1):
    """Pressure of a loop that looks at errors alone."""
    return loop.pressure(
        Situation(
            measured=measured,
            target=lambda step: target if step == 0 or ahead is None else ahead,
            steps=steps,
            momentum=0.9,
            observer=EntropyFilter(),
            reach=lambda pressure: (0.0, 0.0),
        )
    )


def run(loop, plant, target, steps, known=1.0, batch_steps=1, observer=None):
    """True entropy before each batch, and the pressures.

    `known`: what the loop takes a unit of the plant's push for.
    """
    observer = EntropyFilter() if observer is None else observer
    entropies, pressures = [], []
    for step in range(0, steps, batch_steps):
        measured = plant.measure()
        entropies.append(plant.entropy)

        def reach(pressure):
            # half of what is kept carries a positive advantage
            total = batch_steps * plant.force(pressure) * known / plant.push
            return 0.5 * total, 0.5 * total

        observer.observe(measured, plant.noise, 10 * known * batch_steps)
        pressures.append(
            loop.pressure(
                Situation(
                    measured=measured,
                    target=lambda ahead, step=step: target(step + ahead),
                    steps=batch_steps,
                    momentum=0.9,
                    observer=observer,
                    reach=reach,
                )
            )
        )
        spread = 0.3 * known * batch_steps
        observer.commit(reach(pressures[-1]), spread, batch_steps, 0.9)
        for _ in range(batch_steps):
            plant.step(pressures[-1])
    return np.array(entropies), np.array(pressures)


def pi(**changes):
    """Return a loop with gains of its own: the defaults are free to change."""
    settings = {"proportional_gain": 40.0, "integral_gain": 1.0, "smoothing": 0.5, "lead": 2}
    return ProportionalIntegral(**(settings | {"limit": 8.0} | changes))


def ramp(start, end, steps):
    return lambda step: start + (end - start) * min(step / steps, 1.0)


@pytest.mark.parametrize("make", [pi, ProportionalIntegral, Planner])
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
    update(loop, 1.0, 1.0, 1.0, 1)
    before = loop.state_dict()["integral"]
    for _ in range(100):
        assert update(loop, 1.0, 3.0, 3.0, 1) == 8.0
    assert loop.state_dict()["integral"] == before
    assert update(loop, 1.0, 0.9, 0.9, 1) == pytest.approx(-4.0 - 0.1)


def test_the_integral_never_outgrows_the_limit():
    loop = pi(proportional_gain=0.0, integral_gain=5.7, smoothing=0.0, lead=0)
    pressures = [update(loop, 1.0, 1.9, 1.9, 1) for _ in range(10)]
    np.testing.assert_allclose(pressures[:3], [2.7, 5.4, 8.0])
    assert loop.state_dict()["integral"] <= 8.0
    assert update(loop, 1.0, 0.1, 0.1, 1) < 6


def test_pressure_by_hand():
    loop = pi(proportional_gain=10, integral_gain=2, smoothing=0.75, lead=3, limit=100)
    # H_0 0.5; error ahead (0.6 - 0.5) / 0.5 = 0.2; integral 2 * 1 * (0.45 - 0.5) / 0.5
    assert update(loop, 0.5, 0.45, 0.6, 1) == pytest.approx(10 * 0.2 - 0.2)
    assert loop.state_dict()["estimate"] == 0.5
    # filter 0.75 * 0.5 + 0.25 * 0.9 = 0.6; error -0.1 / 0.5 = -0.2; integral -0.2 - 2 * 4 * 1.2
    assert update(loop, 0.9, 0.3, 0.5, 4) == pytest.approx(-2 - 0.2 - 9.6)
    assert loop.state_dict()["estimate"] == pytest.approx(0.6)
    assert not loop.saturated


def test_gains_are_pure_numbers():
    small, large = pi(), pi()
    for measured, target in ((0.3, 0.31), (0.29, 0.33), (0.32, 0.2)):
        p = update(small, measured, target, target, 1)
        assert update(large, 10 * measured, 10 * target, 10 * target, 1) == pytest.approx(p)


def test_a_policy_without_entropy_is_no_division_by_zero():
    loop = pi()
    assert math.isfinite(update(loop, 0.0, 0.0, 0.0, 1))
    assert update(loop, 0.0, 0.5, 0.5, 1) == 8.0


@pytest.mark.parametrize("make", [pi, ProportionalIntegral, Planner, lambda: Deadband(0.02)])
def test_state_round_trip_continues_bit_for_bit(make):
    target = ramp(0.6, 0.4, 100)
    whole = run(make(), Plant(0.6), target, 80)[1]
    plant, first, observer = Plant(0.6), make(), EntropyFilter()
    head = run(first, plant, target, 40, observer=observer)[1]
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert second.saturated == first.saturated
    tail = run(second, plant, lambda step: target(step + 40), 40, observer=observer)[1]
    assert np.array_equal(whole, np.concatenate([head, tail]))


def test_a_fresh_state_is_serializable_too():
    for loop in (pi(), Deadband(), Planner()):
        loop.load_state_dict(json.loads(json.dumps(loop.state_dict())))
        assert not loop.saturated


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
        assert abs(update(loop, measured, target, target, steps)) <= 8.0
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
    relay = Deadband((-0.25, 0.125))
    for measured, expected in ((0.25, 0), (0.2499, 1), (0.625, 0), (0.6251, -1), (0.5, 0)):
        assert update(relay, measured, 0.5, 9.0, 1) == expected
        assert relay.saturated == (expected != 0)


def test_a_band_without_width_is_a_switch_at_the_target():
    relay = Deadband(0)
    assert [update(relay, h, 0.5, 0.5, 1) for h in (0.4999, 0.5, 0.5001)] == [1, 0, -1]


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
        Deadband(band)


def test_band_from_half_width_and_list():
    assert Band.of(0.05) == Band(-0.05, 0.05) == Band.of([-0.05, 0.05])


def test_a_target_above_the_first_entropy_sets_the_scale():
    """A collapsed policy that is led back up is not steered bang-bang: 0.05 -> 0.4 nats."""
    loop, target = pi(), ramp(0.05, 0.4, 200)
    assert update(loop, 0.05, 0.4, 0.45, 1) == 8.0
    loop = pi(proportional_gain=2.0, integral_gain=0.0)
    assert update(loop, 0.05, 0.4, 0.45, 1) == pytest.approx(2 * (0.45 - 0.05) / 0.4)
    entropies, pressures = run(pi(), Plant(0.05), target, 300)
    wanted = np.array([target(step) for step in range(300)])
    assert np.abs(entropies - wanted)[50:].mean() < 0.015
    assert (np.abs(pressures) == 8).mean() < 0.3


@pytest.mark.parametrize("band", [(0.1, 0.2, 0.3), "0.1", True, None])
def test_a_band_of_another_form_is_refused(band):
    with pytest.raises(ValueError, match="half-width or a"):
        Band.of(band)


# ---------------------------------------------------------------- planning


def error(entropies, target, every=1, after=30):
    wanted = np.array([target(every * index) for index in range(len(entropies))])
    return float(np.abs(entropies - wanted)[after // every :].mean())


@pytest.mark.parametrize("push", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("known", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_planning_is_robust_to_speed_and_to_gain(push, known, seed):
    """Plants four times slower and faster, predictions wrong by four either way."""
    target = ramp(0.6, 0.5, 300)
    plant = Plant(0.6, seed, collapse=0.003 * push, push=0.002 * push)
    entropies, _ = run(Planner(), plant, target, 300, known)
    assert error(entropies, target) < 0.015


@pytest.mark.parametrize(("start", "end"), [(0.6, 0.4), (0.55, 0.75), (0.5, 0.5)])
def test_planning_leaves_no_offset(start, end):
    """The collapse is no part of the model: only the learnt drift can make up for it."""
    target = ramp(start, end, 1500)
    entropies, _ = run(Planner(), Plant(start), target, 1500)
    wanted = np.array([target(step) for step in range(1500)])
    assert abs(float((entropies - wanted)[300:1400].mean())) < 0.0015


def test_planning_with_four_steps_a_batch():
    target = ramp(0.6, 0.5, 300)
    entropies, _ = run(Planner(), Plant(0.6), target, 300, batch_steps=4)
    assert error(entropies, target, every=4) < 0.015


def test_the_plan_is_what_lands_on_the_target():
    """Plan, then play the model forward without noise: the target is met at the horizon."""
    observer, loop = EntropyFilter(gain=1.0), Planner(horizon=5)
    observer.observe(0.5, 0.01, 1.0, pending=-0.02)
    situation = Situation(
        measured=0.5,
        target=lambda step: 0.52,
        steps=1,
        momentum=0.8,
        observer=observer,
        reach=lambda pressure: (0.01 * pressure, 0.0),
    )
    pressure = loop.pressure(situation)
    assert not loop.saturated
    for _ in range(5):
        observer.commit(situation.reach(pressure), 0.0, 1, 0.8)
    assert observer.entropy == pytest.approx(0.52)


def test_a_plan_out_of_reach_says_by_how_much():
    observer, loop = EntropyFilter(gain=1.0), Planner(horizon=1)
    observer.observe(0.5, 0.01, 1.0)
    for target, sign in ((0.9, 1), (0.1, -1)):
        pressure = loop.pressure(
            Situation(
                measured=0.5,
                target=lambda step, target=target: target,
                steps=1,
                momentum=0.0,
                observer=observer,
                reach=lambda pressure: (0.01 * pressure, 0.0),
            )
        )
        assert pressure == sign * 8
        assert loop.saturated
        assert loop.shortfall == pytest.approx(sign * (0.4 - 0.08))


def test_planning_recovers_at_once_from_an_unreachable_target():
    plant, loop, observer = Plant(0.6), Planner(), EntropyFilter()
    _, pressures = run(loop, plant, lambda step: 50.0, 300, observer=observer)
    assert pressures[-1] == 8.0
    assert loop.saturated
    hold = plant.entropy
    entropies, pressures = run(loop, plant, lambda step: hold, 300, observer=observer)
    assert (np.abs(pressures[:5]) < 8).any()
    assert entropies.max() < hold + 0.15
    assert abs(entropies[100:].mean() - hold) < 0.01


def test_loops_by_name():
    assert isinstance(get_feedback("plan"), Planner)
    assert isinstance(get_feedback("pi"), ProportionalIntegral)
    own = Planner(9)
    assert get_feedback(own) is own
    with pytest.raises(ValueError, match="unknown feedback 'pid'; choose one of plan, pi"):
        get_feedback("pid")
    with pytest.raises(ValueError, match="horizon must be at least 1 optimizer step, got 0"):
        Planner(0)
