"""Models to train: a tiny Qwen3 with a cached supervised warm start, or any from disk or hub."""

from entrocraft.lab.models.loading import load_model
from entrocraft.lab.models.reasoner import ReasonerConfig, build_reasoner, build_tokenizer
from entrocraft.lab.models.warm_start import WarmStartConfig, cache_key, warm_start

__all__ = [
    "ReasonerConfig",
    "WarmStartConfig",
    "build_reasoner",
    "build_tokenizer",
    "cache_key",
    "load_model",
    "warm_start",
]
