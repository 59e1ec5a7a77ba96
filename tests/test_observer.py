"""The observer on linear plants with known truth."""

import json
import math
import random

import numpy as np
import pytest
import torch

from entrocraft.observer import EntropyObserver, arrival


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_arrival_is_the_sum_over_single_steps(momentum, steps):
    underway, before, added, own = 1.0, 0.0, 0.0, 0.0
    for _ in range(steps):
        before += (1 - momentum) * underway
        underway *= momentum
        own += 1 / steps
        added += (1 - momentum) * own
        own *= momentum
    assert arrival(momentum, steps) == pytest.approx((before, added))


def follow(
    observer, steps=300, gains=(1.0, 1.0), drift=0.0, momentum=0.9, noise=0.01, seed=0, stderr=None
):
    """Entropies before each step: true, measured and believed."""
    generator = random.Random(seed)
    entropy, underway, seen = 1.0, 0.0, []
    for _ in range(steps):
        measured = entropy + generator.gauss(0, noise)
        kept = (generator.gauss(0, 0.01), generator.gauss(0, 0.01))
        observer.observe(measured, noise if stderr is None else stderr, size=0.05)
        seen.append((entropy, measured, observer.entropy))
        underway += gains[0] * kept[0] + gains[1] * kept[1]
        entropy += (1 - momentum) * underway + drift
        underway *= momentum
        observer.commit(kept, 0.003, 1, momentum)
    return np.array(seen).T


def mean_error(wanted, seen):
    return float(np.abs(seen - wanted)[50:].mean())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_nearer_to_the_truth_than_the_measurement(momentum):
    true, measured, believed = follow(EntropyObserver(gain=1.0), momentum=momentum, noise=0.03)
    assert mean_error(true, believed) < 0.6 * mean_error(true, measured)


@pytest.mark.parametrize("gains", [(1.0, 1.0), (4.0, 4.0), (0.25, 0.25), (2.0, 0.5)])
def test_gains_are_learnt_by_sign(gains):
    observer = EntropyObserver(gain=1.0)
    follow(observer, gains=gains, noise=0.001)
    for learnt, true in zip(observer.gains, gains, strict=True):
        assert abs(math.log(learnt / true)) < math.log(1.6)


@pytest.mark.parametrize("drift", [-0.003, 0.002])
def test_a_constant_model_error_leaves_no_offset(drift):
    observer = EntropyObserver(gain=1.0)
    true, _, believed = follow(observer, drift=drift)
    assert abs(float((believed - true)[50:].mean())) < 0.002
    assert observer.drift == pytest.approx(drift, abs=0.003)


def test_what_is_known_to_be_under_way_is_taken_over():
    observer = EntropyObserver(gain=1.0)
    observer.observe(1.0, 0.01, 0.05, underway=-0.2)
    assert observer.underway == -0.2
    assert observer.predict((0.05, -0.01), 1, 0.9) == pytest.approx(0.1 * (-0.2 + 0.04))
    observer.commit((0.05, -0.01), 0.0, 1, 0.9)
    assert observer.entropy == pytest.approx(1.0 - 0.016)
    assert observer.underway == pytest.approx(0.9 * -0.16)


def test_a_wild_measurement_moves_it_little():
    calm, wild = EntropyObserver(gain=1.0), EntropyObserver(gain=1.0)
    for observer in (calm, wild):
        follow(observer, steps=50)
    spread = 0.05
    calm.observe(calm.entropy + spread, 0.01, 0.05)
    wild.observe(wild.entropy + 1e6, 0.01, 0.05)
    assert abs(wild.entropy - calm.entropy) < spread


@pytest.mark.parametrize("stderr", [0.0, math.inf, math.nan])
def test_strange_standard_errors(stderr):
    observer = EntropyObserver()
    believed = follow(observer, steps=50, stderr=stderr)[2]
    assert np.isfinite(believed).all()


@pytest.mark.parametrize("gain", [8.0, 50.0, 0.05, -1.0])
def test_gains_stay_within_their_bound(gain):
    observer = EntropyObserver(gain=1.0, gain_bound=3.0)
    for seed in range(20):
        follow(observer, gains=(gain, gain), steps=10, seed=seed)
        assert min(observer.gains) > 1 / 3 - 1e-9
        assert max(observer.gains) < 3.0 + 1e-9
    free = EntropyObserver(gain=1.0, gain_bound=1e9)
    follow(free, gains=(gain, gain))
    assert not all(1 / 3 < learnt < 3 for learnt in free.gains), "the bound must have been needed"


def test_without_a_unit_the_first_gain_is_a_share_of_the_entropy():
    observer = EntropyObserver(authority=0.1)
    assert observer.gains == (0.0, 0.0)
    observer.observe(0.5, 0.01, size=0.0)
    assert observer.gains == (0.0, 0.0), "effects of 0 have no size to learn from"
    observer.observe(0.5, 0.01, size=1e-7)
    assert observer.in_nats((1e-7, 0.0)) == pytest.approx(0.1 * 0.5)


def test_state_round_trip_continues_bit_for_bit():
    one, two = EntropyObserver(), EntropyObserver()
    follow(one, steps=37)
    two.load_state_dict(json.loads(json.dumps(one.state_dict(), allow_nan=False)))
    follow(one, steps=15, seed=5)
    follow(two, steps=15, seed=5)
    assert one.state_dict() == two.state_dict()


def test_a_state_of_another_shape_is_refused():
    observer = EntropyObserver()
    state = observer.state_dict() | {"mean": [0.0]}
    with pytest.raises(ValueError, match=r"expected numbers of shape \(6,\), got \(1,\)"):
        observer.load_state_dict(state)
    assert torch.equal(observer._mean, torch.zeros(6, dtype=torch.float64))


# ---------------------------------------------------------------- measured changes


@pytest.mark.parametrize("biased", [False, True])
def test_a_measured_change_is_a_measurement_of_the_joint_gaussian(biased):
    """Against the textbook filter on the state with the entropy before the commit appended."""
    observer = EntropyObserver()
    observer.observe(0.5, 0.02, 1.0)
    observer.commit((0.3, -0.1), 0.2, 1, 0.9)
    observer.observe(0.48, 0.02, 1.0)
    mean, covariance = observer._mean.clone(), observer._covariance.clone()
    observer.commit((0.2, -0.3), 0.25, 1, 0.9)
    after_mean, after_covariance = observer._mean.clone(), observer._covariance.clone()
    # cov(x', H) = F cov(x, H), with F read off numerically from the mean's map
    move = torch.stack([moved_mean(observer, column) for column in torch.eye(6).double()], 1)
    assert torch.allclose(move @ mean, after_mean)
    joint = torch.zeros(7, 7, dtype=torch.float64)
    joint[:6, :6], joint[6, 6] = after_covariance, covariance[0, 0]
    joint[:6, 6] = joint[6, :6] = move @ covariance[:, 0]
    # entropy after less entropy before, plus the bias of such measurements
    reading = torch.tensor([1.0, 0, 0, 0, 0, float(biased), -1], dtype=torch.float64)
    # the bias walks on after the measurement
    walk = (observer.bias_walk * observer.first) ** 2
    joint[5, 5] -= walk
    stderr, change = 0.002, -0.004
    noise = math.hypot(stderr, 0.1 * change)
    gain = joint @ reading / (reading @ joint @ reading + noise**2)
    surprise = change - float(after_mean[0] - mean[0])
    expected = after_mean + gain[:6] * surprise
    remaining = joint - torch.outer(gain, reading @ joint)
    remaining[5, 5] += walk
    observer.moved(change, stderr, biased)
    torch.testing.assert_close(observer._mean, expected)
    torch.testing.assert_close(observer._covariance, remaining[:6, :6])


def test_a_constant_bias_of_measured_changes_is_found_out():
    truth, observer = 0.5, EntropyObserver()
    generator = torch.Generator().manual_seed(0)
    errors = []
    for step in range(600):
        noise = float(torch.randn((), generator=generator))
        observer.observe(truth + 0.02 * noise, 0.02, 1.0)
        errors.append(observer.entropy - truth)
        observer.commit((0.5, -0.5), 0.1, 1, 0.0)
        change = 0.004 * math.sin(step / 5)
        truth += change
        observer.moved(change - 0.001, 0.001)
    assert abs(np.mean(errors[300:])) < 0.003
    assert np.mean(errors[:30]) < -0.003, "at first it has to be believed"


def moved_mean(observer, column):
    probe = EntropyObserver()
    probe.load_state_dict(observer.state_dict() | {"mean": column.tolist()})
    probe.commit((0.2, -0.3), 0.25, 1, 0.9)
    return probe._mean


def test_measured_changes_carry_the_estimate_where_measurements_are_blunt():
    truth, sharp, blunt = 0.5, EntropyObserver(), EntropyObserver()
    generator = torch.Generator().manual_seed(0)
    errors = {True: [], False: []}
    for step in range(120):
        noise = float(torch.randn((), generator=generator))
        for observer in (sharp, blunt):
            observer.observe(truth + 0.02 * noise, 0.02, 1.0)
            if step > 40:
                errors[observer is sharp].append(abs(observer.entropy - truth))
            observer.commit((0.5, -0.5), 0.1, 1, 0.0)
        change = 0.004 * math.sin(step / 5)
        truth += change
        sharp.moved(change, 0.001, biased=False)
    assert sum(errors[True]) < 0.5 * sum(errors[False])


@pytest.mark.parametrize(("change", "stderr"), [(math.nan, 0.1), (0.1, math.inf), (0.1, math.nan)])
def test_a_change_of_unknown_error_teaches_nothing(change, stderr):
    observer = EntropyObserver()
    observer.moved(0.1, 0.01)
    observer.observe(0.5, 0.02, 1.0)
    observer.commit((0.3, -0.1), 0.2, 1, 0.9)
    before = observer.state_dict()
    observer.moved(change, stderr)
    assert observer.state_dict() == before


def test_a_change_counts_once():
    observer = EntropyObserver()
    observer.observe(0.5, 0.02, 1.0)
    observer.commit((0.3, -0.1), 0.2, 1, 0.9)
    observer.moved(-0.01, 0.001)
    once = observer.state_dict()
    observer.moved(-0.01, 0.001)
    assert observer.state_dict() == once
