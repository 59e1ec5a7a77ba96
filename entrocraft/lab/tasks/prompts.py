"""Prompts of problems, in short form or by a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from entrocraft.lab.tasks.base import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def speaks_chat(tokenizer: PreTrainedTokenizerBase, chat: bool | None = None) -> bool:
    """Say whether to talk in messages: as asked, or if the tokenizer has a chat template.

    Raises:
        ValueError: messages are asked for, but the tokenizer has no template.
    """
    if chat and tokenizer.chat_template is None:
        lacking = f"the tokenizer of {tokenizer.name_or_path!r} has no chat template"
        raise ValueError(f"chat=true, but {lacking}; set chat=false or give it a template")
    return tokenizer.chat_template is not None if chat is None else chat


def trainer_prompt(problem: Problem, chat: bool) -> str | list[dict[str, str]]:
    """Return the `prompt` column of a TRL dataset: text, or a conversation with one question."""
    if not chat:
        return problem.prompt
    system = [{"role": "system", "content": problem.system}] if problem.system else []
    return [*system, {"role": "user", "content": problem.question}]


def text_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Return the prompt as the text that the model reads."""
    messages = trainer_prompt(problem, chat)
    if isinstance(messages, str):
        return messages
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text)


def prompt_lengths(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, chat: bool
) -> list[int]:
    """Return the lengths of the prompts in tokens."""
    texts = [text_prompt(problem, tokenizer, chat) for problem in problems]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=not chat)["input_ids"]]


def short_enough(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, chat: bool, limit: int | None
) -> list[Problem]:
    """Return the problems whose prompts have at most so many tokens; all where there is no limit.

    Raises:
        ValueError: there is none.
    """
    if limit is None:
        return list(problems)
    lengths = prompt_lengths(problems, tokenizer, chat)
    kept = [problem for problem, size in zip(problems, lengths, strict=True) if size <= limit]
    if not kept:
        shortest = f"and the shortest of {len(problems)} prompts has {min(lengths)}"
        raise ValueError(f"task.max_prompt_tokens is {limit}, {shortest}; raise it")
    return kept


def as_completion(text: str, chat: bool) -> Any:
    """Return a text as TRL gives it to a reward function: as it is, or as a list of one message."""
    return [{"role": "assistant", "content": text}] if chat else text
