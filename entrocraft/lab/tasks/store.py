"""Problem lists on disk: the library makes a few hundred a second, runs want thousands at once."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from entrocraft.lab.tasks.base import Problem, Split, Task
from entrocraft.storage import write_atomically

__all__ = ["default_cache_dir", "stored_problems"]

_FORMAT = 1


def default_cache_dir() -> Path:
    """``$ENTROCRAFT_CACHE``, or ``~/.cache/entrocraft``."""
    return Path(os.environ.get("ENTROCRAFT_CACHE") or "~/.cache/entrocraft").expanduser()


def stored_problems(
    task: Task,
    split: Split,
    size: int,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    fewer: bool = False,
) -> list[Problem]:
    """`task.problems(split, size, seed)`, made once for each task, options and library version.

    Args:
        cache_dir: where lists are kept; None takes `default_cache_dir`.
        fewer: take what there is where a task has fewer problems than that, and warn.
    """
    settings = {
        "format": _FORMAT,
        "library": version("reasoning-gym"),
        "task": task.name,
        "options": asdict(task),
        "split": split,
        "size": size,
        "seed": seed,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = Path(cache_dir or default_cache_dir()) / "problems"
    file = folder / f"{key}.jsonl"
    if file.exists():
        problems = [Problem(**json.loads(line)) for line in file.read_text().splitlines()]
        if len(problems) == size or fewer:
            _warn_of_fewer(task, split, size, problems)
            return problems
    problems = task.problems(split, size, seed, fewer)
    _warn_of_fewer(task, split, size, problems)
    folder.mkdir(parents=True, exist_ok=True)
    # written aside and moved: a kill, or two processes at once, leave no half list
    text = "".join(json.dumps(asdict(problem)) + "\n" for problem in problems)
    write_atomically(file, text)
    return problems


def _warn_of_fewer(task: Task, split: Split, size: int, problems: list[Problem]) -> None:
    if len(problems) < size:
        warnings.warn(
            f"{task} has {len(problems)} {split} problems, not the {size} asked for; all of them "
            "are taken. For more widen its ranges (task.options)",
            stacklevel=3,
        )
