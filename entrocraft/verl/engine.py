"""Token sensitivities from the pass in which verl's FSDP engine computes old log-probabilities."""

from __future__ import annotations

from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils

from entrocraft.effects import token_statistics

__all__ = ["FLAG", "SENSITIVITY", "serve_sensitivity"]

FLAG = "entrocraft_sensitivity"
"""Set in a batch's extra information, it asks the engine for sensitivities."""

SENSITIVITY = "entrocraft_sensitivity_values"
"""Field in which they come back, nested like verl's log-probabilities."""


def serve_sensitivity(engine: Any) -> None:
    """Make an engine class answer to FLAG: nats per unit of advantage at the level "logit"."""
    original = engine.prepare_model_outputs
    if getattr(original, "serves_sensitivity", False):
        return

    @wraps(original)
    def prepare_model_outputs(
        self: Any, output: Any, output_args: Any, micro_batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        asked = tensordict_utils.get_non_tensor_data(micro_batch, FLAG, False)
        # before verl scales the logits in place
        values = _sensitivity(self, output, output_args, micro_batch) if asked else None
        model_output = original(self, output, output_args, micro_batch, *args, **kwargs)
        if values is not None:
            model_output[SENSITIVITY] = values
        return model_output

    prepare_model_outputs.serves_sensitivity = True  # type: ignore[attr-defined]
    engine.prepare_model_outputs = prepare_model_outputs


@torch.no_grad()
def _sensitivity(engine: Any, output: Any, output_args: Any, micro_batch: Any) -> Tensor:
    """Nested (rows, prompt and response) values, each at the position that predicts the token."""
    setting = partial(tensordict_utils.get_non_tensor_data, micro_batch)
    if setting("use_fused_kernels", False):
        raise RuntimeError(
            "the level 'logit' needs the logits, which verl's fused kernels never make; set "
            "actor_rollout_ref.model.use_fused_kernels=False or +entrocraft.effect=sampled"
        )
    logits = output.logits
    if isinstance(logits, DTensor):
        logits = logits.full_tensor()
    labels = output_args["input_ids_rmpad_rolled"]
    lengths = micro_batch["input_ids"].offsets()
    packed = setting("use_remove_padding", True)
    if packed:
        flat = logits.squeeze(0)
    else:
        rows = zip(logits, lengths.diff().tolist(), strict=True)
        flat = torch.cat([row[:length] for row, length in rows])
    temperature = output_args["temperature_rmpad" if packed else "temperature"]
    low, high = float(temperature.min()), float(temperature.max())
    if low != high:
        raise RuntimeError(
            f"rollouts of one batch were sampled at temperatures from {low:g} to {high:g}; the "
            "level 'logit' knows one: use +entrocraft.effect=sampled"
        )
    values = token_statistics(flat, labels, low).sensitivity
    if packed:
        values = engine._gather_and_unpad_packed(values, output_args["pad_size"])
    return torch.nested.nested_tensor_from_jagged(values, lengths)
