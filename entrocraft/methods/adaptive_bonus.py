"""An entropy bonus whose coefficient follows the entropy."""

from __future__ import annotations

from typing import Any

from entrocraft.methods.base import Baseline, Reading, baseline, checked

__all__ = ["AdaptiveBonus"]


@baseline("adaptive_bonus")
class AdaptiveBonus(Baseline):
    """Skywork-OR1's adaptive entropy coefficient, as TRL has it.

    With H the entropy of the last optimizer step and h the target::

        c <- min(c + delta, highest) if H <= h else max(c - delta, lowest)
        L = L_policy - (c if H <= h else 0) mean_t H_t

    It only ever raises entropy: above the target the bonus is switched off.

    Source: He et al., Skywork-OR1 (arXiv 2505.22312); here TRL's `use_adaptive_entropy` with TRL's
    defaults, and our schedule as `entropy_target`. TRL keeps the coefficient in its checkpoints.
    Skywork's scripts use delta 0.0001 and at most 0.005 for 7B and 32B models; their code compares
    H < h and acts on the present step's entropy, TRL's on the last one's.

    Args:
        delta: change of the coefficient per optimizer step.
        lowest: smallest coefficient.
        highest: largest coefficient.
    """

    follows = True
    own_target = 0.2
    coefficient = "delta"

    def __init__(
        self,
        schedule: Any = None,
        *,
        delta: float = 0.005,
        lowest: float = 0.0,
        highest: float = 1.0,
    ) -> None:
        super().__init__(schedule)
        self.delta = checked(self, "delta", delta, above=0)
        self.lowest = checked(self, "lowest", lowest, 0)
        self.highest = checked(self, "highest", highest, self.lowest)

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {
            "use_adaptive_entropy": True,
            "entropy_coef": self.lowest,
            "entropy_coef_delta": self.delta,
            "entropy_coef_min": self.lowest,
            "entropy_coef_max": self.highest,
        }

    def settings(self, reading: Reading) -> dict[str, float]:
        assert reading.target is not None
        return {"entropy_target": reading.target}
