"""Tiny reasoners: a character tokenizer, a small Qwen3, a cached supervised warm start."""

from entrocraft.lab.models.loading import load_model
from entrocraft.lab.models.reasoner import ReasonerConfig, build_reasoner
from entrocraft.lab.models.tokenizer import build_tokenizer
from entrocraft.lab.models.warm_start import (
    WarmStartConfig,
    cache_key,
    progress_bar,
    warm_start,
)

__all__ = [
    "ReasonerConfig",
    "WarmStartConfig",
    "build_reasoner",
    "build_tokenizer",
    "cache_key",
    "load_model",
    "progress_bar",
    "warm_start",
]
