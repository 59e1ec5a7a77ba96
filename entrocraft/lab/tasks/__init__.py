"""Tasks to train on: problems in disjoint splits, worked completions, bounded verifiers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from entrocraft.lab.tasks.base import SPLITS, Problem, Split, Task, extract_answer, split_of
from entrocraft.lab.tasks.chain_sum import ChainSumTask
from entrocraft.lab.tasks.countdown import CountdownTask
from entrocraft.lab.tasks.maze import MazeTask
from entrocraft.lab.tasks.permutation_words import PermutationWordsTask
from entrocraft.typed import check_types

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (CountdownTask, ChainSumTask, PermutationWordsTask, MazeTask)
}

__all__ = [
    "SPLITS",
    "TASKS",
    "Problem",
    "Split",
    "Task",
    "extract_answer",
    "get_task",
    "split_of",
]


def get_task(name: str, **options: Any) -> Task:
    """Make a task by its name in ``TASKS``; options are the fields of its dataclass.

    Raises:
        ValueError: for an unknown name or option, or a value out of range.

    >>> get_task("countdown", max_value=12).max_value
    12
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; use one of {', '.join(sorted(TASKS))}")
    known = [option.name for option in fields(TASKS[name])]
    if unknown := [option for option in options if option not in known]:
        raise ValueError(
            f"unknown option {unknown[0]!r} of task {name!r}; its options are {', '.join(known)}"
        )
    try:
        task = TASKS[name](**options)
    except TypeError as error:
        raise ValueError(f"the options {options} of task {name!r} do not fit: {error}") from error
    check_types(task, "task.options.")
    return task
