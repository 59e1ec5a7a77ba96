"""Rollout batches and controllers for the core's tests."""

from dataclasses import replace

import torch

from entrocraft import EntropyController, FeedbackSettings, RolloutBatch, SelectionSettings
from entrocraft.selection import RULES

__all__ = ["RULES", "controller", "effects_of", "make_batch", "nearby", "repeat"]


def make_batch(step=0, rows=32, width=6, level=0.5, seed=None, **changes) -> RolloutBatch:
    """Groups of four with rewards of 0 and 1; entropies near `level`."""
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


def effects_of(batch: RolloutBatch, advantages=None) -> torch.Tensor:
    """Effects at the level `sampled`, written out anew: (B,)."""
    advantages = batch.advantages if advantages is None else advantages
    mean = batch.logprobs[batch.mask].mean()
    surprise = torch.where(batch.mask, mean - batch.logprobs, 0.0).sum(1)
    return advantages * surprise / batch.mask.sum()


def controller(schedule=0.5, rule="tilt", effect=None, seed=0, **settings) -> EntropyController:
    """Controller of one seed; further names are fields of its two sections of settings."""
    sections = {}
    for section, kind in (("feedback", FeedbackSettings), ("selection", SelectionSettings)):
        own = [name for name in settings if name in kind.__dataclass_fields__]
        sections[section] = kind(**{name: settings.pop(name) for name in own})
    return EntropyController(schedule, rule, effect, seed=seed, **sections, **settings)


def nearby(offset, batch, **settings) -> EntropyController:
    """Controller with a constant target, this far from the batch's entropy (nats per token).

    At an offset of 0.005 or less the planner is not at its limit on batches of `make_batch`.
    """
    return controller(batch.stats().mean_entropy() + offset, **settings)


def repeat(steered, batch, times):
    """First and last decision on one batch, at the steps from 0 on."""
    decisions = [steered.decide(replace(batch, step=step)) for step in range(times)]
    return decisions[0], decisions[-1]
