"""The observer on linear plants with known truth."""

import json
import math
import random

import numpy as np
import pytest
import torch

from entrocraft.feedback.filter import EntropyFilter, arrival


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


def follow(
    observer, steps=300, gains=(1.0, 1.0), drift=0.0, momentum=0.9, noise=0.01, seed=0, stderr=None
):
    """Entropies before each step: true, measured and believed."""
    generator = random.Random(seed)
    entropy, pending, seen = 1.0, 0.0, []
    for _ in range(steps):
        measured = entropy + generator.gauss(0, noise)
        kept = (generator.gauss(0, 0.01), generator.gauss(0, 0.01))
        observer.observe(measured, noise if stderr is None else stderr, size=0.05)
        seen.append((entropy, measured, observer.entropy))
        pending += gains[0] * kept[0] + gains[1] * kept[1]
        entropy += (1 - momentum) * pending + drift
        pending *= momentum
        observer.commit(kept, 0.003, 1, momentum)
    return np.array(seen).T


def mean_error(wanted, seen):
    return float(np.abs(seen - wanted)[50:].mean())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_nearer_to_the_truth_than_the_measurement(momentum):
    true, measured, believed = follow(EntropyFilter(gain=1.0), momentum=momentum, noise=0.03)
    assert mean_error(true, believed) < 0.6 * mean_error(true, measured)


@pytest.mark.parametrize("gains", [(1.0, 1.0), (4.0, 4.0), (0.25, 0.25), (2.0, 0.5)])
def test_gains_are_learnt_by_sign(gains):
    observer = EntropyFilter(gain=1.0)
    follow(observer, gains=gains, noise=0.001)
    for learnt, true in zip(observer.gains, gains, strict=True):
        assert abs(math.log(learnt / true)) < math.log(1.6)


@pytest.mark.parametrize("drift", [-0.003, 0.002])
def test_a_constant_model_error_leaves_no_offset(drift):
    observer = EntropyFilter(gain=1.0)
    true, _, believed = follow(observer, drift=drift)
    assert abs(float((believed - true)[50:].mean())) < 0.002
    assert observer.drift == pytest.approx(drift, abs=0.003)


def test_what_is_known_to_be_under_way_is_taken_over():
    observer = EntropyFilter(gain=1.0)
    observer.observe(1.0, 0.01, 0.05, pending=-0.2)
    assert observer.pending == -0.2
    assert observer.predict((0.05, -0.01), 1, 0.9) == pytest.approx(0.1 * (-0.2 + 0.04))
    observer.commit((0.05, -0.01), 0.0, 1, 0.9)
    assert observer.entropy == pytest.approx(1.0 - 0.016)
    assert observer.pending == pytest.approx(0.9 * -0.16)


def test_a_wild_measurement_moves_it_little():
    calm, wild = EntropyFilter(gain=1.0), EntropyFilter(gain=1.0)
    for observer in (calm, wild):
        follow(observer, steps=50)
    spread = 0.05
    calm.observe(calm.entropy + spread, 0.01, 0.05)
    wild.observe(wild.entropy + 1e6, 0.01, 0.05)
    assert abs(wild.entropy - calm.entropy) < spread


@pytest.mark.parametrize("stderr", [0.0, math.inf, math.nan])
def test_strange_standard_errors(stderr):
    observer = EntropyFilter()
    believed = follow(observer, steps=50, stderr=stderr)[2]
    assert np.isfinite(believed).all()


@pytest.mark.parametrize("gain", [8.0, 50.0, 0.05, -1.0])
def test_gains_stay_within_their_bound(gain):
    observer = EntropyFilter(gain=1.0, gain_bound=3.0)
    for seed in range(20):
        follow(observer, gains=(gain, gain), steps=10, seed=seed)
        assert min(observer.gains) > 1 / 3 - 1e-9
        assert max(observer.gains) < 3.0 + 1e-9
    free = EntropyFilter(gain=1.0, gain_bound=1e9)
    follow(free, gains=(gain, gain))
    assert not all(1 / 3 < learnt < 3 for learnt in free.gains), "the bound must have been needed"


def test_without_a_unit_the_first_gain_is_a_share_of_the_entropy():
    observer = EntropyFilter(authority=0.1)
    assert observer.gains == (0.0, 0.0)
    observer.observe(0.5, 0.01, size=0.0)
    assert observer.gains == (0.0, 0.0), "effects of 0 have no size to learn from"
    observer.observe(0.5, 0.01, size=1e-7)
    assert observer.in_nats((1e-7, 0.0)) == pytest.approx(0.1 * 0.5)


def test_state_round_trip_continues_bit_for_bit():
    one, two = EntropyFilter(), EntropyFilter()
    follow(one, steps=37)
    two.load_state_dict(json.loads(json.dumps(one.state_dict(), allow_nan=False)))
    follow(one, steps=15, seed=5)
    follow(two, steps=15, seed=5)
    assert one.state_dict() == two.state_dict()


def test_a_state_of_another_shape_is_refused():
    observer = EntropyFilter()
    state = observer.state_dict() | {"mean": [0.0]}
    with pytest.raises(ValueError, match=r"expected numbers of shape \(8,\), got \(1,\)"):
        observer.load_state_dict(state)
    assert torch.equal(observer._mean, torch.zeros(8, dtype=torch.float64))


# ---------------------------------------------------------------- measured changes


def test_measured_changes_are_measurements_of_the_joint_gaussian():
    """Against least squares over everything that was measured, the filter's other derivation."""
    observer = EntropyFilter()
    observer.observe(0.5, 0.02, 1.0)
    start, covariance = observer._mean.clone()[:7], observer._covariance.clone()[:7, :7]
    observer.commit((0.2, -0.3), 0.25, 1, 0.9)
    after_mean, after_covariance = observer._mean.clone()[:7], observer._covariance[:7, :7].clone()
    # x' = F x + w: read F off the mean's map, the noise's covariance off what is left
    move = torch.stack([moved_mean(observer, column) for column in torch.eye(8).double()], 1)
    move = move[:7, :7]
    noise = after_covariance - move @ covariance @ move.T
    torch.testing.assert_close(move @ start, after_mean)
    # unknowns: x and w
    joint = torch.block_diag(covariance, noise)
    output = torch.cat([move, torch.eye(7, dtype=torch.float64)], 1)
    entropy, trained, left_out = (output[row] for row in (0, 5, 6))
    before = torch.eye(14, dtype=torch.float64)[0]
    measurements = [
        (entropy - before + left_out, -0.004, math.hypot(0.002, 0.0004)),
        (entropy - before + trained, -0.006, math.hypot(0.001, 0.0006)),
    ]
    rows = torch.stack([row for row, _, _ in measurements])
    values = torch.tensor([value for _, value, _ in measurements], dtype=torch.float64)
    errors = torch.diag(torch.tensor([e**2 for _, _, e in measurements], dtype=torch.float64))
    mean = torch.cat([start, torch.zeros(7, dtype=torch.float64)])
    gain = joint @ rows.T @ torch.linalg.inv(rows @ joint @ rows.T + errors)
    mean = mean + gain @ (values - rows @ mean)
    joint = joint - gain @ rows @ joint
    observer.moved(-0.004, 0.002, trained=False)
    observer.moved(-0.006, 0.001, trained=True)
    torch.testing.assert_close(observer._mean[:7], output @ mean)
    torch.testing.assert_close(observer._covariance[:7, :7], output @ joint @ output.T)


def moved_mean(observer, column):
    probe = EntropyFilter()
    probe.load_state_dict(observer.state_dict() | {"mean": column.tolist()})
    probe.commit((0.2, -0.3), 0.25, 1, 0.9)
    return probe._mean


def test_two_kinds_of_changes_tell_the_bias_soon():
    observer = EntropyFilter()
    observer.observe(0.5, 0.02, 1.0)
    for _ in range(40):
        observer.commit((0.5, -0.5), 0.1, 1, 0.0)
        observer.moved(0.0, 0.003, trained=False)
        observer.moved(-0.001, 0.002, trained=True)
    assert abs(observer.entropy - 0.5) < 0.012
    trusting = EntropyFilter()
    trusting.observe(0.5, 0.02, 1.0)
    for _ in range(40):
        trusting.commit((0.5, -0.5), 0.1, 1, 0.0)
        trusting.moved(-0.001, 0.002, trained=True)
    assert trusting.entropy < 0.47


def test_a_constant_bias_of_measured_changes_is_found_out():
    truth, observer = 0.5, EntropyFilter()
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


def test_measured_changes_carry_the_estimate_where_measurements_are_blunt():
    truth, sharp, blunt = 0.5, EntropyFilter(), EntropyFilter()
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
        sharp.moved(change, 0.001, trained=False)
    assert sum(errors[True]) < 0.6 * sum(errors[False])


@pytest.mark.parametrize(("change", "stderr"), [(math.nan, 0.1), (0.1, math.inf), (0.1, math.nan)])
def test_a_change_of_unknown_error_teaches_nothing(change, stderr):
    observer = EntropyFilter()
    observer.moved(0.1, 0.01)
    observer.observe(0.5, 0.02, 1.0)
    observer.commit((0.3, -0.1), 0.2, 1, 0.9)
    before = observer.state_dict()
    observer.moved(change, stderr)
    assert observer.state_dict() == before
