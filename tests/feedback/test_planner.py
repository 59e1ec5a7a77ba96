"""The planner on a simulated process with known truth."""

import json
import math
import random
from dataclasses import dataclass

import numpy as np
import pytest

from entrocraft.feedback import Planner, Situation
from entrocraft.feedback.filter import EntropyFilter
from entrocraft.rollouts import StepInfo

LIMIT = 8.0


@dataclass
class Curve:
    """A response: half of what is kept carries a positive advantage."""

    total: object  # pressure -> summed effects; rising
    size: float = 1.0

    def at(self, pressure):
        return (0.5 * self.total(pressure),) * 2

    @property
    def ends(self):
        return self.at(-LIMIT), self.at(LIMIT)

    def solve(self, gains, wanted):
        def nats(pressure):
            return sum(gain * part for gain, part in zip(gains, self.at(pressure), strict=True))

        low, high = -LIMIT, LIMIT
        if not nats(low) < wanted < nats(high):
            end = high if wanted >= nats(high) else low
            return end, nats(end)
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if nats(middle) < wanted else (low, middle)
        return middle, wanted


def choose(planner, state, measured, stderr, target, place, curve):
    """Measure and plan; `target` is optimizer steps ahead -> nats per token."""
    state = planner.measure(state, measured, stderr, curve.size)
    pressure, metrics = planner.plan(state, Situation(measured, target, place, curve))
    return pressure, state, metrics


class Process:
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


@dataclass
class Run:
    """True entropy before each batch, what was chosen, and the state at the end."""

    entropies: np.ndarray
    chosen: list
    state: object

    @property
    def pressures(self):
        return np.array([pressure.value for pressure in self.chosen])

    def error(self, target, every=1, after=30):
        wanted = np.array([target(every * index) for index in range(len(self.entropies))])
        return float(np.abs(self.entropies - wanted)[after // every :].mean())


def run(process, target, steps, known=1.0, batch_steps=1, state=None, planner=None):
    """Steer a process.

    `known`: what the planner takes a unit of the process's push for.
    """
    planner = planner or Planner()
    state = planner.start() if state is None else state
    entropies, chosen = [], []
    for step in range(0, steps, batch_steps):
        entropies.append(process.entropy)
        place = StepInfo(step, batch_steps, 0.9)

        def total(pressure):
            return batch_steps * process.force(pressure) * known / process.push

        curve = Curve(total, size=10 * known * batch_steps)
        pressure, state, _ = choose(
            planner,
            state,
            process.measure(),
            process.noise,
            lambda ahead, step=step: target(step + ahead),
            place,
            curve,
        )
        spread = 0.3 * known * batch_steps
        state = state.predict(curve.at(pressure.value), spread, place)
        chosen.append(pressure)
        for _ in range(batch_steps):
            process.step(pressure.value)
    return Run(np.array(entropies), chosen, state)


def ramp(start, end, steps):
    return lambda step: start + (end - start) * min(step / steps, 1.0)


@pytest.mark.parametrize(("start", "end"), [(0.6, 0.4), (0.55, 0.75), (2.0, 1.6), (0.5, 0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_follows_ramps(start, end, seed):
    target = ramp(start, end, 400)
    assert run(Process(start, seed), target, 500).error(target, after=50) < 0.015
    free = Process(start, seed)
    entropies = []
    for _ in range(500):
        entropies.append(free.entropy)
        free.step(0.0)
    alone = Run(np.array(entropies), [], None)
    assert alone.error(target, after=50) > 0.1, "the process must need control"


@pytest.mark.parametrize("push", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("known", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_robust_to_speed_and_to_gain(push, known, seed):
    """Processes four times slower and faster, predictions wrong by four either way."""
    target = ramp(0.6, 0.5, 300)
    process = Process(0.6, seed, collapse=0.003 * push, push=0.002 * push)
    assert run(process, target, 300, known).error(target) < 0.015


@pytest.mark.parametrize(("start", "end"), [(0.6, 0.4), (0.55, 0.75), (0.5, 0.5)])
def test_it_leaves_no_offset(start, end):
    """The collapse is no part of the model: only the learnt drift can make up for it."""
    target = ramp(start, end, 1500)
    entropies = run(Process(start), target, 1500).entropies
    wanted = np.array([target(step) for step in range(1500)])
    assert abs(float((entropies - wanted)[300:1400].mean())) < 0.0015


def test_a_collapsed_policy_is_led_back_up():
    target = ramp(0.05, 0.4, 200)
    found = run(Process(0.05, noise=0.005), target, 300)
    assert found.error(target, after=50) < 0.015
    assert (np.abs(found.pressures) == LIMIT).mean() < 0.3


def test_four_steps_a_batch():
    target = ramp(0.6, 0.5, 300)
    found = run(Process(0.6), target, 300, batch_steps=4)
    assert found.error(target, every=4) < 0.015


@pytest.mark.parametrize(
    ("horizon", "batch_steps", "lands"),
    [(5, 1, 5), (1, 1, 1), (4, 2, 4), (4, 6, 6), (4, 4.5, 5), (4, 0.5, 4), (1, 8, 8)],
)
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_plan_is_what_lands_on_the_target(horizon, batch_steps, lands, momentum):
    """The smallest whole number of steps that a batch has, if that is beyond the horizon."""
    planner, asked = Planner(horizon), []

    def target(ahead):
        asked.append(ahead)
        return 0.51

    place = StepInfo(0, batch_steps, momentum)
    curve = Curve(lambda pressure: 0.4 * pressure)
    pressure, state, _ = choose(planner, planner.start(), 0.5, 0.01, target, place, curve)
    assert asked == [lands]
    assert not pressure.saturated
    # each step adds the same share of what a batch adds, and 1 - momentum of all arrives
    total = state.in_nats(curve.at(pressure.value)) / batch_steps
    entropy, pending = state.entropy, 0.0
    for _ in range(lands):
        pending += total
        entropy += (1 - momentum) * pending
        pending *= momentum
    assert entropy == pytest.approx(0.51)


def test_the_plan_counts_on_what_is_pending_and_on_the_drift():
    """Play the model on from a state with both, without noise: it lands all the same."""
    planner, place = Planner(horizon=5), StepInfo(0, 1, 0.8)
    state = planner.start()
    for measured in (0.5, 0.48, 0.46, 0.45):  # falls though nothing was done: a drift
        state = state.update(measured, 0.002, 1.0)
        state = state.predict((-0.1, -0.1), 0.02, place)
    assert state.pending < -1e-3
    assert state.drift < -1e-3
    goal = state.entropy - 0.005
    curve = Curve(lambda pressure: 0.5 * pressure)
    # a measurement that says nothing new leaves the state as it is
    pressure, state, _ = choose(
        planner, state, state.entropy, 1e6, lambda ahead: goal, place, curve
    )
    assert not pressure.saturated
    for _ in range(5):
        state = state.predict(curve.at(pressure.value), 0.0, place)
    assert state.entropy == pytest.approx(goal, abs=1e-9)


def reachable(total, target, state=None, planner=None, measured=0.5):
    """Choice for one batch whose every step arrives at once; gains are 0.025 nats a unit."""
    planner = planner or Planner(horizon=1)
    state, place = planner.start() if state is None else state, StepInfo(0, 1, 0.0)
    return choose(planner, state, measured, 0.01, lambda ahead: target, place, Curve(total))


def test_a_plan_out_of_reach_says_by_how_much():
    for target, sign in ((0.9, 1), (0.1, -1)):
        pressure, state, metrics = reachable(lambda pressure: 0.4 * pressure, target)
        assert state.gains == pytest.approx((0.025, 0.025))
        assert pressure.value == sign * LIMIT
        assert pressure.saturated
        assert pressure.shortfall == pytest.approx(sign * (0.4 - 0.08))
        assert metrics["entropy/estimate"] == 0.5
        assert metrics["entropy/reachable_up"] == pytest.approx(0.08)
        assert metrics["entropy/reachable_down"] == pytest.approx(-0.08)


def test_all_that_rejection_can_do_may_be_just_enough():
    planner, curve = Planner(horizon=1), Curve(lambda pressure: 0.4 * pressure)
    curve.solve = lambda gains, wanted: (LIMIT, wanted)
    place = StepInfo(0, 1, 0.0)
    pressure, _, _ = choose(planner, planner.start(), 0.5, 0.01, lambda ahead: 0.58, place, curve)
    assert pressure.value == LIMIT
    assert not pressure.saturated


def test_a_plan_within_reach_has_no_shortfall():
    pressure, _, _ = reachable(lambda pressure: 0.4 * pressure, 0.54)
    assert pressure.value == pytest.approx(4.0)
    assert not pressure.saturated
    assert pressure.shortfall == 0


@pytest.mark.parametrize("size", [0.0, math.inf])
def test_nothing_to_choose_from_asks_for_nothing(size):
    planner = Planner()
    curve = Curve(lambda pressure: 0.0, size)
    pressure, state, metrics = choose(
        planner, planner.start(), 0.5, 0.01, lambda ahead: 0.9, StepInfo(0), curve
    )
    assert pressure.value == pressure.shortfall == 0
    assert not pressure.saturated
    assert state.entropy == metrics["entropy/estimate"] == 0.5, "the measurement counts"


def test_it_recovers_at_once_from_an_unreachable_target():
    process = Process(0.6)
    found = run(process, lambda step: 50.0, 300)
    assert found.pressures[-1] == LIMIT
    assert found.chosen[-1].saturated
    hold = process.entropy
    found = run(process, lambda step: hold, 300, state=found.state)
    assert (np.abs(found.pressures[:5]) < LIMIT).any()
    assert found.entropies.max() < hold + 0.15
    assert abs(found.entropies[100:].mean() - hold) < 0.01


def test_state_round_trip_continues_bit_for_bit():
    target = ramp(0.6, 0.4, 100)
    whole = run(Process(0.6), target, 80).pressures
    process = Process(0.6)
    head = run(process, target, 40)
    text = json.dumps(head.state.state_dict(), allow_nan=False)
    state = EntropyFilter.from_state_dict(json.loads(text))
    tail = run(process, lambda step: target(step + 40), 40, state=state)
    assert np.array_equal(whole, np.concatenate([head.pressures, tail.pressures]))


def test_what_it_logs_of_a_batch_that_enters_the_update():
    place = StepInfo(0, 1, 0.8)
    _, state, _ = reachable(lambda pressure: 0.4 * pressure, 0.52)
    after = state.predict((0.4, -0.2), 0.0, place)
    assert state.report((0.4, -0.2), place) == {
        "entropy/chosen_change": pytest.approx(0.005),
        "entropy/predicted_change": pytest.approx(0.001),
        "entropy/drift": 0.0,
        "entropy/gain_positive": pytest.approx(0.025),
        "entropy/gain_negative": pytest.approx(0.025),
    }
    assert after.entropy == pytest.approx(0.501)
    assert after.pending == pytest.approx(0.004)
