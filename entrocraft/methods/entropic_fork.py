"""EntroPIC as the public code of Entrocraft has it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from entrocraft.methods.base import Reading, RewardBaseline, baseline, checked
from entrocraft.rollouts import RolloutStats
from entrocraft.selection.rules import SUCCESS

__all__ = ["EntroPICFork"]


@baseline("entropic_fork")
class EntroPICFork(RewardBaseline):
    """The baseline that the Entrocraft paper calls EntroPIC.

    With e = H - h of the whole batch and rewards 1 and -1::

        alpha = I + Kp e;   then   I <- I + Ki e
        A = 1 + alpha for a success,   -(1 - alpha) for a failure

    Source: the public code of Entrocraft (arXiv 2604.26326), Kp 1, Ki 0.01, target 0.5. Unlike the
    published method (`entropic`) it uses raw rewards, does not bound alpha and takes all tokens.

    Args:
        kp: gain per nat of error.
        ki: gain per nat of summed error.
        success: smallest reward of a success.
    """

    follows = True
    own_target = 0.5
    coefficient = "kp"

    def __init__(
        self, schedule: Any = None, *, kp: float = 1.0, ki: float = 0.01, success: float = SUCCESS
    ) -> None:
        super().__init__(schedule, success=success)
        self.kp = checked(self, "kp", kp)
        self.ki = checked(self, "ki", ki)
        self._integral = 0.0
        self._alpha = 0.0

    def advantages(self, stats: RolloutStats, reading: Reading) -> Tensor:
        right, wrong = self.successes(stats)
        self._alpha = self._integral + self.kp * reading.error
        self._integral += self.ki * reading.error
        return (1 + self._alpha) * right.double() - (1 - self._alpha) * wrong.double()

    def report(self) -> dict[str, float]:
        return {"entropy/alpha": self._alpha}

    def memory(self) -> dict[str, Any]:
        return {"integral": self._integral, "alpha": self._alpha}

    def recall(self, memory: dict[str, Any]) -> None:
        self._integral, self._alpha = float(memory["integral"]), float(memory["alpha"])
