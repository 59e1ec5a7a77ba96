"""A soft gate on the importance ratio in place of the clip."""

from __future__ import annotations

from typing import Any

from entrocraft.methods.base import Baseline, baseline, checked

__all__ = ["SAPO"]


@baseline("sapo")
class SAPO(Baseline):
    """``L = -mean_t sigmoid(tau (r - 1)) 4 / tau A``, tau by the sign of A.

    Source: SAPO (arXiv 2511.20347) in TRL's words: `loss_type="sapo"` with `sapo_temperature_pos`
    1.0 and `sapo_temperature_neg` 1.05; verl has the same gate.

    Args:
        positive: tau where A > 0.
        negative: tau elsewhere; larger lets go of off-policy tokens earlier.
    """

    coefficient = "negative"
    losses = ("sapo",)
    needs_updates = True

    def __init__(
        self, schedule: Any = None, *, positive: float = 1.0, negative: float = 1.05
    ) -> None:
        super().__init__(schedule)
        self.positive = checked(self, "positive", positive, above=0)
        self.negative = checked(self, "negative", negative, above=0)

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {
            "loss_type": "sapo",
            "sapo_temperature_pos": self.positive,
            "sapo_temperature_neg": self.negative,
        }
