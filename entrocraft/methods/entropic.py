"""A PI loop on the weights of likely tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from entrocraft.methods.base import UNCLIPPED, TokenBaseline, baseline, checked
from entrocraft.rollouts.tokens import TokenBatch

__all__ = ["EntroPIC"]


@baseline("entropic")
class EntroPIC(TokenBaseline):
    """EntroPIC as published: successes count more when entropy is too high, failures when too low.

    With H the entropy of a micro-batch, e = H - h, p the token's probability::

        alpha = clip(Kp e + Ki I, -1, 1);   then   I <- I + e * (micro-batch / mini-batch)
        L = L_clip + alpha mean_t(-r |A| [p > threshold])

    so that likely tokens weigh (1 + alpha) with A > 0 and (1 - alpha) with A < 0. The added term is
    not clipped.

    Source: EntroPIC (arXiv 2511.15248); repository yk7333/EntroPIC: Kp 1, Ki 0.01, threshold 0.95,
    target 0.1 in its script; proportional alone is Ki 0. It takes the mean over each device's own
    tokens and keeps I per device; here both are of all processes, which all hold the same I.

    Args:
        kp: gain per nat of error.
        ki: gain per nat of summed error.
        threshold: tokens of a higher probability take part.
        low: PPO's clip below 1 - low.
        high: PPO's clip above 1 + high.
    """

    follows = True
    own_target = 0.1
    coefficient = "kp"

    def __init__(
        self,
        schedule: Any = None,
        *,
        kp: float = 1.0,
        ki: float = 0.01,
        threshold: float = 0.95,
        low: float = 0.2,
        high: float = 0.2,
    ) -> None:
        super().__init__(schedule)
        self.kp = checked(self, "kp", kp)
        self.ki = checked(self, "ki", ki)
        self.threshold = checked(self, "threshold", threshold, 0, 1)
        self.low = checked(self, "low", low, 0)
        self.high = checked(self, "high", high, 0)
        self._sum = 0.0
        self._alpha = 0.0

    @property
    def trainer_options(self) -> dict[str, Any]:
        # the clip has to leave the added term alone, so it is done here
        return dict(UNCLIPPED)

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        target = self.target(tokens.step)
        assert target is not None, "the decision on the batch anchored it"
        entropy = tokens.mean(tokens.entropies, none=math.nan)
        if math.isnan(entropy):
            return tokens.token_advantages  # all masked: nothing was measured
        error = entropy - target
        self._alpha = min(1.0, max(-1.0, self.kp * error + self.ki * self._sum))
        self._sum += error * tokens.share
        advantages = tokens.token_advantages
        policy = torch.where(tokens.clipped(self.low, self.high), 0.0, advantages)
        likely = tokens.logprobs > (math.log(self.threshold) if self.threshold else -math.inf)
        return policy + self._alpha * advantages.abs() * likely

    def report(self) -> dict[str, float]:
        return {"entropy/alpha": self._alpha}

    def memory(self) -> dict[str, Any]:
        return {"sum": self._sum, "alpha": self._alpha}

    def recall(self, memory: dict[str, Any]) -> None:
        self._sum, self._alpha = float(memory["sum"]), float(memory["alpha"])
