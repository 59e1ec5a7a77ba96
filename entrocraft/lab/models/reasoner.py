"""Tiny reasoner: a Qwen3 of less than a million parameters, and its character tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from entrocraft.typed import check_types

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))


@dataclass
class ReasonerConfig:
    """Shape of a tiny Qwen3; input and output embeddings are shared, heads have their own keys."""

    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 256
    max_positions: int = 256

    def __post_init__(self) -> None:
        check_types(self, "reasoner.")
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}={value}; use at least 1")
        if self.hidden_size % (2 * self.heads):
            shape = f"hidden_size={self.hidden_size} is no multiple of 2 * heads={2 * self.heads}"
            raise ValueError(f"{shape}; heads need an even width for rotary positions")


def build_reasoner(
    config: ReasonerConfig, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> Qwen3ForCausalLM:
    """Make an untrained reasoner in float32; the global random state is left as it was.

    Raises:
        ValueError: if the tokenizer has no pad or eos token.
    """
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is None or eos is None:
        raise ValueError(f"the tokenizer has pad_token_id={pad}, eos_token_id={eos}; set both")
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


def build_tokenizer(max_length: int = 256) -> PreTrainedTokenizerFast:
    """Tokenizer with one token per printable ASCII character or newline, 99 tokens in all.

    Ids: pad 0, eos 1, unknown 2, then the characters in code order. Text of known characters
    decodes to itself; any other character becomes the unknown token. Padding is on the left, as
    generation needs it, and no token is added to a prompt. `max_length` is the model's.

    >>> tokenizer = build_tokenizer()
    >>> tokenizer.decode(tokenizer("3*7=21").input_ids)
    '3*7=21'
    """
    vocabulary = {token: index for index, token in enumerate((PAD, EOS, UNKNOWN, *CHARACTERS))}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    # Without a decoder tokens would be joined by spaces.
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
