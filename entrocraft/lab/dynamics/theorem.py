"""The condition of the Entrocraft paper's theorem, with the real output-space baseline.

Theorem 1 (Li et al., 2026, arXiv 2604.26326): an update of sampled token k with advantage A moves
the entropy against the sign of A, ``A dH <= 0``, whenever ``log p_k > OSB``, with the output-space
baseline ``OSB = -sum_{i != k} (dp_i / dp_k) log p_i``.

The baseline depends on how an update spreads probability over the other tokens. A policy-gradient
step on a softmax moves the logits by ``dz = eta A (e_k - p)``, so with ``q = sum_i p_i^2``

    dp_i = eta A p_i (q - p_i - p_k)   for i != k,      dp_k = eta A p_k (1 - 2 p_k + q).

dp_k has the sign of A, and ``dH = -sum_i dp_i log p_i = -dp_k (log p_k - OSB)``, as the dp sum to
0: under the real softmax update the condition is the same statement as ``A dH < 0``.
In closed form, with ``L = sum_i p_i^2 log p_i``,

    OSB = [L - p_k^2 log p_k - (p_k - q) (H + p_k log p_k)] / [p_k (1 - 2 p_k + q)].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_theorem", "output_space_baseline"]

_CHUNK_ELEMENTS = 2**22


@torch.no_grad()
def output_space_baseline(
    states: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    project: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability and output-space baseline of every token.

    Works in chunks over positions, in float64: where the policy is nearly certain the baseline is
    a quotient of two vanishing numbers. A token of probability 1 cannot move; its baseline is set
    to the limit, minus infinity.

    Args:
        states: (n, V) logits, or (n, D) hidden states when `project` maps them to logits.
        tokens: (n,) sampled token ids.
        temperature: logits are divided by it, as in sampling.
        project: (m, D) -> (m, V), the language-model head; None if `states` are logits.

    Returns:
        (log p_k, OSB), (n,) float64 each, nats.
    """
    parts = []
    start, rows = 0, 1
    while start < len(states):
        part = states[start : start + rows]
        logits = (part if project is None else project(part)).double() / temperature
        parts.append(_baseline(logits, tokens[start : start + rows]))
        start += rows
        rows = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    if not parts:
        empty = torch.zeros(0, dtype=torch.float64, device=states.device)
        return empty, empty
    logprob, baseline = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return logprob, baseline


def _baseline(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(n, V) float64 logits and (n,) tokens -> log p_k and OSB, (n,) each."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    p_log_p = torch.where(p > 0, p * log_p, torch.zeros_like(p))
    chosen = log_p.gather(-1, tokens[:, None].long())[:, 0]
    p_k = chosen.exp()
    # stats over the other tokens only: nothing cancels when p_k is close to 1
    others = torch.ones_like(p).scatter_(-1, tokens[:, None].long(), 0.0)
    square, entropy, mixed = (
        (others * part).sum(-1) for part in (p.square(), -p_log_p, p * p_log_p)
    )
    rest = (others * p).sum(-1)
    # dp_k / (eta A p_k), and (p_k - q), each with 1 - p_k = rest
    grows = rest.square() + square
    spread = p_k * rest - square
    baseline = (mixed - spread * entropy) / (p_k * grows)
    return chosen, torch.where(grows > 0, baseline, torch.full_like(baseline, -torch.inf))


def check_theorem(
    logprob: Tensor, baseline: Tensor, opposition: Tensor, mask: Tensor, advantages: Tensor
) -> dict[str, dict[str, float]]:
    """Count tokens and sequences that meet the condition, by the sign of the advantage.

    Args:
        logprob: (B, T), log p_k, nats.
        baseline: (B, T), OSB, nats.
        opposition: (B, T), S_k - M: minus the entropy change per unit of advantage.
        mask: (B, T) bool, response tokens.
        advantages: (B,); rollouts with 0 are left out, as no update comes of them.

    Returns:
        "positive" and "negative" -> counts: `tokens`; `tokens_met`, log p_k > OSB; `sequences`;
        `sequences_all_met`, every token meets it; `sequences_met`, the paper's Theorem 2:
        sum_t log p >= sum_t OSB; `sequences_opposed`, A times the summed entropy change of the
        tokens is not positive; `sequences_met_opposed`, both; and the stats `logprob` and
        `baseline` over tokens (those with a finite baseline).
    """
    met = (logprob > baseline) & mask
    zero = torch.zeros_like(logprob)
    gap = torch.where(mask, logprob - baseline, zero).sum(1)
    summed = torch.where(mask, opposition.to(zero.dtype), zero).sum(1)
    counted = mask & torch.isfinite(baseline)
    found = {}
    for name, chosen in (("positive", advantages > 0), ("negative", advantages < 0)):
        rows = chosen & mask.any(1)
        values: dict[str, Any] = {
            "tokens": mask[rows].sum(),
            "tokens_met": met[rows].sum(),
            "sequences": rows.sum(),
            "sequences_all_met": (met | ~mask)[rows].all(1).sum(),
            "sequences_met": (gap[rows] >= 0).sum(),
            "sequences_opposed": (summed[rows] >= 0).sum(),
            "sequences_met_opposed": ((gap >= 0) & (summed >= 0))[rows].sum(),
            "tokens_counted": counted[rows].sum(),
            "logprob": torch.where(counted, logprob, zero)[rows].sum(),
            "baseline": torch.where(counted, baseline, zero)[rows].sum(),
        }
        found[name] = {key: float(value) for key, value in values.items()}
    return found
