"""How far an update moved the entropy, measured on the very tokens that it trained on.

Two batches of different prompts differ by more than a step moves. One batch scored before and after
its update does not: prompts are the same and drop out. The tokens were drawn from the policy before
the update, so position t counts with the ratio of the two policies' probabilities of the tokens
before t, and the mean is the one over rollouts of the policy after the update.

An update moves the prompts that it trains on more than others. So where enough prompts of the batch
were left out (all their rollouts rejected, or alike in reward), these are asked apart: they tell
the change without that bias.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["change_sums", "post_update_change", "report_change", "untouched"]

_LARGEST_LOG_RATIO = 2.0
_FEWEST_PROMPTS = 6


def change_sums(
    mask: Tensor,
    logprobs_before: Tensor,
    logprobs_after: Tensor,
    entropies_before: Tensor,
    entropies_after: Tensor,
) -> Tensor:
    """Per-rollout stats that `post_update_change` needs and ranks exchange: (B, 4) float64.

    Columns: tokens, entropy before (nats), weights of positions, weighted entropy after (nats).

    Args:
        mask: (B, T), true on response tokens.
        logprobs_before, logprobs_after: (B, T), of the sampled tokens.
        entropies_before, entropies_after: (B, T), nats.
    """
    inside = mask.detach().cpu().bool()

    def read(values: Tensor) -> Tensor:
        return torch.where(inside, values.detach().cpu().double(), 0.0)

    ratio = read(logprobs_after) - read(logprobs_before)
    # a position is reached by the tokens before it
    prefix = ratio.cumsum(1) - ratio
    weights = prefix.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp() * inside
    columns = [
        inside.double(),
        read(entropies_before),
        weights,
        weights * read(entropies_after),
    ]
    return torch.stack([column.sum(1) for column in columns], dim=1)


def post_update_change(stats: Tensor, group: Tensor | None = None) -> tuple[float, float]:
    """Return the change of the mean entropy, nats per token, and its standard error.

    Args:
        stats: (B, 4), of all ranks.
        group: (B,), an integer for each prompt; None takes each rollout for itself.

    Returns:
        (change, standard error), the error infinite below two prompts.

    Raises:
        ValueError: no response token in the batch.
    """
    tokens, before, weights, after = stats.double().unbind(1)
    if not float(tokens.sum()) > 0:
        raise ValueError("the batch has no response token inside its mask")
    old = float(before.sum() / tokens.sum())
    new = float(after.sum() / weights.sum())
    # linearized: what each rollout adds to the difference of the two ratios
    parts = (after - new * weights) / weights.sum() - (before - old * tokens) / tokens.sum()
    parts = parts[tokens > 0]
    if group is not None:
        _, index = torch.unique(group[tokens > 0], return_inverse=True)
        clusters = torch.zeros(int(index.max()) + 1, dtype=parts.dtype)
        parts = clusters.index_add_(0, index, parts)
    count = len(parts)
    if count < 2:
        return new - old, math.inf
    return new - old, math.sqrt(float(parts.square().sum()) * count / (count - 1))


def untouched(advantages: Tensor, group: Tensor) -> Tensor | None:
    """Rollouts of prompts that the update left out: (B,) bool; None if they are too few to ask.

    Args:
        advantages: (B,), as trained on; 0 on rejected rollouts.
        group: (B,), an integer for each prompt.
    """
    _, index = torch.unique(group, return_inverse=True)
    trained = torch.zeros(int(index.max()) + 1, dtype=torch.float64)
    trained = trained.index_add_(0, index, advantages.detach().cpu().double().abs())
    out = trained == 0
    return out[index] if int(out.sum()) >= _FEWEST_PROMPTS else None


def report_change(method: Any, stats: Tensor, trained: Tensor, group: Tensor) -> dict[str, float]:
    """Tell a method how far its last batch moved the entropy; return what there is to log.

    Args:
        method: has `post_update(change, stderr, trained)`; see `EntropyController`.
        stats: (B, 4) of `change_sums`, of all processes.
        trained: (B,) advantages as trained on.
        group: (B,), an integer for each prompt.
    """
    left_out = untouched(trained, group)
    if left_out is None:
        parts = [(torch.ones(len(stats), dtype=torch.bool), True)]
    else:
        parts = [(left_out, False), (~left_out, True)]
    metrics: dict[str, float] = {}
    for rows, trained_on in parts:
        if float(stats[rows, 0].sum()) > 0:
            change, stderr = post_update_change(stats[rows], group[rows])
            told = method.post_update(change, stderr, trained=trained_on)
            metrics = metrics or told
    return metrics
