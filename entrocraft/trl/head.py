"""The language-model head: logits of completion positions from the backbone's hidden states."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["BackboneTap", "finish_logits", "has_dropout", "inner_model"]


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes of this model in training mode differ: modules and attention are asked."""
    modules = any(isinstance(part, _DropoutNd) and part.p > 0 for part in model.modules())
    config = getattr(model, "config", None)
    return modules or float(getattr(config, "attention_dropout", 0.0) or 0.0) > 0


def inner_model(model: Any) -> Any:
    """Return the transformers model inside an adapter wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def finish_logits(model: Any, logits: Tensor) -> Tensor:
    """Apply the scaling and soft-capping that some architectures do after their head."""
    config = model.config.get_text_config()
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


class BackboneTap:
    """Forward hook on a trainer's backbone that reads the positions which predict completions.

    Subclasses say in `read` what becomes of hidden states (b, keep, D); no (B, T, V) tensor is
    made.

    Args:
        trainer: TRL's.
        keep: completion positions T.
    """

    def __init__(self, trainer: Any, keep: int) -> None:
        self.model = inner_model(trainer.accelerator.unwrap_model(trainer.model))
        self.temperature = float(trainer.temperature)
        self._keep = keep

    def __enter__(self) -> Any:
        self._handle = self.model.base_model.register_forward_hook(self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _hear(self, module: nn.Module, inputs: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        hidden = output[0] if hidden is None else hidden
        self.read(hidden[:, -self._keep - 1 : -1])

    def read(self, hidden: Tensor) -> None:
        """Take hidden states (b, keep, D) of one pass of the backbone."""
        raise NotImplementedError

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) float32 of hidden states (n, D), before the temperature."""
        head = self.model.get_output_embeddings()
        return finish_logits(self.model, head(hidden.to(head.weight.device)).float())
