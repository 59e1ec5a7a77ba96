"""The Kalman filter on linear processes with known truth."""

import json
import math
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from entrocraft.feedback.filter import EntropyFilter, arrival
from entrocraft.rollouts import StepInfo

PLAIN = StepInfo(0, momentum=0.0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_arrival_is_the_sum_over_single_steps(momentum, steps):
    pending, before, added, own = 1.0, 0.0, 0.0, 0.0
    for _ in range(steps):
        before += (1 - momentum) * pending
        pending *= momentum
        own += 1 / steps
        added += (1 - momentum) * own
        own *= momentum
    assert arrival(momentum, steps) == pytest.approx((before, added))


@pytest.mark.parametrize("steps", [0.25, 0.5])
def test_a_part_of_a_step_brings_a_part_of_what_is_pending(steps):
    before, added = arrival(0.9, steps)
    assert before == added == pytest.approx(1 - 0.9**steps)
    assert (1 - before) ** (1 / steps) == pytest.approx(0.9)


def follow(
    state=None,
    steps=300,
    gains=(1.0, 1.0),
    drift=0.0,
    noise=0.01,
    seed=0,
    momentum=0.9,
    stderr=None,
):
    """State at the end, and entropies before each step: true, measured and estimated.

    The first guess of the gains is 1 unit: 0.05 of the first entropy 1.0 over a size of 0.05.
    """
    stderr = noise if stderr is None else stderr
    generator = random.Random(seed)
    state = EntropyFilter() if state is None else state
    entropy, pending, seen = 1.0, 0.0, []
    for step in range(steps):
        measured = entropy + generator.gauss(0, noise)
        kept = (generator.gauss(0, 0.01), generator.gauss(0, 0.01))
        state = state.update(measured, stderr, size=0.05)
        seen.append((entropy, measured, state.entropy))
        pending += gains[0] * kept[0] + gains[1] * kept[1]
        entropy += (1 - momentum) * pending + drift
        pending *= momentum
        state = state.predict(kept, 0.003, StepInfo(step, momentum=momentum))
    return state, np.array(seen).T


def mean_error(wanted, seen):
    return float(np.abs(seen - wanted)[50:].mean())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_nearer_to_the_truth_than_the_measurement(momentum):
    _, (true, measured, estimated) = follow(momentum=momentum, noise=0.03)
    assert mean_error(true, estimated) < 0.6 * mean_error(true, measured)


@pytest.mark.parametrize("gains", [(1.0, 1.0), (4.0, 4.0), (0.25, 0.25), (2.0, 0.5)])
def test_gains_are_learnt_by_sign(gains):
    state, _ = follow(gains=gains, noise=0.001)
    for learnt, true in zip(state.gains, gains, strict=True):
        assert abs(math.log(learnt / true)) < math.log(1.6)


@pytest.mark.parametrize("drift", [-0.003, 0.002])
def test_a_constant_model_error_leaves_no_offset(drift):
    state, (true, _, estimated) = follow(drift=drift)
    assert abs(float((estimated - true)[50:].mean())) < 0.002
    assert state.drift == pytest.approx(drift, abs=0.003)


def test_what_is_pending_arrives_in_later_steps():
    state = EntropyFilter().update(1.0, 0.01, 0.05)
    assert state.gains == pytest.approx((1.0, 1.0))
    step, effects = StepInfo(0, momentum=0.8), (0.05, -0.01)
    assert state.predicted_change(effects, step) == pytest.approx(0.2 * 0.04)
    state = state.predict(effects, 0.0, step)
    assert state.entropy == pytest.approx(1.0 + 0.008)
    assert state.pending == pytest.approx(0.032)
    assert state.predicted_change((0.0, 0.0), step) == pytest.approx(0.2 * 0.032)
    state = state.predict((0.0, 0.0), 0.0, replace(step, optimizer_steps=3))
    assert state.entropy == pytest.approx(1.0 + 0.04 - 0.032 * 0.8**3)
    assert state.pending == pytest.approx(0.032 * 0.8**3)


def test_the_prediction_counts_every_step_of_the_batch():
    state, _ = follow(steps=60, drift=-0.004)
    effects, step = (0.02, -0.01), StepInfo(60, 4, 0.7)
    predicted = state.predicted_change(effects, step)
    assert state.predict(effects, 0.0, step).entropy == pytest.approx(state.entropy + predicted)
    at_rest = state.predicted_change((0.0, 0.0), step)
    before, _ = arrival(0.7, 4)
    assert at_rest == pytest.approx(before * state.pending + 4 * state.drift)


def test_a_wild_measurement_moves_it_little():
    state, _ = follow(steps=50)
    calm = state.update(state.entropy + 0.05, 0.01, 0.05)
    wild = state.update(state.entropy + 1e6, 0.01, 0.05)
    assert abs(wild.entropy - calm.entropy) < 0.05


def test_a_measurement_is_cut_at_four_standard_deviations():
    state, noise = follow(steps=50)[0], 0.01
    deviation = math.hypot(state.stderr, noise)

    def after(deviations):
        return state.update(state.entropy + deviations * deviation, noise, 0.05).entropy

    moved = [after(deviations) - state.entropy for deviations in (1, 2, 3.99, 4.01, 100, -100)]
    share = state.stderr**2 / deviation**2
    expected = np.array([1, 2, 3.99, 4, 4, -4]) * deviation * share
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


@pytest.mark.parametrize("stderr", [0.0, math.inf, math.nan])
def test_strange_standard_errors(stderr):
    _, (_, _, estimated) = follow(steps=50, stderr=stderr)
    assert np.isfinite(estimated).all()


def test_an_unknown_standard_error_is_a_tenth_of_the_first_entropy():
    assert EntropyFilter().update(0.8, math.inf, 1.0).stderr == pytest.approx(0.08)
    state, _ = follow(steps=20)
    # of the first one, whatever the present one is
    tenth = 0.1 * state.first
    known, unknown = (state.update(0.5, error, 0.05) for error in (tenth, math.nan))
    assert same(known, unknown)


def test_no_measurement_is_believed_to_more_than_a_millionth_of_the_first_entropy():
    state = EntropyFilter().update(0.5, 0.0, 1.0)
    assert state.stderr == pytest.approx(0.5e-6)
    state = state.predict((0.1, -0.2), 0.3, PLAIN)
    surer, less_sure, change = 0.5e-6, 4e-6, 1e-6
    state = state.update_change(0.0, 0.0, trained=False)
    state = state.update_change(change, less_sure, trained=False)
    # two measurements of one change, weighed by their variances; little was known before
    share = surer**2 / (surer**2 + less_sure**2 + (0.1 * change) ** 2)
    _, *_, bias, before = state.mean.tolist()
    assert state.entropy - before + bias == pytest.approx(share * change, rel=1e-3)


@pytest.mark.parametrize("gain", [8.0, 50.0, 0.05, -1.0])
def test_gains_stay_within_their_bound(gain, monkeypatch):
    monkeypatch.setattr("entrocraft.feedback.filter._GAIN_BOUND", 3.0)
    state = None
    for seed in range(20):
        state, _ = follow(state, gains=(gain, gain), steps=10, seed=seed)
        first = state.first_gain
        assert first is not None
        assert min(state.gains) > first / 3 - 1e-9
        assert max(state.gains) < first * 3.0 + 1e-9
    monkeypatch.setattr("entrocraft.feedback.filter._GAIN_BOUND", 1e9)
    free, _ = follow(gains=(gain, gain))
    assert not all(1 / 3 < learnt < 3 for learnt in free.gains), "the bound must have been needed"


@pytest.mark.parametrize(("direction", "factor"), [(1, 30.0), (-1, 1 / 30)])
def test_gains_are_learnt_up_to_thirty_times_the_first_guess(direction, factor, monkeypatch):
    monkeypatch.setattr("entrocraft.feedback.filter._GAIN_WALK", 0.5)
    state, largest, least = EntropyFilter().update(2.0, 0.001, 0.1), 1.0, 1.0
    for step in range(60):
        effect = 0.01 * (-1) ** step  # up and down: neither drift nor pending explain it
        state = state.predict((effect, 0.0), 0.0, PLAIN)
        state = state.update(2.0 + 50 * direction * (effect > 0) * 0.01, 0.001, 0.1)
        largest, least = max(largest, state.gains[0]), min(least, state.gains[0])
    assert (largest if direction > 0 else least) == pytest.approx(factor * state.first_gain)


def test_the_first_gain_is_a_share_of_the_entropy(monkeypatch):
    monkeypatch.setattr("entrocraft.feedback.filter._REACHABLE", 0.1)
    assert EntropyFilter().gains == (0.0, 0.0)
    state = EntropyFilter()
    for size in (0.0, math.inf, math.nan, 5e-324):
        state = state.update(0.5, 0.01, size)
        assert state.gains == (0.0, 0.0), "no size to learn from"
    state = state.update(0.5, 0.01, size=1e-7)
    assert state.in_nats((1e-7, 0.0)) == pytest.approx(0.1 * 0.5)
    assert state.in_nats((0.0, -1e-7)) == pytest.approx(-0.1 * 0.5)
    again = state.update(0.5, 0.01, size=1.0)
    assert again.gains == pytest.approx(state.gains), "it is guessed once"


def test_a_batch_without_effects_teaches_nothing_of_the_gains():
    state = EntropyFilter().update(0.5, 0.01, size=0.0)
    state = state.predict((0.0, 0.0), 0.0, StepInfo(0))
    assert state.gains == (0.0, 0.0)
    assert not bool(state.covariance[3:5].any())
    assert state.entropy == 0.5
    known = state.update(0.5, 0.01, size=0.05)
    assert known.gains == pytest.approx((0.5, 0.5))
    assert known.covariance[3, 3].sqrt() == pytest.approx(1.2 * 0.5)


@pytest.mark.parametrize("effects", [(0.1, -0.2), (math.inf, 0.0)])
def test_before_the_first_measurement_nothing_is_known(effects):
    state = EntropyFilter().predict(effects, 0.1, PLAIN)
    state = state.update_change(0.0, 0.0)
    assert not bool(state.mean.any() | state.covariance.any())
    after, first = (one.update(0.5, 0.01, 0.05) for one in (state, EntropyFilter()))
    assert torch.equal(after.mean, first.mean)
    assert torch.equal(after.covariance, first.covariance)


def test_the_estimate_is_never_below_0():
    state = EntropyFilter().update(0.01, 0.005, 0.05)
    for _ in range(20):
        state = state.predict((0.0, -0.1), 0.01, PLAIN)
        state = state.update(0.0, 0.005, 0.05)
        assert 0 <= state.entropy < 0.02


@pytest.mark.parametrize(
    "spread",
    [
        0.003,
        1e300,
    ],
)
def test_numbers_beyond_float64_start_it_afresh(spread):
    state, _ = follow(steps=20)
    broken = state.predict((1e200, -1e200), spread, PLAIN)
    for value in (broken.entropy, broken.stderr, broken.drift, broken.pending):
        assert math.isfinite(value)
    assert broken.gains == (0.0, 0.0)
    assert broken.stderr == pytest.approx(0.1 * state.first)
    assert broken.entropy == state.first, "nothing else is known"
    back = broken.update(0.9, 0.01, 0.05)
    assert back.entropy == pytest.approx(0.9, abs=0.05)
    assert min(back.gains) > 0


def test_a_measurement_that_overflows_starts_it_afresh_where_it_was_measured():
    state, _ = follow(steps=20)
    vast = state.predict((0.0, 0.0), 1e150, PLAIN)
    assert 1e140 < vast.stderr < math.inf, "so far it is only very unsure"
    back = vast.update(0.7, 0.01, 0.05)
    assert back.entropy == pytest.approx(0.7, abs=0.01)
    assert back.stderr == pytest.approx(0.1 * state.first)


# ---------------------------------------------------------------- state


def same(one, two):
    return json.dumps(one.state_dict()) == json.dumps(two.state_dict())


def test_states_are_never_changed_in_place():
    state, _ = follow(steps=10)
    before = json.dumps(state.state_dict())
    calls = [
        lambda: state.update(5.0, 0.01, 0.05),
        lambda: state.predict((0.1, 0.2), 0.3, PLAIN),
        lambda: state.update_change(0.1, 0.01, trained=False),
    ]
    for call in calls:
        one, two = call(), call()
        assert same(one, two)
        assert not same(one, state)
        assert json.dumps(state.state_dict()) == before
    start = EntropyFilter()
    start.update(0.5, 0.01, 0.05)
    assert same(start, EntropyFilter())
    assert EntropyFilter().entropy == start.entropy == 0, "a default must not be shared"


def test_state_round_trip_continues_bit_for_bit():
    state, _ = follow(steps=37)
    text = json.dumps(state.state_dict(), allow_nan=False)
    loaded = EntropyFilter.from_state_dict(json.loads(text))
    one, two = (follow(start, steps=15, seed=5)[0] for start in (state, loaded))
    assert same(one, two)


def test_a_fresh_state_is_serializable_too():
    text = json.dumps(EntropyFilter().state_dict(), allow_nan=False)
    assert same(EntropyFilter.from_state_dict(json.loads(text)), EntropyFilter())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.0]}, r"expected numbers of shape \(8,\), got \(1,\)"),
        ({"mean": [math.nan] * 8}, "expected finite numbers"),
        ({"mean": ["x"] * 8}, r"expected numbers of shape \(8,\)"),
        ({"mean": [10**400] * 8}, r"expected numbers of shape \(8,\)"),
        ({"mean": None}, r"expected numbers of shape \(8,\)"),
        ({"mean": {}}, r"expected numbers of shape \(8,\)"),
        ({"covariance": [[0.0] * 8] * 7}, r"expected numbers of shape \(8, 8\), got \(7, 8\)"),
        ({"covariance": [[0.0] * 8] * 7 + [[0.0]]}, r"expected numbers of shape \(8, 8\)"),
        ({"covariance": [[math.inf] * 8] * 8}, "expected finite numbers"),
        ({"first": math.nan}, "first is nan; it has to be a number from 1e-300 to"),
        ({"first_gain": math.inf}, "first_gain is inf; it has to be a number"),
        ({"steps": 10**400}, "steps is 1000000"),
        ({"steps": [1.0]}, r"steps is \[1.0\]; it has to be a number"),
        ({"variance": 0.0}, "variance is 0.0; it has to be a number from 1e-300"),
        ({"first_gain": -1.0}, "first_gain is -1.0; it has to be"),
        ({"first": "half"}, "first is 'half'; it has to be a number"),
        ({"first": "0.5"}, "first is '0.5'; it has to be a number"),
        ({"first": True}, "first is True; it has to be a number"),
    ],
    ids=str,
)
def test_a_broken_state_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EntropyFilter.from_state_dict(EntropyFilter().state_dict() | changes)


# ---------------------------------------------------------------- measured changes


class LeastSquares:
    """The filter's other derivation: least squares over all that is known and was measured.

    The unknowns are the state before the first batch and the noise of every prediction; each row of
    `now` says how one part of the present state depends on them, to first order in the gains.
    """

    parts = ("entropy", "pending", "drift", "positive", "negative", "trained", "left_out")

    def __init__(self, entropy, stderr, size):
        gain = 0.05 * entropy / size
        spreads = (stderr, 0, 0.003 * entropy, 1.2 * gain, 1.2 * gain)
        biases = (0.002 * entropy, 0.4 * 0.002 * entropy)
        self.first, self.gain = entropy, gain
        self.mean = np.array([entropy, 0, 0, gain, gain, 0, 0], dtype=float)
        self.variance = np.square([*spreads, *biases])
        self.now = np.eye(7)
        self.before = self.now[0].copy()
        self.rows, self.values, self.errors = [], [], []

    def value(self, row):
        return self.solve()[0] @ row

    def solve(self):
        """Mean and covariance of the unknowns."""
        covariance, mean = np.diag(self.variance), self.mean
        if self.rows:
            rows, noise = np.array(self.rows), np.diag(np.square(self.errors))
            rows = np.pad(rows, ((0, 0), (0, len(mean) - rows.shape[1])))
            gain = covariance @ rows.T @ np.linalg.inv(rows @ covariance @ rows.T + noise)
            mean = mean + gain @ (np.array(self.values) - rows @ mean)
            covariance = covariance - gain @ rows @ covariance
        return mean, covariance

    def predict(self, effects, spread, steps, momentum):
        positive, negative = (self.value(self.now[part]) for part in (3, 4))
        unexplained = 0.5 * (positive + negative) * spread
        walks = np.array([0.003, 0.02, 0.02, 0.0002, 0.4 * 0.0002])
        walks *= (self.first, self.gain, self.gain, self.first, self.first)
        self.mean = np.pad(self.mean, (0, 6))
        self.variance = np.concatenate([self.variance, [unexplained**2], steps * walks**2])
        now = np.pad(self.now, ((0, 0), (0, 6)))
        self.before = now[0].copy()
        entropy, pending, drift = now[0], now[1], now[2]
        added = effects[0] * now[3] + effects[1] * now[4]
        added[-6] += 1.0
        entropy, pending = entropy + steps * drift, pending.copy()
        for _ in range(steps):  # one optimizer step after the other
            pending = pending + added / steps
            entropy = entropy + (1 - momentum) * pending
            pending = momentum * pending
        now[0], now[1] = entropy, pending
        for index, part in enumerate((2, 3, 4, 5, 6)):
            now[part, -5 + index] += 1.0
        self.now, self.steps = now, steps

    def measure(self, row, value, error):
        self.rows = [np.pad(old, (0, len(row) - len(old))) for old in self.rows]
        self.rows.append(row)
        self.values.append(value)
        self.errors.append(error)

    def measure_change(self, value, stderr, trained):
        row = self.now[0] - self.before + self.steps * self.now[5 if trained else 6]
        self.measure(row, value, math.hypot(stderr, 0.1 * value))


def agree(state, reference):
    mean, covariance = reference.solve()
    found = (state.entropy, state.pending, state.drift, *state.gains)
    np.testing.assert_allclose(found, reference.now[:5] @ mean, rtol=1e-9, atol=1e-11)
    stderr = math.sqrt(reference.now[0] @ covariance @ reference.now[0])
    assert state.stderr == pytest.approx(stderr, rel=1e-9)


def test_it_is_least_squares_over_all_that_was_measured():
    reference = LeastSquares(0.5, 0.02, 1.0)
    state = EntropyFilter().update(0.5, 0.02, 1.0)
    variance = 0.02**2
    agree(state, reference)
    for number, (steps, momentum) in enumerate([(1, 0.9), (4, 0.9), (2, 0.0)]):
        effects = (0.2 + 0.1 * number, -0.3)
        state = state.predict(effects, 0.25, StepInfo(number, steps, momentum))
        reference.predict(effects, 0.25, steps, momentum)
        agree(state, reference)
        for change, stderr, trained in ((-0.004, 0.002, False), (-0.006, 0.001, True)):
            state = state.update_change(change, stderr, trained)
            reference.measure_change(change, stderr, trained)
            agree(state, reference)
        measured = 0.48 - 0.01 * number
        state = state.update(measured, 0.015, 1.0)
        variance = 0.9 * variance + 0.1 * 0.015**2
        reference.measure(reference.now[0], measured, math.sqrt(variance))
        agree(state, reference)


def test_batches_of_more_entropy_count_as_much_although_their_errors_are_larger():
    generator = random.Random(5)
    state, estimates = EntropyFilter(), []
    for _ in range(600):
        noise = generator.gauss(0, 0.02)
        stderr = 0.02 * math.exp(20 * noise)
        state = state.update(0.5 + noise, stderr, 1.0).predict((0.5, -0.5), 0.02, PLAIN)
        estimates.append(state.entropy)
    assert statistics.fmean(estimates[100:]) == pytest.approx(0.5, abs=0.003)


def still(state, changes, steps=40):
    """State after batches that are thought to move nothing, with these measured changes."""
    for _ in range(steps):
        state = state.predict((0.5, -0.5), 0.1, PLAIN)
        for change, stderr, trained in changes:
            state = state.update_change(change, stderr, trained)
    return state


def test_two_kinds_of_changes_tell_the_bias_soon():
    start = EntropyFilter().update(0.5, 0.02, 1.0)
    both = still(start, [(0.0, 0.003, False), (-0.001, 0.002, True)])
    assert abs(both.entropy - 0.5) < 0.012
    trusting = still(start, [(-0.001, 0.002, True)])
    assert trusting.entropy < 0.47


def test_changes_on_prompts_left_out_are_believed_more():
    start = EntropyFilter().update(0.5, 0.02, 1.0)
    ends = {}
    for trained in (True, False):
        state = start
        for _ in range(60):
            state = state.predict((0.0, 0.0), 0.0, PLAIN)
            state = state.update_change(-0.002, 0.0002, trained)
            state = state.update(0.5, 0.02, 1.0)
        ends[trained] = state.entropy
    assert ends[False] < ends[True] - 0.001
    one = start.predict((0.0, 0.0), 0.0, PLAIN)
    sure, unsure = (one.update_change(-0.002, 0.0002, on).stderr for on in (False, True))
    assert sure < unsure


def test_a_constant_bias_of_measured_changes_is_found_out():
    truth, state = 0.5, EntropyFilter()
    generator = torch.Generator().manual_seed(0)
    errors = []
    for step in range(600):
        noise = float(torch.randn((), generator=generator))
        state = state.update(truth + 0.02 * noise, 0.02, 1.0)
        errors.append(state.entropy - truth)
        state = state.predict((0.5, -0.5), 0.1, PLAIN)
        change = 0.004 * math.sin(step / 5)
        truth += change
        state = state.update_change(change - 0.001, 0.001)
    assert abs(np.mean(errors[300:])) < 0.003
    assert np.mean(errors[:30]) < -0.003, "at first it has to be believed"


def test_measured_changes_carry_the_estimate_where_measurements_are_blunt():
    truth, sharp, blunt = 0.5, EntropyFilter(), EntropyFilter()
    generator = torch.Generator().manual_seed(0)
    errors = {"sharp": 0.0, "blunt": 0.0}
    for step in range(120):
        measured = truth + 0.02 * float(torch.randn((), generator=generator))
        sharp, blunt = (state.update(measured, 0.02, 1.0) for state in (sharp, blunt))
        if step > 40:
            errors["sharp"] += abs(sharp.entropy - truth)
            errors["blunt"] += abs(blunt.entropy - truth)
        sharp, blunt = (s.predict((0.5, -0.5), 0.1, PLAIN) for s in (sharp, blunt))
        change = 0.004 * math.sin(step / 5)
        truth += change
        sharp = sharp.update_change(change, 0.001, trained=False)
    assert errors["sharp"] < 0.6 * errors["blunt"]


@pytest.mark.parametrize(
    ("change", "stderr"), [(math.nan, 0.1), (math.inf, 0.1), (0.1, math.inf), (0.1, math.nan)]
)
def test_a_change_of_unknown_error_teaches_nothing(change, stderr):
    state = EntropyFilter().update(0.5, 0.02, 1.0)
    state = state.predict((0.3, -0.1), 0.2, StepInfo(0))
    assert same(state.update_change(change, stderr), state)


def test_a_change_before_any_update_teaches_nothing():
    state = EntropyFilter().update(0.5, 0.02, 1.0)
    for early in (EntropyFilter(), state):
        assert same(early.update_change(0.1, 0.01), early)


def test_changes_are_of_prompts_that_were_trained_on_unless_told_otherwise():
    state = EntropyFilter().update(0.5, 0.02, 1.0).predict((0.3, -0.1), 0.2, PLAIN)
    found = state.update_change(-0.01, 0.001)
    assert same(found, state.update_change(-0.01, 0.001, trained=True))
    assert not same(found, state.update_change(-0.01, 0.001, trained=False))
