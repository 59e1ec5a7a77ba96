"""A constant entropy bonus."""

from __future__ import annotations

from typing import Any

from entrocraft.methods.base import Baseline, baseline, checked

__all__ = ["EntropyBonus"]


@baseline("entropy_bonus")
class EntropyBonus(Baseline):
    """``L = L_policy - c mean_t H_t``, the mean over response tokens, with gradient through H.

    Source: as old as policy gradients (Williams & Peng, 1991; A3C, arXiv 1602.01783). Done by TRL's
    own `entropy_coef`. The default 0.003 is what the authors of Entrocraft (arXiv 2604.26326) gave
    their GRPO and GSPO baselines; verl's default was 0.001 until it became 0 in May 2025.

    Args:
        bonus: c; negative values push entropy down.
    """

    coefficient = "bonus"

    def __init__(self, schedule: Any = None, *, bonus: float = 0.003) -> None:
        super().__init__(schedule)
        self.bonus = checked(self, "bonus", bonus)

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {"entropy_coef": self.bonus, "use_adaptive_entropy": False}
