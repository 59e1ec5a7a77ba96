"""Clip_B and Clip_V against their formulas, token by token."""

import pytest
import torch

from entrocraft.methods import get_method
from tests.methods.batches import token_batch


def test_clip_b():
    batch = token_batch(4, rows=30)
    s = batch.logprobs.exp() * (batch.entropies + batch.logprobs)
    values = s[batch.mask]
    mean, spread = values.mean(), values.std(unbiased=False)
    keep = torch.zeros_like(batch.mask)
    for i, t in batch.mask.nonzero().tolist():
        fine = (s[i, t] - mean) >= -0.6 * spread
        keep[i, t] = batch.advantages[i] >= 0 or fine
    gone = int((batch.mask & ~keep).sum())
    assert 0 < gone < 0.3 * int(batch.mask.sum())
    found = get_method("clip_b", mu=0.6).reweigh(batch)
    # a token mean over all tokens that equals the one over those that stay
    expected = batch.advantages[:, None] * keep * (batch.mask.sum() / keep.sum())
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("max_fraction", [1.0, 0.02, 0.0])
def test_clip_v(max_fraction):
    batch = token_batch(5, rows=30)
    x = batch.sensitivity
    spread = x[batch.mask].std(unbiased=False)
    over = [
        (i, t)
        for i, t in batch.mask.nonzero().tolist()
        if batch.advantages[i] <= 0 and x[i, t] > 0.4 * spread
    ]
    count = int(batch.mask.sum())
    assert len(over) > 0.03 * count
    if len(over) / count > max_fraction:
        limit = max(int(max_fraction * count), 1)
        over = sorted(over, key=lambda place: -x[place].item())[:limit]
    keep = batch.mask.clone()
    for place in over:
        keep[place] = False
    found = get_method("clip_v", mu=0.4, max_fraction=max_fraction).reweigh(batch)
    assert torch.allclose(found, batch.advantages[:, None] * keep * (count / keep.sum()))
