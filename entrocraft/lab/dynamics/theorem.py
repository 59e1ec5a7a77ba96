"""The condition of the Entrocraft paper's theorem, with the real output-space baseline.

Theorem 1 (Li et al., 2026, arXiv 2604.26326): an update of sampled token k with advantage A moves
the entropy against the sign of A, ``A dH <= 0``, whenever ``log p_k > OSB``, with the output-space
baseline ``OSB = -sum_{i != k} (dp_i / dp_k) log p_i``.

A policy-gradient step on a softmax moves the logits by ``dz = eta A (e_k - p)``, so with
``q = sum_i p_i^2``

    dp_i = eta A p_i (q - p_i - p_k)   for i != k,      dp_k = eta A p_k (1 - 2 p_k + q).

As the dp sum to 0, ``dH = -sum_i dp_i log p_i = -dp_k (log p_k - OSB)``, and dp_k has the sign of
A: for this update the condition is the same as ``A dH < 0``. With ``L = sum_i p_i^2 log p_i``,

    OSB = [L - p_k^2 log p_k - (p_k - q) (H + p_k log p_k)] / [p_k (1 - 2 p_k + q)].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**22


@torch.no_grad()
def output_space_baseline(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability and output-space baseline of (n,) tokens with (n, V) logits, nats.

    In float64: where the policy is nearly certain the baseline is a quotient of two vanishing
    numbers. A token of probability 1 cannot move; its baseline is set to the limit, minus infinity.
    """
    rows = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    parts = zip(logits.split(rows), tokens.split(rows), strict=True)
    found = [_baseline(part.double() / temperature, k[:, None].long()) for part, k in parts]
    logprob, baseline = torch.cat(found, dim=1)
    return logprob, baseline


def _baseline(logits: Tensor, tokens: Tensor) -> Tensor:
    """(n, V) float64 logits and (n, 1) tokens -> log p_k and OSB, (2, n)."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    p_log_p = torch.where(p > 0, p * log_p, 0.0)
    chosen = log_p.gather(-1, tokens)[:, 0]
    # sums over the other tokens only: nothing cancels when p_k is close to 1
    others = torch.ones_like(p).scatter_(-1, tokens, 0.0)
    square, entropy, mixed, rest = (
        (others * part).sum(-1) for part in (p.square(), -p_log_p, p * p_log_p, p)
    )
    # dp_k / (eta A p_k), and (p_k - q), each with 1 - p_k = rest
    grows = rest.square() + square
    spread = chosen.exp() * rest - square
    baseline = (mixed - spread * entropy) / (chosen.exp() * grows)
    return torch.stack([chosen, torch.where(grows > 0, baseline, -torch.inf)])


def check_theorem(
    logprob: Tensor, baseline: Tensor, sensitivity: Tensor, mask: Tensor, advantages: Tensor
) -> list[dict[str, Any]]:
    """Count tokens and sequences that meet the condition, in a row for each sign of the advantage.

    All but the advantages (B,) are (B, T); `sensitivity` is the logit level's entropy change per
    unit of advantage. A sequence is `met` where the paper's Theorem 2 holds, sum_t log p >= sum_t
    OSB, and `opposed` where A times the summed entropy change of its tokens is not positive.
    """
    met = (logprob > baseline) & mask
    found = []
    for name, chosen in (("positive", advantages > 0), ("negative", advantages < 0)):
        rows = chosen & mask.any(1)
        counts = {
            "tokens": mask,
            "tokens_met": met,
            "sequences": mask.any(1),
            "sequences_all_met": (met | ~mask).all(1),
            "sequences_met": torch.where(mask, logprob - baseline, 0.0).sum(1) >= 0,
            "sequences_opposed": torch.where(mask, sensitivity, 0.0).sum(1) <= 0,
        }
        found.append({"advantage": name} | {key: int(c[rows].sum()) for key, c in counts.items()})
    return found
