"""Effects: the predicted change of policy entropy, of a token and of a rollout.

A policy-gradient step on a rollout with advantage A changes the mean entropy by ``A w / N`` times
the sum of its tokens' *sensitivity* (nats per unit of advantage), up to one gain that all rollouts
share; w is what the loss puts on the rollout's tokens, 1 on average. The levels differ in what they
know of a token:

=======  ======================  ============================================================
level    sensitivity of token t  needs
=======  ======================  ============================================================
sign     -1                      the advantage alone (the paper's view)
sampled  -(log p_t - mean)       sampled log-probs; the covariance of Cui et al. (2025)
logit    -(S_t - M_t)            one forward pass, three numbers a token
=======  ======================  ============================================================

with ``S_t = p_k (log p_k + H)`` for the sampled token k and ``M_t = sum_i p_i^2 (log p_i + H)``,
its mean under the policy. For a tabular softmax ``dH = -eta A (S_t - M_t)`` is exact to first
order: a *likely* token that is rewarded lowers entropy, an *unlikely* one raises it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from entrocraft.rollouts import RolloutStats

__all__ = [
    "LEVELS",
    "TOKEN_LEVELS",
    "BatchMeans",
    "TokenStatistics",
    "rollout_effects",
    "token_statistics",
]

LEVELS = ("sign", "sampled", "logit")
"""Effect levels by name, cheapest first."""

TOKEN_LEVELS = ("logit",)
"""Levels whose (B, T) sensitivity the trainer's adapter has to put into the batch."""

_CHUNK_ELEMENTS = 2**24


class TokenStatistics(NamedTuple):
    """Of each token: log-probability and entropy in nats, sensitivity per unit of advantage."""

    logprob: Tensor
    entropy: Tensor
    sensitivity: Tensor


@torch.no_grad()
def token_statistics(
    states: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    project: Callable[[Tensor], Tensor] | None = None,
    chunk: int | None = None,
) -> TokenStatistics:
    """Log-probability, entropy and logit-level sensitivity of every token.

    Works in chunks over positions, so that beyond its input it never holds a (B, T, V) tensor.

    Args:
        states: (..., V) logits, or (..., D) hidden states when `project` maps them to logits.
        tokens: (...) sampled token ids; the results are float32 tensors of their shape.
        temperature: logits are divided by it, as in sampling.
        project: (n, D) -> (n, V), the language-model head; None if `states` are logits.
        chunk: positions at a time; None keeps a chunk near 16 million numbers.

    Raises:
        ValueError: shapes that do not fit, or a temperature or chunk that is not above 0.
    """
    if states.shape[:-1] != tokens.shape:
        raise ValueError(
            f"states have shape {tuple(states.shape)} and tokens {tuple(tokens.shape)}; give one "
            "token for each position"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 position, got {chunk}")
    flat_tokens = tokens.reshape(-1).long()
    out = torch.empty(3, len(flat_tokens), dtype=torch.float32, device=states.device)
    width = states.shape[-1] if project is None else None
    start = 0
    for block in _blocks(states):
        while len(block):
            # the vocabulary behind `project` is known after its first position
            rows = chunk or (max(1, _CHUNK_ELEMENTS // width) if width else 1)
            part, block = block[:rows], block[rows:]
            logits = part if project is None else project(part)
            width = logits.shape[-1]
            here = slice(start, start + len(part))
            out[:, here] = _chunk_statistics(logits.float() / temperature, flat_tokens[here])
            start += len(part)
    return TokenStatistics(*(row.view(tokens.shape) for row in out))


def _blocks(states: Tensor) -> Iterator[Tensor]:
    """Cut (..., V) into (n, V) views, in order; reshape would copy a slice like logits[:, :-1]."""
    try:
        flat = states.view(-1, states.shape[-1])
    except RuntimeError:
        for part in states:
            yield from _blocks(part)
    else:
        yield flat


def _chunk_statistics(logits: Tensor, tokens: Tensor) -> Tensor:
    """(n, V) float logits and (n,) tokens -> (3, n)."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    # 0 * -inf is 0 here: a token of probability 0 (a masked logit) adds nothing to the entropy
    p_log_p = torch.where(p > 0, p * log_p, torch.zeros_like(p))
    entropy = -p_log_p.sum(-1)
    baseline = (p * p_log_p).sum(-1) + p.square().sum(-1) * entropy
    chosen = log_p.gather(-1, tokens[:, None])[:, 0]
    p_chosen = chosen.exp()
    surprise = torch.where(p_chosen > 0, p_chosen * (chosen + entropy), torch.zeros_like(chosen))
    return torch.stack([chosen, entropy, baseline - surprise])


@dataclass(frozen=True)
class BatchMeans:
    """Whole-batch numbers by which a part of it is scored.

    The number of response tokens N, and the token means of `RolloutStats.token_weight` and of the
    weighted log-probabilities (nats).
    """

    tokens: float
    weight: float
    logprob: float

    @classmethod
    def of(cls, stats: RolloutStats) -> BatchMeans:
        """Take the means of a batch.

        Raises:
            ValueError: no response token, or token weights that are all 0.
        """
        tokens = stats.total_tokens
        if not tokens:
            raise ValueError("no response token is inside the mask of this batch")
        if stats.token_weight is None:
            return cls(tokens, 1.0, float(stats.logprob.sum()) / tokens)
        weight = float((stats.token_weight * stats.tokens).sum()) / tokens
        if not weight > 0:
            raise ValueError(
                f"token_weight sums to {weight * tokens:g} over the tokens, but must be above 0; "
                "give None if all are equal"
            )
        logprob = float((stats.token_weight * stats.logprob).sum()) / (tokens * weight)
        return cls(tokens, weight, logprob)


def rollout_effects(stats: RolloutStats, level: str, means: BatchMeans | None = None) -> Tensor:
    """Predicted change of the mean entropy if rollout j is kept with weight 1: (B,) float64, nats.

    ``effect_j = A_j w_j / N * sum_t sensitivity_t``, N the response tokens of the batch and w_j
    what the loss puts on a token of the rollout (`RolloutStats.token_weight`), 1 on token average;
    true up to one gain that all rollouts share. `means` are those of the batch that the rollouts
    belong to; None: they are the whole of it.

    Raises:
        ValueError: an unknown level, or one that needs the batch's sensitivity and finds none.
    """
    means = BatchMeans.of(stats) if means is None else means
    tokens, logprob = stats.advantage_tokens, stats.advantage_logprob
    if tokens is None or logprob is None:
        tokens, logprob = stats.tokens, stats.logprob
    if level == "sign":
        sensitivity = -tokens
    elif level == "sampled":
        sensitivity = -(logprob - means.logprob * tokens)
    elif level in TOKEN_LEVELS:
        if stats.sensitivity is None:
            raise ValueError(
                f"effect level {level!r} needs RolloutBatch.sensitivity (B, T), see "
                "effects.token_statistics; or choose effect='sampled', which needs log-probs only"
            )
        sensitivity = stats.sensitivity
    else:
        raise ValueError(f"unknown effect level {level!r}; choose one of {', '.join(LEVELS)}")
    weight = 1.0 if stats.token_weight is None else stats.token_weight / means.weight
    return stats.advantages * sensitivity * weight / means.tokens
