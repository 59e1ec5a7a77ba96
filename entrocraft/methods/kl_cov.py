"""A penalty on moving the tokens of the highest covariance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from entrocraft.methods.base import UNCLIPPED, TokenBaseline, baseline, checked
from entrocraft.methods.covariance import token_covariance
from entrocraft.rollouts.tokens import TokenBatch

__all__ = ["KLCov"]


@baseline("kl_cov")
class KLCov(TokenBaseline):
    """KL-Cov: ``L_t = -A r + beta |log p - log p_old|`` on the tokens of highest covariance.

    ``max(1, int(ratio * tokens))`` of them by `token_covariance`; elsewhere ``-A r``. Nothing is
    clipped. At the first update of a batch the penalty has no gradient, except where two passes
    differ by rounding: its slope is then 1 or -1, as in verl.

    Source: Cui et al., The Entropy Mechanism of RL (arXiv 2505.22617): 0.2 per cent for 7B and 0.02
    per cent for 32B models, beta 1; repository PRIME-RL/Entropy-Mechanism-of-RL. Here the defaults
    of verl's loss `kl_cov`: ratio 2e-4 as a fraction, but the paper's beta. The penalty enters as
    the token's share in the advantage, so its gradient is exact and its value is not in the loss.

    Args:
        ratio: share of the tokens with a penalty; 0 for none.
        beta: weight of the penalty.
    """

    coefficient = "ratio"
    needs_updates = True

    def __init__(self, schedule: Any = None, *, ratio: float = 2e-4, beta: float = 1.0) -> None:
        super().__init__(schedule)
        self.ratio = checked(self, "ratio", ratio, 0, 1)
        self.beta = checked(self, "beta", beta, 0)

    @property
    def trainer_options(self) -> dict[str, Any]:
        return dict(UNCLIPPED)

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        advantages = tokens.token_advantages
        count = int(tokens.mask.sum())
        if count == 0 or self.ratio == 0:
            return advantages
        covariance = token_covariance(tokens).masked_fill(~tokens.mask, -math.inf)
        chosen = torch.zeros_like(tokens.mask).flatten()
        chosen[covariance.flatten().topk(max(1, int(self.ratio * count))).indices] = True
        # the loss turns -A r into -A r grad log p: what is subtracted here comes out as
        # beta sign(log p - log p_old) grad log p, the gradient of the penalty
        slope = self.beta * (tokens.logprobs - tokens.old_logprobs).sign() / tokens.ratio
        return advantages - torch.where(chosen.view_as(tokens.mask), slope, 0.0)
