"""Tasks to train on: problems in disjoint splits, worked completions, bounded verifiers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from entrocraft.lab.tasks.base import SPLITS, Problem, Split, Task, extract_answer, split_of
from entrocraft.lab.tasks.chain_sum import ChainSumTask
from entrocraft.lab.tasks.countdown import CountdownTask
from entrocraft.lab.tasks.data import PRESETS, DataTask
from entrocraft.lab.tasks.maze import MazeTask
from entrocraft.lab.tasks.permutation_words import PermutationWordsTask
from entrocraft.typed import check_types

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (CountdownTask, ChainSumTask, PermutationWordsTask, MazeTask)
}
"""Tasks that make their problems themselves."""

__all__ = [
    "PRESETS",
    "SPLITS",
    "TASKS",
    "DataTask",
    "Problem",
    "Split",
    "Task",
    "extract_answer",
    "get_task",
    "split_of",
]


def get_task(name: str, **options: Any) -> Task:
    """Make a task by its name; options are the fields of its dataclass.

    Its names are those in ``TASKS``, ``hf`` for a data set, and those in ``PRESETS``, data sets
    with their columns.

    Raises:
        ValueError: for an unknown name or option, or a value out of range.

    >>> get_task("countdown", max_value=12).max_value
    12
    """
    if name in PRESETS:
        name, options = DataTask.name, PRESETS[name] | options
    kinds: dict[str, type[Task]] = {**TASKS, DataTask.name: DataTask}
    if name not in kinds:
        known = ", ".join(sorted([*kinds, *PRESETS]))
        raise ValueError(f"unknown task {name!r}; use one of {known}")
    own = [option.name for option in fields(kinds[name])]
    if unknown := [option for option in options if option not in own]:
        raise ValueError(
            f"unknown option {unknown[0]!r} of task {name!r}; its options are {', '.join(own)}"
        )
    try:
        task = kinds[name](**options)
    except TypeError as error:
        raise ValueError(f"the options {options} of task {name!r} do not fit: {error}") from error
    check_types(task, "task.options.")
    return task
