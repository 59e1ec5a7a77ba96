"""Rollout batches and controllers for the controller's tests."""

from dataclasses import replace

import torch

from entrocraft import EntropyController, RolloutBatch

RULES = ("tilt", "sign", "switch")


def make_batch(step=0, rows=32, width=6, level=0.5, seed=None, **changes) -> RolloutBatch:
    generator = torch.Generator().manual_seed(step if seed is None else seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    rewards = (normal(rows) > 0).double()
    advantages = rewards - rewards.view(-1, 4).mean(1).repeat_interleave(4)
    batch = RolloutBatch(
        step=step,
        advantages=advantages,
        mask=torch.arange(width) < lengths[:, None],
        logprobs=-normal(rows, width).abs(),
        entropies=(level + 0.02 * normal(rows, width)).clamp(min=0),
        sensitivity=0.1 * normal(rows, width),
        rewards=rewards,
        group=torch.arange(rows) // 4,
    )
    return replace(batch, **changes)


def effects_of(batch: RolloutBatch) -> torch.Tensor:
    token_sums = torch.where(batch.mask, batch.sensitivity, 0.0).sum(1)
    return batch.advantages * token_sums / batch.mask.sum()


def controller(schedule=0.5, **settings) -> EntropyController:
    return EntropyController(schedule, **({"seed": 0} | settings))


def repeat(steered, batch, times):
    decisions = [steered.decide(replace(batch, step=step)) for step in range(times)]
    return decisions[0], decisions[-1]
