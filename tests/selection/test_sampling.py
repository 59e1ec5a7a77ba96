"""From keep probabilities to weights: exact inclusion frequencies and expectations."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entrocraft.selection.sampling import SelectionSettings, systematic_draw


def grid(count):
    return (np.arange(count) + 0.5) / count


@pytest.mark.parametrize("ordered", [False, True])
def test_systematic_draw_is_unbiased(ordered):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(23, generator=generator, dtype=torch.float64)
    p[3], p[7], p[11] = 0.0, 1.0, 1e-3
    order = torch.randperm(23, generator=generator) if ordered else None
    draws = torch.stack([systematic_draw(p, u, order) for u in grid(4000)])
    np.testing.assert_allclose(draws.double().mean(0), p, atol=1.01 / 4000)
    assert not bool(draws[:, 3].any())
    assert bool(draws[:, 7].all())
    counts = draws.sum(1).double()
    assert float((counts - p.sum()).abs().max()) < 1


def test_every_stretch_along_the_order_is_balanced():
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(40, generator=generator, dtype=torch.float64)
    order = torch.randperm(40, generator=generator)
    for uniform in grid(50):
        kept = systematic_draw(p, uniform, order)[order].double().cumsum(0)
        assert float((kept - p[order].cumsum(0)).abs().max()) < 1


def test_draw_by_hand():
    # the comb stands at 0.2, 1.2, ... over the cumulative sums 0.5, 1.0, 1.5, 2.0
    half = torch.full((4,), 0.5)
    assert systematic_draw(half, 0.2).tolist() == [True, False, True, False]
    assert systematic_draw(half, 0.7).tolist() == [False, True, False, True]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0, 5e-324, 1 - 2**-53]), max_size=30),
    st.floats(0, 1, exclude_max=True),
    st.randoms(use_true_random=False),
)
def test_certain_rollouts_are_certain(p, uniform, random):
    order = list(range(len(p)))
    random.shuffle(order)
    kept = systematic_draw(
        torch.tensor(p, dtype=torch.float64), uniform, torch.tensor(order).long()
    )
    assert kept.dtype == torch.bool
    assert kept.shape == (len(p),)
    for probability, drawn in zip(p, kept.tolist(), strict=True):
        assert drawn or probability < 1
        assert not drawn or probability > 0
    edges = np.cumsum([p[row] for row in order if 0 < p[row] < 1]) - uniform
    if bool((np.abs(edges - np.round(edges)) > 1e-9).all()):  # else the last digit decides
        assert abs(sum(kept.tolist()) - sum(p)) < 1 + 1e-9


# ---------------------------------------------------------------- settings


def example(count=40, seed=0):
    """Probabilities, active rollouts and an order; every fourth rollout is not active."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(count, generator=generator, dtype=torch.float64)
    active = torch.arange(count) % 4 != 0
    p[~active] = 1.0
    return p, active, torch.randperm(count, generator=generator)


@pytest.mark.parametrize("effective_batch", [None, 10, 1000])
def test_weights_average_to_what_is_expected(effective_batch):
    sampling = SelectionSettings(effective_batch=effective_batch)
    p, active, order = example()
    drawn = [sampling.weights(p, active, order, u) for u in grid(4000)]
    assert {weight for weights in drawn for weight in weights.tolist()} == {0.0, 1.0}
    expected = sampling.expected(p, active)
    np.testing.assert_allclose(torch.stack(drawn).mean(0), expected, atol=1.01 / 4000)


def test_without_a_draw_probabilities_are_weights():
    p, active, order = example()
    sampling = SelectionSettings(draw=False)
    for uniform in (0.0, 0.7):
        assert torch.equal(sampling.weights(p, active, order, uniform), p)
    assert torch.equal(sampling.expected(p, active), p)


def test_the_effective_batch_is_constant_if_there_are_enough():
    sampling = SelectionSettings(effective_batch=12)
    for seed in range(20):
        p, active, order = example(80, seed)
        for uniform in grid(5):
            weights = sampling.weights(p, active, order, uniform)
            # rollouts that are not active are certain and stay out of the comb
            assert abs(int((weights[active] > 0).sum()) - 12) <= 1
            assert bool((weights[~active] == 1).all())
        share = sampling.expected(p, active) / p
        np.testing.assert_allclose(share[active], 12 / float(p[active].sum()))


def test_a_batch_below_the_effective_size_is_left_alone():
    p, active, order = example()
    plain = SelectionSettings().weights(p, active, order, 0.3)
    large, small = SelectionSettings(effective_batch=500), SelectionSettings(effective_batch=5)
    assert torch.equal(large.weights(p, active, order, 0.3), plain)
    nobody = torch.zeros(40, dtype=torch.bool)
    assert torch.equal(small.expected(p, nobody), p)
    none_left = torch.where(active, 0.0, p)
    assert torch.equal(small.expected(none_left, active), none_left)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"floor": 1}, "floor must be a probability in [0, 1), got 1"),
        ({"floor": -0.1}, "floor must be a probability in [0, 1), got -0.1"),
        ({"floor": float("nan")}, "floor must be a probability in [0, 1), got nan"),
        ({"effective_batch": 0}, "effective_batch must be at least 1 rollout, got 0"),
        ({"effective_batch": 5, "draw": False}, "effective_batch thins by chance"),
        ({"draw": "yes"}, "draw must be true or false, got 'yes'"),
        ({"constant_reward_groups": 1}, "constant_reward_groups must be true or false, got 1"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SelectionSettings(**changes)
