"""GRPO without its two normalizers."""

from __future__ import annotations

from typing import Any

from entrocraft.methods.base import Baseline, baseline

__all__ = ["DrGRPO"]


@baseline("dr_grpo")
class DrGRPO(Baseline):
    """``A = R - mean_group R``; loss summed over tokens and divided by a constant length.

    Source: Liu et al., Understanding R1-Zero-like training (arXiv 2503.20783). Done by TRL's
    `loss_type="dr_grpo"` (the constant is `max_completion_length`) and `scale_rewards="none"`. The
    paper's repository still divides by the standard deviation in its branch called GRPO.
    """

    losses = ("dr_grpo",)

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {"loss_type": "dr_grpo", "scale_rewards": "none"}
