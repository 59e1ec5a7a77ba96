"""EntroPIC, as published and as in Entrocraft's public code: a PI controller of the entropy."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from entrocraft.method import Measurement, number
from entrocraft.methods.reinforce import RewardMethod
from entrocraft.methods.token_weights import UNCLIPPED, TokenMethod
from entrocraft.rollouts import RolloutStats, TokenBatch

__all__ = ["EntroPIC", "EntroPICFork"]


@dataclass(eq=False)
class EntroPIC(TokenMethod):
    """As published, with H the entropy of a micro-batch, e = H - h, p a token's probability::

        alpha = clip(Kp e + Ki I, -1, 1);   then   I <- I + e * (micro-batch / mini-batch)
        L = L_clip + alpha mean_t(-r |A| [p > threshold])

    Likely tokens weigh (1 + alpha) with A > 0, (1 - alpha) with A < 0; the second term has no clip.

    Source: EntroPIC (arXiv 2511.15248); repository yk7333/EntroPIC: Kp 1, Ki 0.01, threshold 0.95,
    target 0.1 in its script. There H and I are each device's own, here of all processes.

    Args:
        kp: gain per nat of error.
        ki: gain per nat of summed error.
        threshold: tokens of a higher probability take part.
        low: PPO's clip below 1 - low.
        high: PPO's clip above 1 + high.
    """

    name = "entropic"
    follows = True
    own_target = 0.1
    coefficient = "kp"
    trainer_options = UNCLIPPED  # `reweigh` clips the first term only
    memory = ("sum", "alpha")
    _sum = _alpha = 0.0

    kp: float = number(1.0)
    ki: float = number(0.01)
    threshold: float = number(0.95, low=0, high=1)
    low: float = number(0.2, low=0)
    high: float = number(0.2, low=0)

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        advantages, target = tokens.token_advantages, self.target(tokens.step)
        assert target is not None, "the decision on the batch knows the initial entropy"
        entropy = tokens.mean(tokens.entropies, none=math.nan)
        if math.isnan(entropy):
            return advantages  # all masked: nothing was measured
        error = entropy - target
        self._alpha = min(1.0, max(-1.0, self.kp * error + self.ki * self._sum))
        self._sum += error * tokens.share
        policy = torch.where(tokens.clipped(self.low, self.high), 0.0, advantages)
        likely = tokens.logprobs > (math.log(self.threshold) if self.threshold else -math.inf)
        return policy + self._alpha * advantages.abs() * likely

    def report(self) -> dict[str, float]:
        return {"entropy/alpha": self._alpha}


@dataclass(eq=False)
class EntroPICFork(RewardMethod):
    """As in Entrocraft's code, with e = H - h of the whole batch and rewards 1 and -1::

        alpha = I + Kp e;   then   I <- I + Ki e
        A = 1 + alpha for a success,   -(1 - alpha) for a failure

    Source: the public code of Entrocraft (arXiv 2604.26326), Kp 1, Ki 0.01, target 0.5. Unlike the
    published method (`entropic`) it uses raw rewards, does not bound alpha and takes all tokens.

    Args:
        kp: gain per nat of error.
        ki: gain per nat of summed error.
        success: smallest reward of a success.
    """

    name = "entropic_fork"
    follows = True
    own_target = 0.5
    coefficient = "kp"
    memory = ("integral", "alpha")
    _integral = _alpha = 0.0

    kp: float = number(1.0)
    ki: float = number(0.01)

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        right, wrong = self.successes(stats)
        self._alpha = self._integral + self.kp * seen.error
        self._integral += self.ki * seen.error
        return (1 + self._alpha) * right.double() - (1 - self._alpha) * wrong.double()

    def report(self) -> dict[str, float]:
        return {"entropy/alpha": self._alpha}
