"""Memory that a training run needs on each device, estimated from shapes; in bytes."""

from __future__ import annotations

from typing import Any

import torch

from entrocraft.lab.training.config import TrainConfig

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ADAPTER_BYTES = 4  # peft keeps adapters in float32
# bytes of activations per token, layer and unit of width, in 16 bits (2205.05198, equation 2,
# without the attention scores, which fused kernels do not keep)
_ACTIVATIONS = 34


def estimate(
    config: TrainConfig, model: Any, arguments: dict[str, Any], prompt_tokens: int
) -> dict[str, float]:
    """Parts of the memory at its peak, without sharding and fragmentation.

    Args:
        model: before adapters are added; may lie on the meta device.
        arguments: of TRL's config.
        prompt_tokens: of the longest prompt.
    """
    shape, width = model.config.get_text_config(), _BYTES[config.dtype]
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    weights = sum(parameter.numel() for parameter in model.parameters())
    length = prompt_tokens + config.max_completion_length
    micro = arguments["per_device_train_batch_size"]
    trained, each = weights, width
    if config.lora is not None:
        trained, each = _adapter_weights(config, model), _ADAPTER_BYTES
    compute = 2 if arguments["bf16"] else width
    activations = compute * hidden if arguments["gradient_checkpointing"] else 0
    if not activations:
        activations = _ACTIVATIONS * hidden * compute // 2
    logits = micro * config.max_completion_length * shape.vocab_size * 4 * 2
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    cache = length * layers * 2 * heads * size * width
    updating = micro * length * layers * activations + logits
    measured = config.evaluation
    sampled = 0 if arguments.get("use_vllm") else micro * arguments["steps_per_generation"]
    probed = measured.probe_prompts if measured.probe_every else 0
    evaluated = measured.prompts * measured.samples if measured.every else 0
    sampled = max(sampled, min(measured.batch_size, max(probed, evaluated)))
    parts = {
        "weights": weights * width + (trained * each if config.lora is not None else 0),
        "gradients and optimizer": 3 * trained * each,
        "reference model": weights * width if arguments["beta"] and config.lora is None else 0,
    }
    largest = ("sampling", sampled * cache) if sampled * cache > updating else ("update", updating)
    return {**parts, largest[0]: largest[1]}


def available() -> tuple[float, str]:
    """Free bytes of the device that a run would use here, and what it is."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    import psutil

    return psutil.virtual_memory().available, "this machine, which has no GPU"


def _adapter_weights(config: TrainConfig, model: Any) -> int:
    assert config.lora is not None
    targets, output = config.lora.targets, model.get_output_embeddings()
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    ]
    if targets != "all-linear":
        names = (targets,) if isinstance(targets, str) else tuple(targets)
        linear = [pair for pair in linear if pair[0].endswith(names)]
    return sum(config.lora.rank * (m.in_features + m.out_features) for _, m in linear)
