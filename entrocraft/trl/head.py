"""A causal language model as the policy that the gradient level differentiates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

__all__ = ["TokenPolicy", "finish_logits", "has_dropout", "inner_model"]

_CHUNK_ELEMENTS = 2**24


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes of this model in training mode differ: modules and attention are asked."""
    modules = any(isinstance(part, _DropoutNd) and part.p > 0 for part in model.modules())
    config = getattr(model, "config", None)
    return modules or float(getattr(config, "attention_dropout", 0.0) or 0.0) > 0


class TokenPolicy(nn.Module):
    """Log-probabilities and entropies of the last tokens, differentiable in the parameters.

    The head works in chunks of positions that are computed anew on the way back, so that no
    (B, T, V) tensor is kept.

    Args:
        model: causal language model, without wrappers of distributed training.
        temperature: logits are divided by it, as in sampling.
    """

    def __init__(self, model: Any, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = inner_model(model)
        self.temperature = temperature

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, keep: int
    ) -> tuple[Tensor, Tensor]:
        """(b, L) ids and mask -> log-probabilities and entropies (b, keep) of the last tokens."""
        output = self.model.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        )
        hidden = output.last_hidden_state[:, -keep - 1 : -1]
        tokens = input_ids[:, -keep:].reshape(-1)
        flat = hidden.reshape(-1, hidden.shape[-1])
        rows = max(1, _CHUNK_ELEMENTS // self.model.get_output_embeddings().weight.shape[0])
        parts = []
        for start in range(0, len(flat), rows):
            chunk = flat[start : start + rows], tokens[start : start + rows]
            if torch.is_grad_enabled():
                parts.append(checkpoint(self._score, *chunk, use_reentrant=False))
            else:
                parts.append(self._score(*chunk))
        logprobs, entropies = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return logprobs.view(-1, keep), entropies.view(-1, keep)

    def _score(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        head = self.model.get_output_embeddings()
        logits = finish_logits(self.model, head(hidden)).float() / self.temperature
        log_p = logits.log_softmax(-1)
        # masked before the product, as 0 * -inf has no derivative either
        entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)
        return log_p.gather(-1, tokens[:, None])[:, 0], entropy


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
        logits = cap * torch.tanh(logits / cap)
    return logits
