"""From keep probabilities to the rollouts that are kept: exact inclusion frequencies."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrocraft.selection.sampling import systematic_draw


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
    assert systematic_draw(0.8 * half, 1e-60).tolist() == [True, False, True, False]


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
