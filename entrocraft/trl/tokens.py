"""Token-level methods inside TRL's loss.

TRL computes the present log-probabilities and entropies of a micro-batch in one method, and reads
the advantages after that. Between the two a method puts token advantages (b, T) in their place, and
may change what TRL's entropy bonus averages. The loss stays TRL's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from entrocraft.method import Method
from entrocraft.rollouts.tokens import TokenBatch
from entrocraft.trl.head import BackboneTap
from entrocraft.trl.options import apply_settings
from entrocraft.trl.signals import Signals

__all__ = ["TokenHook"]

_OLD_ENTROPIES = "entrocraft_old_entropies"
_CHUNK_ELEMENTS = 2**24


class TokenHook:
    """Hosts `reweigh` and `bonus_entropy` of one method in one trainer.

    Raises:
        ValueError: a trainer whose loss knows no tokens, or hides them.
    """

    def __init__(self, trainer: Any, method: Method) -> None:
        self.method = method
        self.scope = method.token_scope
        self._bonus = method.bonus_entropy if method.uses_bonus else None
        self._inputs: dict[str, Any] | None = None
        self._window: Tensor | None = None
        if not hasattr(trainer, "loss_type"):
            raise ValueError(
                f"the method {method.name!r} works token by token and {type(trainer).__name__} has "
                "one advantage for a sequence; use GRPOTrainer"
            )
        level = getattr(trainer, "importance_sampling_level", "token")
        if method.token_scope and level != "token":
            raise ValueError(
                f"the method {method.name!r} works token by token, and importance_sampling_level="
                f"{level!r} spreads each token's weight over its rollout; use 'token'"
            )
        if getattr(trainer, "use_liger_kernel", False) and hasattr(trainer, "compute_liger_loss"):
            raise ValueError(
                f"the method {method.name!r} works token by token inside TRL's loss, which Liger's "
                "fused loss replaces; set use_liger_kernel=False"
            )

    @classmethod
    def of(cls, trainer: Any, method: Method) -> TokenHook | None:
        """Return a hook if the method needs one."""
        return cls(trainer, method) if method.token_scope or method.uses_bonus else None

    def decided(self, trainer: Any, output: dict[str, Any], mask: Tensor, signals: Signals) -> None:
        """Take part in a decision: weigh the batch's tokens, or remember their entropies."""
        if self.scope == "batch":
            output["advantages"] = self._reweigh(
                trainer, output["advantages"], mask, signals, signals.logprobs, signals.entropies
            )
        elif self.scope == "update":
            output[_OLD_ENTROPIES] = signals.entropies

    def loss(self, trainer: Any, compute: Callable[..., Tensor], model: Any, inputs: Any) -> Tensor:
        """TRL's loss `compute(model, inputs)` with the method in it."""
        # a copy: with several iterations TRL comes back to the same dictionary
        self._inputs = dict(inputs)
        try:
            loss = compute(model, self._inputs)
        finally:
            self._inputs = None
        if self._bonus is not None and trainer.accelerator.sync_gradients:
            assert self._window is not None, "TRL's loss asked for entropies"
            total, count = trainer.accelerator.reduce(self._window, reduction="sum").tolist()
            self._window = None
            if count:
                apply_settings(trainer, self.method.stepped(total / count))
        return loss

    @property
    def inside(self) -> bool:
        """Whether TRL is computing a loss now and has not asked for log-probabilities yet."""
        return self._inputs is not None

    def forward(self, trainer: Any, compute: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """TRL's log-prob pass inside the loss; puts token advantages where it will read them."""
        inputs, self._inputs = self._inputs, None
        assert inputs is not None
        mask = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            mask = mask & inputs["tool_mask"].bool()
        if self._bonus is not None:
            tap = _BonusTap(trainer, mask.shape[1], self._bonus)
            with tap:
                out = compute(*args, **kwargs)
            values = tap.values()
            window = torch.stack([values.detach()[mask].sum(), mask.sum().to(values.dtype)])
            self._window = window if self._window is None else self._window + window
            out = (out[0], values, *out[2:])
        else:
            out = compute(*args, **kwargs)
        if self.scope == "update" and _OLD_ENTROPIES in inputs:
            logprobs = out[0].detach()
            old = inputs.get("old_per_token_logps")
            inputs["advantages"] = self._reweigh(
                trainer,
                inputs["advantages"],
                mask,
                Signals(logprobs, out[1].detach(), None),
                logprobs if old is None else old,
                inputs[_OLD_ENTROPIES],
            )
        return out

    def _reweigh(
        self,
        trainer: Any,
        advantages: Tensor,
        mask: Tensor,
        signals: Signals,
        old_logprobs: Tensor,
        old_entropies: Tensor,
    ) -> Tensor:
        def total(values: Tensor) -> Tensor:
            device = trainer.accelerator.device
            moved = values.to(device, torch.float32 if device.type == "mps" else values.dtype)
            return trainer.accelerator.reduce(moved, reduction="sum")

        batch = TokenBatch(
            step=trainer.state.global_step,
            advantages=advantages,
            mask=mask,
            logprobs=signals.logprobs,
            old_logprobs=old_logprobs,
            entropies=signals.entropies,
            old_entropies=old_entropies,
            sensitivity=signals.sensitivity,
            share=1 / trainer.args.gradient_accumulation_steps,
            total=total,
        )
        return self.method.reweigh(batch).to(advantages.dtype)


class _BonusTap(BackboneTap):
    """A function of each position's logits, with its gradient."""

    def __init__(self, trainer: Any, keep: int, bonus: Callable[[Tensor], Tensor]) -> None:
        super().__init__(trainer, keep)
        self._bonus = bonus
        self._parts: list[Tensor] = []

    def read(self, hidden: Tensor) -> None:
        flat = hidden.reshape(-1, hidden.shape[-1])
        rows = max(1, _CHUNK_ELEMENTS // self.model.get_output_embeddings().weight.shape[0])
        # computed anew on the way back, so that the logits of one chunk at a time are held
        parts = [
            checkpoint(self._value, flat[start : start + rows], use_reentrant=False)
            for start in range(0, len(flat), rows)
        ]
        self._parts.append(torch.cat(parts).view(hidden.shape[:2]))

    def _value(self, hidden: Tensor) -> Tensor:
        return self._bonus(self.project(hidden) / self.temperature)

    def values(self) -> Tensor:
        """(b, T)."""
        return torch.cat(self._parts)
