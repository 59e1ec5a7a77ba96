"""The language-model head: logits of completion positions from the backbone's hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from entrocraft.effects import TokenStatistics, token_statistics

__all__ = ["LanguageModelHead", "fuses_loss", "has_dropout", "pass_with_sensitivity"]

_LARGEST_MEAN_DISAGREEMENT = 0.1


class LanguageModelHead:
    """Head of a TRL trainer's policy; with it no (B, T, V) tensor has to be made."""

    def __init__(self, trainer: Any) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        # the transformers model inside PEFT's wrapper
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.temperature = float(trainer.temperature)

    @contextmanager
    def inputs(self, keep: int, read: Callable[[Tensor], None]) -> Iterator[None]:
        """Give `read` what the backbone's passes inside this block hand to the head.

        That is (b, keep, D): hidden states of the positions that predict the last `keep` tokens.
        """

        def hear(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = getattr(output, "last_hidden_state", None)
            hidden = output[0] if hidden is None else hidden
            read(hidden[:, -keep - 1 : -1])

        handle = self.model.base_model.register_forward_hook(hear)
        try:
            yield
        finally:
            handle.remove()

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) float32 of hidden states (n, D), before the temperature."""
        head = self.model.get_output_embeddings()
        return self._finish(head(hidden.to(head.weight.device)).float())

    def _finish(self, logits: Tensor) -> Tensor:
        """Apply the scaling and soft-capping that some architectures do after their head."""
        config = self.model.config.get_text_config()
        scale = None
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            scale = getattr(config, name, None) if scale is None else scale
        if scale is None and (scaling := getattr(config, "logits_scaling", None)) is not None:
            scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
        if scale is not None:
            logits = logits * scale
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = cap * (logits / cap).tanh()
        return logits


def pass_with_sensitivity(
    trainer: Any, compute: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[Any, Tensor]:
    """TRL's log-prob pass `compute(*args, **kwargs)`, and its tokens' sensitivity (B, T).

    Raises:
        RuntimeError: log-probabilities by the head that are not TRL's: the model is not known here.
    """
    # wrappers of TRL's method differ over versions in what they name
    names = ("model", "input_ids", "attention_mask", "logits_to_keep")
    bound = dict(zip(names, args, strict=False)) | kwargs
    keep = bound["logits_to_keep"]
    tokens = bound["input_ids"][:, -keep:]
    head = LanguageModelHead(trainer)
    parts: list[TokenStatistics] = []

    def read(hidden: Tensor) -> None:
        start = sum(len(part.logprob) for part in parts)
        chosen = tokens[start : start + len(hidden)]
        parts.append(token_statistics(hidden, chosen, head.temperature, head.logits))

    with head.inputs(keep, read):
        out = compute(*args, **kwargs)
    logprobs = out[0].detach()
    valid = torch.isfinite(logprobs) & (logprobs != 0)
    gap = (torch.cat([part.logprob for part in parts]) - logprobs)[valid].abs()
    if len(gap) and float(gap.mean()) > _LARGEST_MEAN_DISAGREEMENT:
        raise RuntimeError(
            f"token sensitivities of {type(head.model).__name__} cannot be trusted: "
            "log-probabilities recomputed from its head differ from TRL's by "
            f"{float(gap.mean()):.2g} nats on average (the model transforms its logits in a way "
            "that is not known here); use effect='sampled'"
        )
    return out, torch.cat([part.sensitivity for part in parts])


def fuses_loss(trainer: Any) -> bool:
    """Whether the loss is Liger's fused one (TRL 1.5), which scores no tokens."""
    return bool(trainer.args.use_liger_kernel) and hasattr(trainer, "compute_liger_loss")


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes of this model in training mode differ: modules and attention are asked."""
    modules = any(isinstance(part, _DropoutNd) and part.p > 0 for part in model.modules())
    config = getattr(model, "config", None)
    return modules or float(getattr(config, "attention_dropout", 0.0) or 0.0) > 0
