"""Clipped importance weights, no token left without gradient."""

from __future__ import annotations

from typing import Any

from entrocraft.methods.base import Baseline, baseline, checked

__all__ = ["CISPO"]


@baseline("cispo")
class CISPO(Baseline):
    """``L = -mean_t sg(min(r, high)) A log pi``: the weight is clipped, the gradient stays.

    Source: MiniMax-M1 (arXiv 2506.13585). Done by TRL's `loss_type="cispo"`, whose `epsilon_high`
    bounds the ratio itself; its advice for this loss, 5, is the default.

    Args:
        high: largest importance weight.
    """

    coefficient = "high"
    losses = ("cispo",)
    needs_updates = True

    def __init__(self, schedule: Any = None, *, high: float = 5.0) -> None:
        super().__init__(schedule)
        self.high = checked(self, "high", high, above=0)

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {"loss_type": "cispo", "epsilon_high": self.high}
