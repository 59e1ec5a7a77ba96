"""EntroPIC, as published and as in Entrocraft's public code, against its formulas."""

import pytest
import torch

from entrocraft.methods import get_method
from entrocraft.rollouts import StepInfo
from tests.methods.batches import (
    MEASURED,
    REWARDS,
    TARGET,
    hand_made,
    hosted_gradient,
    ppo,
    published_gradient,
    sign,
    token_batch,
)


def test_entropic_as_in_the_fork():
    method = get_method("entropic_fork", TARGET, kp=0.8, ki=0.05)
    integral = 0.0
    for step in range(4):
        found = method.decide(hand_made(), step=StepInfo(step)).advantages.tolist()
        error = MEASURED - TARGET
        alpha = integral + 0.8 * error
        integral += 0.05 * error
        for reward, advantage in zip(REWARDS, found, strict=True):
            expected = {1.0: 1 + alpha, -1.0: -(1 - alpha), 0.0: 0.0}[sign(reward)]
            assert advantage == pytest.approx(expected)


@pytest.mark.parametrize("level", [0.1, 0.6, 3.0])
def test_entropic(level):
    threshold, shares = 0.6, (0.25, 0.5)
    method = get_method("entropic", TARGET, kp=0.7, ki=0.3, threshold=threshold)
    summed = 0.0
    for step, share in enumerate(shares):
        base = token_batch(step)
        batch = token_batch(step, entropies=level * base.entropies, share=share)
        error = batch.entropies[batch.mask].mean().item() - TARGET
        alpha = max(-1.0, min(1.0, 0.7 * error + 0.3 * summed))
        summed += error * share
        likely = (batch.logprobs.exp() > threshold).double()
        assert 0 < likely[batch.mask].sum() < batch.mask.sum()

        def loss(a, p, batch=batch, alpha=alpha, likely=likely):
            ratio = (p - batch.old_logprobs).exp()
            return ppo(batch, a, p) + alpha * -ratio * a.abs() * likely

        assert torch.allclose(hosted_gradient(method, batch), published_gradient(loss, batch))
        assert batch.clipped(0.2, 0.2).any()
    assert method.state_dict()["sum"] == pytest.approx(summed)
