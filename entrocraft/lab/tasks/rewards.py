"""Rewards of a data set's rows: built in by name, or a reward function as TRL calls it.

A reward function takes lists of the same length by keyword, `completions`, `prompts`, `answer`,
`question` and every column of the data, and returns a list of numbers, None where it has no say. A
completion is text, or for a chat model a list with one message, as in TRL.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entrocraft.lab.tasks.base import (
    ANSWER_INSTRUCTION,
    MAX_ANSWER_CHARACTERS,
    MAX_COMPLETION_CHARACTERS,
    completion_text,
    extract_answer,
)
from entrocraft.lab.tasks.mathematics import check_installed, equal

RewardFunction = Callable[..., Sequence["float | None"]]

_LETTER = re.compile(r"\W*([A-J])(?:[).:]|\W*$)|.*(?:\bis|:)\s*\W*([A-J])\W*$", re.DOTALL)


def math_reward(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """1 where the answer equals the true one mathematically, by math-verify."""
    found = (_answer(completion)[-MAX_ANSWER_CHARACTERS:] for completion in completions)
    return [float(right) for right in equal(list(zip(found, answer, strict=True)))]


def exact_reward(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """1 where the answer is the true one up to case, spaces and a final full stop."""
    pairs = zip(completions, answer, strict=True)
    return [float(_plain(_answer(said)) == _plain(truth) != "") for said, truth in pairs]


def choice_reward(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """1 where the answer is the right letter, A to J: `B`, `(B)`, `B) Paris`, `... is B.`."""
    pairs = zip(completions, answer, strict=True)
    return [float(letter(_answer(said)) == letter(truth)) for said, truth in pairs]


BUILT_IN: dict[str, tuple[RewardFunction, str]] = {
    "math": (math_reward, "Reason step by step, and put the final answer within \\boxed{}."),
    "exact": (exact_reward, ANSWER_INSTRUCTION),
    "choice": (choice_reward, f"{ANSWER_INSTRUCTION[:-1]}: the letter alone."),
}
"""Name -> reward function and how the model is told to answer."""


def letter(text: str) -> str | None:
    """Letter that a text chooses, None if it is not clear.

    >>> letter("(b)"), letter("B) Paris"), letter("The answer is C."), letter("A dog")
    ('B', 'B', 'C', None)
    """
    alone = text.strip("() .").upper()
    found = _LETTER.match(alone if len(alone) == 1 else text)
    return (found[1] or found[2]) if found else None


def get_reward(name: str) -> RewardFunction:
    """Return a reward function by name: built in, `package.module:function` or `file.py:function`.

    Modules are looked for in the working directory, too.

    Raises:
        ValueError: there is none of this name, or it cannot be called as a reward function.
    """
    if name in BUILT_IN:
        if name == "math":
            check_installed()
        return BUILT_IN[name][0]
    module_name, colon, function_name = name.rpartition(":")
    if not colon or not module_name or not function_name:
        known = ", ".join(BUILT_IN)
        raise ValueError(
            f"reward is {name!r}; use {known}, package.module:function or file.py:function"
        )
    found = getattr(_module(module_name, name), function_name, None)
    if not callable(found):
        raise ValueError(f"reward is {name!r}, and {module_name} has no function {function_name!r}")
    if inspect.iscoroutinefunction(found):
        raise ValueError(f"reward is {name!r}, an async function; use one that returns its list")
    _check_signature(found, name)
    return found


def _module(module_name: str, name: str) -> Any:
    try:
        if not module_name.endswith(".py"):
            if os.getcwd() not in sys.path:
                sys.path.append(os.getcwd())
            return importlib.import_module(module_name)
        path = Path(module_name).expanduser().resolve()
        if not path.is_file():
            raise ValueError(f"reward is {name!r}, and there is no file {path}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ImportError as error:
        where = f"looked for in {os.getcwd()} and the installed packages"
        raise ValueError(
            f"reward is {name!r}, which cannot be imported ({error}); {where}"
        ) from error


def _check_signature(function: Any, name: str) -> None:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return
    kinds = [parameter.kind for parameter in parameters.values()]
    if "completions" not in parameters or inspect.Parameter.VAR_KEYWORD not in kinds:
        raise ValueError(
            f"reward is {name!r}, whose arguments are ({', '.join(parameters)}); write it as a "
            "reward function of TRL: def reward(completions, answer, **columns) -> list of numbers"
        )


def as_rewards(rewards: Any, count: int, name: str) -> list[float | None]:
    """Return what a reward function gave, as a list of numbers and None.

    Raises:
        ValueError: another length, or something that is no number.
    """
    if not isinstance(rewards, Sequence) and hasattr(rewards, "tolist"):
        rewards = rewards.tolist()
    if not isinstance(rewards, Sequence) or len(rewards) != count:
        size = f"{len(rewards)} values" if isinstance(rewards, Sequence) else type(rewards).__name__
        raise ValueError(
            f"reward {name!r} gave {size} for {count} completions; return a list of {count}"
        )
    try:
        found = [None if value is None else float(value) for value in rewards]
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {name!r} gave what is no number: {error}") from error
    if odd := [value for value in found if value is not None and not math.isfinite(value)]:
        raise ValueError(f"reward {name!r} gave {odd[0]}; rewards are finite, None is no say")
    return found


def _answer(completion: Any) -> str:
    text = completion_text(completion)
    return extract_answer(text) if len(text) <= MAX_COMPLETION_CHARACTERS else ""


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".")
