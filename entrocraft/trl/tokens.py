"""Token-level methods inside TRL's loss.

TRL computes the present log-probabilities and entropies of a micro-batch in one method, and reads
the advantages after that. Between the two a method puts token advantages (b, T) in their place, and
may change what TRL's entropy bonus averages. The loss stays TRL's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from entrocraft.method import Method
from entrocraft.rollouts.tokens import TokenBatch
from entrocraft.trl.adapter import Signals, response_mask
from entrocraft.trl.head import LanguageModelHead, fuses_loss
from entrocraft.trl.options import apply_settings

__all__ = ["TokenHook"]

_OLD_ENTROPIES = "entrocraft_old_entropies"
_CHUNK_ELEMENTS = 2**24


class TokenHook:
    """Hosts `reweigh` and `bonus_entropy` of one method in one trainer.

    Raises:
        ValueError: a trainer whose loss is not per token, or is fused.
    """

    def __init__(self, trainer: Any, method: Method) -> None:
        self._trainer, self._method = trainer, method
        self._inputs: dict[str, Any] | None = None
        self._bonus_sums: Tensor | None = None
        works = f"the method {method.name!r} works token by token"
        if not hasattr(trainer, "loss_type"):
            raise ValueError(
                f"{works} and {type(trainer).__name__} has one advantage for a sequence; use "
                "GRPOTrainer"
            )
        level = getattr(trainer, "importance_sampling_level", "token")
        if method.token_scope and level != "token":
            raise ValueError(
                f"{works}, and importance_sampling_level={level!r} spreads each token's weight "
                "over its rollout; use 'token'"
            )
        if fuses_loss(trainer):
            raise ValueError(
                f"{works} inside TRL's loss, which Liger's fused loss replaces; set "
                "use_liger_kernel=False"
            )

    def decided(self, output: dict[str, Any], signals: Signals) -> None:
        """Take part in a decision: weigh the batch's tokens, or remember their entropies."""
        if self._method.token_scope == "batch":
            self._reweigh(output, signals, signals)
        elif self._method.token_scope == "update":
            output[_OLD_ENTROPIES] = signals.entropies

    def loss(self, compute: Callable[..., Tensor], model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss `compute(model, inputs)` with the method in it."""
        # a copy: with several iterations TRL comes back to the same dictionary
        self._inputs = dict(inputs)
        try:
            loss = compute(model, self._inputs)
        finally:
            self._inputs = None
        accelerator = self._trainer.accelerator
        if self._method.uses_bonus and accelerator.sync_gradients:
            assert self._bonus_sums is not None, "TRL's loss asked for entropies"
            total, count = accelerator.reduce(self._bonus_sums, reduction="sum").tolist()
            self._bonus_sums = None
            if count:
                apply_settings(self._trainer, self._method.stepped(total / count))
        return loss

    @property
    def inside(self) -> bool:
        """Whether TRL is computing a loss now and has not asked for log-probabilities yet."""
        return self._inputs is not None

    def forward(self, compute: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """TRL's log-prob pass inside the loss; puts token advantages where it will read them."""
        inputs, self._inputs = self._inputs, None
        assert inputs is not None
        if self._method.uses_bonus:
            out = self._with_bonus(compute, args, kwargs, response_mask(inputs))
        else:
            out = compute(*args, **kwargs)
        if _OLD_ENTROPIES in inputs:
            now = Signals(out[0].detach(), out[1].detach())
            old = inputs.get("old_per_token_logps")
            before = Signals(now.logprobs if old is None else old, inputs[_OLD_ENTROPIES])
            self._reweigh(inputs, now, before)
        return out

    def _reweigh(self, inputs: dict[str, Any], now: Signals, before: Signals) -> None:
        """Put the method's token advantages into the rollouts `inputs`."""
        advantages, accelerator = inputs["advantages"], self._trainer.accelerator
        batch = TokenBatch(
            step=self._trainer.state.global_step,
            advantages=advantages,
            mask=response_mask(inputs),
            logprobs=now.logprobs,
            old_logprobs=before.logprobs,
            entropies=now.entropies,
            old_entropies=before.entropies,
            sensitivity=now.sensitivity,
            share=1 / self._trainer.args.gradient_accumulation_steps,
            total=partial(accelerator.reduce, reduction="sum"),
        )
        inputs["advantages"] = self._method.reweigh(batch).to(advantages.dtype)

    def _with_bonus(self, compute: Any, args: tuple, kwargs: dict[str, Any], mask: Tensor) -> Any:
        """TRL's pass, with `bonus_entropy` (b, T) and its gradient in place of the entropy."""
        head = LanguageModelHead(self._trainer)
        parts: list[Tensor] = []

        def value(hidden: Tensor) -> Tensor:
            return self._method.bonus_entropy(head.logits(hidden) / head.temperature)

        def read(hidden: Tensor) -> None:
            flat = hidden.reshape(-1, hidden.shape[-1])
            rows = max(1, _CHUNK_ELEMENTS // head.model.get_output_embeddings().weight.shape[0])
            # computed anew on the way back, so that the logits of one chunk at a time are held
            chunks = [checkpoint(value, chunk, use_reentrant=False) for chunk in flat.split(rows)]
            parts.append(torch.cat(chunks).view(hidden.shape[:2]))

        with head.inputs(mask.shape[1], read):
            out = compute(*args, **kwargs)
        values = torch.cat(parts)
        sums = torch.stack([values.detach()[mask].sum(), mask.sum().to(values.dtype)])
        self._bonus_sums = sums if self._bonus_sums is None else self._bonus_sums + sums
        return (out[0], values, *out[2:])
