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

    Args:
        path_or_name: directory written by ``save_pretrained``, or a name on the hub.
        model_options: passed on to ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        FileNotFoundError: if a local path is meant and is not a model directory.
        OSError: if the hub has no such model, or cannot be reached.
        ValueError: if the tokenizer has neither pad nor eos token.
    """
    path = Path(path_or_name).expanduser()
    name = str(path) if path.is_dir() else str(path_or_name)
    local = isinstance(path_or_name, Path) or name.startswith((".", "/", "~"))
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} is not a model directory: it has no config.json; give a directory written by "
            "save_pretrained, such as a checkpoint or what warm_start returns"
        )
    if not path.is_dir() and (local or name.count("/") > 1):
        raise FileNotFoundError(
            f"no model directory at {path}; give a directory written by save_pretrained or a name "
            "on the hub such as Qwen/Qwen3-0.6B"
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
