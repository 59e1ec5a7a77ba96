"""Loading of causal language models and their tokenizers, from a directory or from the hub."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    path_or_name: str | Path, eos: str | None = None, **model_options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, in evaluation mode, and its tokenizer, ready for batched generation.

    A tokenizer without a pad token pads with its eos token; padding is on the left. `eos` takes the
    place of the tokenizer's own; it makes no token types for a model that does not take them.
    `model_options` are those of ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        OSError: a path that is no model directory, or the hub has no such model.
        ValueError: the tokenizer has neither pad nor eos token, or not the `eos` that is given.
    """
    name = model_name(path_or_name)
    tokenizer = load_tokenizer(name, eos)
    model = transformers.AutoModelForCausalLM.from_pretrained(name, **model_options)
    names = tokenizer.model_input_names
    if "token_type_ids" in names and "token_type_ids" not in signature(model.forward).parameters:
        tokenizer.model_input_names = [name for name in names if name != "token_type_ids"]
    return model.eval(), tokenizer


def model_name(path_or_name: str | Path) -> str:
    """Return a model's directory or hub name as transformers takes it.

    Raises:
        OSError: a path that is no model directory.
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
    return name


def load_tokenizer(name: str, eos: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer as `load_model` does."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    if eos is not None:
        if eos not in tokenizer.get_vocab():
            raise ValueError(f"eos is {eos!r}, which is no token of {name!r}")
        tokenizer.eos_token = eos
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {name!r} has neither pad nor eos token; set one and save it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer
