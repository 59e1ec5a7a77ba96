"""Post-update change: how far an update moved the entropy, measured on rollouts of its own batch.

Two batches of different prompts differ by more than a step moves. One batch scored before and after
its update does not: prompts are the same and drop out. The tokens were drawn from the policy before
the update, so position t counts with the ratio of the two policies' probabilities of the tokens
before t, and the mean is the one over rollouts of the policy after the update.

An update moves the prompts that it trains on more than others. So where enough of the scored
prompts were left out of the update (all their rollouts rejected, or of one reward), these are
measured apart: they tell the change without that bias.
"""

import math

import torch
from torch import Tensor

from entrocraft.method import Method
from entrocraft.rollouts.batch import clustered_stderr

__all__ = [
    "change_stats",
    "choose_prompts",
    "post_update_change",
    "report_change",
    "report_running_change",
]

_LARGEST_LOG_RATIO = 2.0
_FEWEST_PROMPTS = 6


def choose_prompts(method: Method, step: int, prompts: int, rank: int = 0) -> Tensor:
    """Choose at random the prompts that are scored once more: sorted numbers, at least one.

    A resumed run makes the same choice.
    """
    if method.remeasure >= 1:
        return torch.arange(prompts)
    seed = method.seed * 1_000_003 + step + rank * 7_368_787
    generator = torch.Generator().manual_seed(seed % 2**63)
    count = max(1, round(method.remeasure * prompts))
    return torch.randperm(prompts, generator=generator)[:count].sort().values


def change_stats(
    mask: Tensor,
    logprobs_before: Tensor,
    logprobs_after: Tensor,
    entropies_before: Tensor,
    entropies_after: Tensor,
) -> Tensor:
    """Per-rollout sums that `post_update_change` needs and ranks exchange: (B, 4) float64.

    Columns: tokens, entropy before (nats), weights of positions, weighted entropy after (nats).
    All arguments are (B, T); the mask is true on response tokens.
    """
    inside = mask.detach().cpu().bool()

    def read(values: Tensor) -> Tensor:
        return torch.where(inside, values.detach().cpu().double(), 0.0)

    ratio = read(logprobs_after) - read(logprobs_before)
    # a position is reached by the tokens before it
    prefix = ratio.cumsum(1) - ratio
    weights = prefix.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp() * inside
    columns = [inside.double(), read(entropies_before), weights, weights * read(entropies_after)]
    return torch.stack([column.sum(1) for column in columns], dim=1)


def post_update_change(stats: Tensor, group: Tensor | None = None) -> tuple[float, float]:
    """Change of the mean entropy, nats per token, and its standard error, infinite for one prompt.

    Args:
        stats: (B, 4) of `change_stats`, of all ranks.
        group: (B,), an integer for each prompt; None takes each rollout as independent.

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
    return new - old, clustered_stderr(parts, tokens > 0, group)


def report_running_change(
    method: Method, stats: Tensor, done: Tensor, group: Tensor
) -> dict[str, float]:
    """As `report_change`, from rollouts scored while the batch is used, before their update.

    A change in proportion to the share of the updates that is done is fitted to all of them, each
    share with its standard error, and reported for the whole.

    Args:
        method: that decided on the batch.
        stats: (B, 4) of `change_stats`, of all processes.
        done: (B,), share of the batch's updates done before, above 0.
        group: (B,), an integer for each prompt.
    """
    weight = fitted = 0.0
    for share in torch.unique(done).tolist():
        rows = done == share
        if float(stats[rows, 0].sum()) > 0:
            change, stderr = post_update_change(stats[rows], group[rows])
            if 0 < stderr < math.inf:
                weight += (share / stderr) ** 2
                fitted += share * change / stderr**2
    if weight == 0:
        return {}
    change, stderr = fitted / weight, weight**-0.5
    method.post_update(change, stderr, trained=False)
    key = "entropy/post_update_change"
    return {key: change, f"{key}_stderr": stderr}


def report_change(
    method: Method, stats: Tensor, trained: Tensor, group: Tensor
) -> dict[str, float]:
    """Tell a method by `post_update` how far its last batch moved the entropy; return what to log.

    Args:
        method: that decided on the batch.
        stats: (B, 4) of `change_stats`, of all processes.
        trained: (B,) advantages as trained on; 0 on rejected rollouts.
        group: (B,), an integer for each prompt.
    """
    _, index = torch.unique(group, return_inverse=True)
    size = torch.zeros(int(index.max()) + 1, dtype=torch.float64)
    size = size.index_add_(0, index, trained.detach().cpu().double().abs())
    left_out = (size == 0)[index]
    apart = int((size == 0).sum()) >= _FEWEST_PROMPTS
    parts = [(left_out, False), (~left_out, True)] if apart else [(torch.ones_like(left_out), True)]
    metrics: dict[str, float] = {}
    for rows, trained_on in parts:
        if float(stats[rows, 0].sum()) > 0:
            change, stderr = post_update_change(stats[rows], group[rows])
            method.post_update(change, stderr, trained=trained_on)
            key = "entropy/post_update_change"
            metrics = metrics or {key: change, f"{key}_stderr": stderr}
    return {key: value for key, value in metrics.items() if math.isfinite(value)}
