"""Cache of problem lists on disk; the library makes only a few hundred problems a second."""

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

    Those of data that may change under the same options are made each time.

    Args:
        cache_dir: where lists are kept; None takes `default_cache_dir`.
        fewer: take what there is where a task has fewer problems than that, and warn.
    """
    if not task.lasting:
        return task.problems(split, size, seed, fewer)
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
    file = Path(cache_dir or default_cache_dir()) / "problems" / f"{key}.jsonl"
    problems: list[Problem] = []
    if file.exists():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            problems = [Problem(**json.loads(line)) for line in lines]
        except (ValueError, TypeError):
            warnings.warn(f"{file} is cut or broken; it is made anew", stacklevel=2)
    if not problems or (len(problems) < size and not fewer):
        problems = task.problems(split, size, seed, fewer)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, "".join(json.dumps(asdict(made)) + "\n" for made in problems))
    if len(problems) < size:
        few = f"{task} has {len(problems)} {split} problems, not the {size} asked for"
        remedy = "all of them are taken. For more widen its ranges (task.options)"
        warnings.warn(f"{few}; {remedy}", stacklevel=2)
    return problems
