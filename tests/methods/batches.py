"""Rollout sums, token batches and gradients for the tests of the baselines."""

import math

import torch

from entrocraft.methods import get_method
from entrocraft.rollouts import RolloutStats, StepInfo, TokenBatch

REWARDS = [1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, math.nan]
LENGTHS = [3, 5, 2, 7, 4, 4, 1, 6, 2, 2, 3, 9, 5, 0, 6, 4]
MEASURED = 0.7
TARGET = 0.45


def hand_made(rewards=REWARDS) -> RolloutStats:
    """Four groups of four: mixed, all wrong, all right, mixed with one unscored."""
    tokens = torch.tensor(LENGTHS, dtype=torch.float64)
    values = torch.tensor(rewards, dtype=torch.float64)
    group = torch.arange(16) // 4
    advantages = torch.zeros(16, dtype=torch.float64)
    for start in range(0, 16, 4):
        rows = values[start : start + 4]
        known = rows[~rows.isnan()]
        advantages[start : start + 4] = torch.nan_to_num(rows - known.mean())
    return RolloutStats(
        advantages=advantages,
        tokens=tokens,
        logprob=-tokens,
        entropy=MEASURED * tokens,
        rewards=values,
        group=group,
    )


def advantages_of(name, step=0, **options):
    method = get_method(name, TARGET, **options)
    return method, method.decide(hand_made(), step=StepInfo(step)).advantages.tolist()


def sign(reward):
    return 0.0 if math.isnan(reward) else (1.0 if reward >= 0.5 else -1.0)


def token_batch(seed=0, rows=8, width=12, **changes) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(rows, width, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    mask = torch.arange(width) < lengths[:, None]
    old_logprobs = -2 * normal().abs() - 0.01
    values = {
        "step": 0,
        "advantages": torch.randn(rows, generator=generator, dtype=torch.float64),
        "mask": mask,
        "logprobs": (old_logprobs + 0.4 * normal()).clamp(max=-1e-3),
        "old_logprobs": old_logprobs,
        "entropies": 0.8 * normal().abs(),
        "old_entropies": 0.8 * normal().abs(),
        "sensitivity": 0.2 * normal(),
    }
    return TokenBatch(**(values | changes))


def hosted_gradient(method, batch):
    """Of TRL's loss, summed over tokens, in each token's log-probability."""
    options = {"epsilon": 0.2, "epsilon_high": None, "delta": None} | method.trainer_options
    advantages = method.reweigh(batch)
    assert advantages.shape == batch.mask.shape
    assert not advantages[~batch.mask].any()
    logprobs = batch.logprobs.clone().requires_grad_()
    ratio = (logprobs - batch.old_logprobs).exp()
    high = options["epsilon"] if options["epsilon_high"] is None else options["epsilon_high"]
    clipped = ratio.clamp(1 - options["epsilon"], 1 + high)
    bounded = ratio if options["delta"] is None else ratio.clamp(max=options["delta"])
    loss = -torch.min(bounded * advantages, clipped * advantages)
    loss[batch.mask].sum().backward()
    return logprobs.grad


def published_gradient(loss, batch):
    """Of a published loss, `loss(A, log p) -> (b, T)`, summed over response tokens."""
    logprobs = batch.logprobs.clone().requires_grad_()
    values = loss(batch.advantages[:, None].expand_as(logprobs), logprobs)
    values[batch.mask].sum().backward()
    return logprobs.grad


def ppo(batch, a, logprobs, low=0.2, high=0.2, dual=None):
    ratio = (logprobs - batch.old_logprobs).exp()
    loss = torch.max(-a * ratio, -a * ratio.clamp(1 - low, 1 + high))
    if dual is not None:
        loss = torch.where(a < 0, torch.min(loss, -a * dual), loss)
    return loss
