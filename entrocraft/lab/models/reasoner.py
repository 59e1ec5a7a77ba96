"""Tiny reasoner: a Qwen3 of less than a million parameters, made from a config."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM


@dataclass
class ReasonerConfig:
    """Shape of a tiny Qwen3; input and output embeddings are shared.

    Attributes:
        hidden_size: width of the residual stream.
        layers: number of blocks.
        heads: number of attention heads, with as many keys and values.
        intermediate_size: width of the gated feed-forward layer.
        max_positions: longest sequence, in tokens.
    """

    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 256
    max_positions: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}={value}; use at least 1")
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of 2 * heads={2 * self.heads}; "
                "heads need an even width for rotary positions"
            )


def build_reasoner(
    config: ReasonerConfig, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> Qwen3ForCausalLM:
    """Make an untrained reasoner in float32; the global random state is left as it was.

    Args:
        config: shape of the model.
        tokenizer: gives the vocabulary and the pad and eos tokens.
        seed: seed of the weights.

    Raises:
        ValueError: if the tokenizer has no pad or eos token.
    """
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is None or eos is None:
        raise ValueError(
            f"the tokenizer has pad_token_id={pad}, eos_token_id={eos}; set both before building"
        )
    shape = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.hidden_size // config.heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        # Qwen's 0.02 is meant for wide models; at this width learning starts slowly with it
        initializer_range=config.hidden_size**-0.5,
        pad_token_id=pad,
        eos_token_id=eos,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(shape).float()
    # sampled as it is: temperature 1, no truncation
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=pad, eos_token_id=eos
    )
    return model.eval()
