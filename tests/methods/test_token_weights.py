"""ERC, STEER and CE-GPPO against their published losses, differentiated by autograd."""

import math

import pytest
import torch

from entrocraft.methods import get_method
from tests.methods.batches import hosted_gradient, ppo, published_gradient, token_batch


def test_erc():
    batch = token_batch(6)
    keep = torch.zeros_like(batch.mask, dtype=torch.float64)
    for i, t in batch.mask.nonzero().tolist():
        ratio = (batch.entropies[i, t] + 1e-8) / (batch.old_entropies[i, t] + 1e-8)
        keep[i, t] = float(0.5 < ratio < 1.5)
    assert 0 < keep[batch.mask].sum() < batch.mask.sum()
    found = hosted_gradient(get_method("erc", low=0.5, high=1.5), batch)
    assert torch.allclose(found, published_gradient(lambda a, p: ppo(batch, a, p) * keep, batch))


@pytest.mark.parametrize("mode", ["linear", "exponential"])
def test_steer(mode):
    batch = token_batch(7)
    change = {}
    for i, t in batch.mask.nonzero().tolist():
        p, old = batch.logprobs[i, t].exp(), batch.old_logprobs[i, t].exp()
        move = p * (1 - p) * (p.log() + batch.entropies[i, t])
        change[i, t] = abs(batch.advantages[i] / old * move).item()
    low, high = min(change.values()), max(change.values())
    weight = torch.zeros_like(batch.logprobs)
    for place, value in change.items():
        if mode == "linear":
            weight[place] = 1.2 - (value - low) * (1.2 - 0.8) / (high - low)
        else:
            weight[place] = max(0.8, math.exp(math.log(0.8) / max(high, 0.02) * value))

    def loss(a, p):
        return ppo(batch, a, p, 0.2, 0.28, dual=10.0) * weight

    found = hosted_gradient(get_method("steer", mode=mode), batch)
    assert torch.allclose(found, published_gradient(loss, batch), atol=1e-7)


def test_ce_gppo():
    base = token_batch(8, rows=40)
    batch = token_batch(8, rows=40, logprobs=base.old_logprobs + 3.5 * base.sensitivity)
    e, c, b1, b2 = 0.2, 1.8, 0.4, 0.9
    branches = set()

    def loss(a, p):
        ratio = (p - batch.old_logprobs).exp()
        out = torch.zeros_like(ratio)
        for i, t in batch.mask.nonzero().tolist():
            r, adv = ratio[i, t], a[i, t]
            if adv < 0 and r < 1 - e:
                branch, value = "below", -b1 * (1 - e) / r.detach() * r * adv
            elif adv > 0 and r > 1 + e:
                branch, value = "above", -b2 * (1 + e) / r.detach() * r * adv
            elif adv < 0 and r > c:
                branch, value = "dual", -adv * c + 0 * r
            else:
                branch, value = "free", -r * adv
            branches.add(branch)
            out[i, t] = value
        return out

    method = get_method("ce_gppo", beta1=b1, beta2=b2, low=e, high=e, dual=c)
    assert torch.allclose(hosted_gradient(method, batch), published_gradient(loss, batch))
    assert branches == {"below", "above", "dual", "free"}
