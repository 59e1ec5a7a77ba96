"""Loading of causal language models and their tokenizers, from a directory or from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    path_or_name: str | Path, **model_options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, in evaluation mode, and its tokenizer, ready for batched generation.

    A tokenizer without a pad token pads with its eos token; padding is on the left.
    `model_options` are those of ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        OSError: a path that is no model directory, or the hub has no such model.
        ValueError: the tokenizer has neither pad nor eos token.
    """
    path = Path(path_or_name).expanduser()
    name = str(path) if path.is_dir() else str(path_or_name)
    local = isinstance(path_or_name, Path) or name.startswith((".", "/", "~"))
    local = local or path.is_dir() or name.count("/") > 1
    if local and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"no model directory at {path}, it has no config.json; give one that save_pretrained "
            "wrote, or a name on the hub such as Qwen/Qwen3-0.6B"
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(name, **model_options)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {name!r} has neither pad nor eos token; set one and save it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return model.eval(), tokenizer
