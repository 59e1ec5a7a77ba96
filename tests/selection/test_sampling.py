"""From keep probabilities to weights: exact inclusion frequencies, expectations, corrections."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entrocraft.selection.sampling import Sampling, systematic_draw


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
    # the comb stands at 0.2, 1.2, ... over the cumulative stats 0.5, 1.0, 1.5, 2.0
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
    assert abs(sum(kept.tolist()) - sum(p)) <= 1 + 1e-9


# ---------------------------------------------------------------- drawing


def example(count=40, seed=0):
    """Probabilities, votes, tokens and an order; every fourth rollout has no vote."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(count, generator=generator, dtype=torch.float64)
    votes = torch.arange(count) % 4 != 0
    p[~votes] = 1.0
    tokens = torch.randint(1, 9, (count,), generator=generator).double()
    return p, votes, tokens, torch.randperm(count, generator=generator)


@pytest.mark.parametrize("correction", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("effective_batch", [None, 10, 1000])
def test_weights_average_to_what_is_expected(correction, effective_batch):
    drawing = Sampling(correction=correction, effective_batch=effective_batch)
    p, votes, tokens, order = example()
    drawn = [drawing.weights(p, votes, tokens, order, u) for u in grid(4000)]
    expected = drawing.expected(p, votes, tokens)
    np.testing.assert_allclose(torch.stack(drawn).mean(0), expected, atol=10 * 1.01 / 4000)


def test_full_correction_is_plain_rl_in_expectation():
    p, votes, tokens, _ = example()
    p = p.clamp(min=0.1)
    full = Sampling(correction=1.0).expected(p, votes, tokens)
    np.testing.assert_allclose(full, torch.ones(40))
    half = Sampling(correction=0.5).expected(p, votes, tokens)
    np.testing.assert_allclose(half, p.sqrt())


def test_corrections_are_bounded():
    p = torch.tensor([0.0, 1e-9, 0.05, 1.0], dtype=torch.float64)
    weights = Sampling(correction=1.0).weights(
        p, torch.ones(4, dtype=torch.bool), torch.ones(4), torch.arange(4), 0.0
    )
    assert float(weights[0]) == 0
    assert float(weights.max()) <= 10


def test_without_a_draw_probabilities_are_weights():
    p, votes, tokens, order = example()
    drawing = Sampling(draw=False)
    for uniform in (0.0, 0.7):
        assert torch.equal(drawing.weights(p, votes, tokens, order, uniform), p)
    assert torch.equal(drawing.expected(p, votes, tokens), p)


def test_the_effective_batch_is_constant_if_enough_is_offered():
    for seed in range(20):
        p, votes, tokens, order = example(80, seed)
        for uniform in grid(5):
            weights = Sampling(effective_batch=12).weights(p, votes, tokens, order, uniform)
            # rollouts without a vote are certain and stay out of the comb
            assert abs(int((weights[votes] > 0).sum()) - 12) <= 1
            assert bool((weights[~votes] == 1).all())
        share = Sampling(effective_batch=12).thinned(p, votes) / p
        np.testing.assert_allclose(share[votes], 12 / float(p[votes].sum()))


def test_a_batch_below_the_effective_size_is_left_alone():
    p, votes, tokens, order = example()
    plain = Sampling().weights(p, votes, tokens, order, 0.3)
    assert torch.equal(Sampling(effective_batch=500).weights(p, votes, tokens, order, 0.3), plain)
    nobody = torch.zeros(40, dtype=torch.bool)
    assert torch.equal(Sampling(effective_batch=5).thinned(p, nobody), p)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correction": -0.1}, "correction must be in [0, 1], got -0.1"),
        ({"correction": float("nan")}, "correction must be in [0, 1], got nan"),
        ({"effective_batch": 0}, "effective_batch must be at least 1 rollout, got 0"),
        ({"effective_batch": 5, "draw": False}, "effective_batch thins by chance"),
        ({"renormalize": "mean"}, "'none', 'rollouts' or 'tokens', got 'mean'"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling(**changes)


@pytest.mark.parametrize("renormalize", ["rollouts", "tokens"])
def test_spare_voters_make_up_for_nothing(renormalize):
    drawing = Sampling(draw=False, correction=0.5, renormalize=renormalize)
    spare = torch.tensor([False, False, True, True])
    votes = torch.tensor([True, True, True, True])
    tokens = torch.tensor([3.0, 3.0, 5.0, 5.0])
    p = torch.tensor([0.25, 1.0, 0.0, 0.5], dtype=torch.float64)
    weights = drawing.weights(p, votes, tokens, torch.arange(4), 0.5, spare)
    # kept by their probability, scaled by what was rejected of the others alone
    left = {"rollouts": 3.25 / 4, "tokens": (0.75 + 3 + 10) / 16}[renormalize]
    expected = torch.tensor([0.25 * 0.25**-0.5, 1.0, 0.0, 0.5], dtype=torch.float64) / left
    np.testing.assert_allclose(weights, expected)
    assert torch.equal(drawing.expected(p, votes, tokens, spare), weights)
