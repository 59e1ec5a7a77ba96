"""Row dropping in TRL: rollouts without a gradient leave the update, which then costs less.

TRL's losses are sums over rollouts, divided by their number or by that of their tokens. Without the
rollouts whose advantage is 0, times the share that is left, a loss has the gradient that it had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from entrocraft.trl.adapter import response_mask, take_rows
from entrocraft.trl.head import fuses_loss

__all__ = ["RowDropping"]

_DIVIDES_BY = {
    "rollouts": ("grpo", "sapo", "dr_grpo", "luspo", None),  # RLOO has no loss types
    "tokens": ("bnpo",),
    "a number of its own": ("dapo", "cispo", "vespo"),  # tokens of the whole batch
}


class RowDropping:
    """Computes TRL's loss without the rollouts of a micro-batch whose advantage is 0.

    Micro-batches and gradient accumulation stay as they are. All processes keep as many rollouts of
    a micro-batch as the one that needs most, and at least one.

    Raises:
        ValueError: a trainer whose loss has terms that do not depend on advantages.
    """

    def __init__(self, trainer: Any) -> None:
        loss = getattr(trainer, "loss_type", None)
        found = [by for by, losses in _DIVIDES_BY.items() if loss in losses]
        others = {
            f"loss_type={loss!r}": not found,
            "beta (a KL term)": loss is not None and trainer.beta != 0,
            "an entropy bonus": getattr(trainer, "_entropy_bonus_enabled", False),
            "top_entropy_quantile": getattr(trainer, "top_entropy_quantile", 1.0) < 1,
            "a router's auxiliary loss": getattr(trainer, "aux_loss_enabled", False),
            "use_liger_kernel": fuses_loss(trainer),
        }
        if reasons := [name for name, present in others.items() if present]:
            raise ValueError(
                "drop_rejected=True leaves rollouts out of the loss, which changes nothing only "
                f"where all of it depends on their advantages; this trainer has {reasons[0]}. "
                "Leave drop_rejected out"
            )
        self._by = found[0]
        self._crop = loss != "luspo"  # TRL 1.5 averages over its padding too
        self._accelerator = trainer.accelerator

    def loss(
        self, compute: Callable[[Any, dict[str, Any]], Tensor], model: Any, inputs: dict[str, Any]
    ) -> Tensor:
        """TRL's loss `compute(model, inputs)` of the rollouts that carry a gradient."""
        if inputs.get("pixel_values") is not None:
            raise ValueError("drop_rejected=True does not support images; set drop_rejected=False")
        rows = self._rows(inputs["advantages"])
        kept = take_rows(inputs, rows, self._crop)
        loss = compute(model, kept)
        if self._by == "rollouts":
            return loss * (len(rows) / len(inputs["advantages"]))
        if self._by == "tokens":
            return loss * (response_mask(kept).sum() / response_mask(inputs).sum().clamp(min=1))
        return loss

    def _rows(self, advantages: Tensor) -> Tensor:
        """Numbers of the rollouts that stay, in their order."""
        carries = (advantages.reshape(len(advantages), -1) != 0).any(1)
        counts = self._accelerator.gather(carries.sum().clamp(min=1).reshape(1))
        count = int(counts.max())
        # those with a gradient first, then as many others as are needed
        return torch.argsort(~carries, stable=True)[:count].sort().values
