"""Prompts of problems, in short form or by a chat template, and the text of completions."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from entrocraft.lab.tasks.base import Problem


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
    """Return the `prompt` column of a TRL dataset: text, or a conversation of one user message."""
    return [{"role": "user", "content": problem.question}] if chat else problem.prompt


def text_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Return the prompt as the text that the model reads."""
    if not chat:
        return problem.prompt
    messages = [{"role": "user", "content": problem.question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text)


def completion_text(completion: Any) -> str:
    """Return the text of a TRL completion, which is text or a list of messages."""
    if isinstance(completion, str):
        return completion
    return "".join(message.get("content") or "" for message in completion)
