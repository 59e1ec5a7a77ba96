"""ERC, STEER and CE-GPPO against their published losses, differentiated by autograd."""

import math

import pytest
import torch

from entrocraft.method import Measurement
from entrocraft.methods import get_method
from entrocraft.rollouts import StepInfo
from tests.methods.batches import (
    hand_made,
    hosted_gradient,
    ppo,
    published_gradient,
    token_batch,
)


def test_erc():
    batch = token_batch(6)
    keep = torch.zeros_like(batch.mask, dtype=torch.float64)
    for i, t in batch.mask.nonzero().tolist():
        ratio = (batch.entropies[i, t] + 1e-8) / (batch.old_entropies[i, t] + 1e-8)
        keep[i, t] = float(0.5 < ratio < 1.5)
    assert 0 < keep[batch.mask].sum() < batch.mask.sum()
    found = hosted_gradient(get_method("erc", low=0.5, high=1.5), batch)
    assert torch.allclose(found, published_gradient(lambda a, p: ppo(batch, a, p) * keep, batch))


@pytest.mark.parametrize(("kind", "bound"), [("tv", 0.05), ("kl", 0.01)])
def test_dppo(kind, bound):
    base = token_batch(9, rows=40)
    far = base.old_logprobs + 3.5 * base.sensitivity
    batch = token_batch(9, rows=40, logprobs=far.clamp(max=-1e-3))
    cases = set()

    def loss(a, logprobs):
        out = torch.zeros_like(logprobs)
        for i, t in batch.mask.nonzero().tolist():
            p, old = batch.logprobs[i, t].exp(), batch.old_logprobs[i, t].exp()
            ratio = min((p / old).item(), 1.3)
            if kind == "tv":
                divergence = abs(p - old)
            else:
                divergence = old * (old / p).log() + (1 - old) * ((1 - old) / (1 - p)).log()
            away = (p > old) if a[i, t] > 0 else (p < old)
            cases.add((bool(divergence > bound), bool(away)))
            if not (divergence > bound and away):
                out[i, t] = -ratio * a[i, t] * logprobs[i, t]
        return out

    found = hosted_gradient(get_method("dppo", divergence=kind, bound=bound, cap=1.3), batch)
    assert torch.allclose(found, published_gradient(loss, batch), atol=1e-6)
    assert len(cases) == 4


@pytest.mark.parametrize("zeta", [0.5, -0.5])
def test_repo_r(zeta):
    batch = token_batch(10)
    method = get_method("repo_r", "constant(0.5)", zeta=zeta, most=2.0)
    method.decide(hand_made(), step=StepInfo(0))
    bounded = set()

    def loss(a, logprobs):
        scaled = torch.zeros_like(logprobs)
        for i, t in batch.mask.nonzero().tolist():
            adv, p = a[i, t].item(), batch.logprobs[i, t].item()
            value = adv * (1 - zeta * p) if adv > 0 else adv * (1 + zeta * p)
            bounded.add((adv > 0, value * adv < 0))
            scaled[i, t] = max(value, 0) if adv > 0 else min(value, 0)
        return ppo(batch, scaled, logprobs)

    found = hosted_gradient(method, batch)
    assert torch.allclose(found, published_gradient(loss, batch), atol=1e-6)
    assert (zeta < 0, True) in bounded


def test_repo_r_doubles_halves_and_turns():
    method = get_method("repo_r", "constant(0.5)", zeta=0.01, least=0.004, most=0.03)
    assert method.report() == {"entropy/zeta": 0.0}
    seen = []
    for entropy in (0.6, 0.4, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.4, 0.5):
        method.settings(Measurement(0, entropy, 0.5))
        seen.append(method.report()["entropy/zeta"])
    expected = [0.01, 0.02, 0.03, 0.03, 0.015, 0.0075, -0.004, -0.008, -0.016, -0.008, -0.016]
    assert seen == pytest.approx(expected)


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
