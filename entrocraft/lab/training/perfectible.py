"""Perfectible set: the training problems that the start solves neither never nor always.

A sound method can bring such a set near 100 % (2510.26788), so what a run still lacks on it is the
method's doing, not the model's.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from entrocraft.lab.evaluation import evaluate
from entrocraft.lab.tasks import Problem, Task
from entrocraft.lab.tasks.store import default_cache_dir
from entrocraft.lab.training.config import TrainConfig
from entrocraft.storage import write_atomically

_SEED = 7_003
_PROMPTS_AT_A_TIME = 64


def perfectible(
    config: TrainConfig, model: Any, tokenizer: Any, task: Task, problems: list[Problem], chat: bool
) -> list[Problem]:
    """Return the problems whose share of right answers is within `task.pass_rate`.

    How often each is solved is kept on disk by weights, problems and sampling.

    Raises:
        ValueError: fewer problems than a batch has are within.
    """
    assert config.task.pass_rate is not None
    low, high = config.task.pass_rate
    tries = config.task.pass_tries
    settings: dict[str, Any] = {
        "weights": _digest(model),
        "task": task.name,
        "options": asdict(task),
        "problems": [problem.key for problem in problems],
        "tries": tries,
        "temperature": config.temperature,
        "max_completion_length": config.max_completion_length,
        "chat": chat,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    file = Path(config.cache_dir or default_cache_dir()) / "pass_rates" / f"{key}.json"
    if file.exists():
        correct = json.loads(file.read_text())
    else:
        correct = []
        starts = range(0, len(problems), _PROMPTS_AT_A_TIME)
        for start in track(starts, "which problems are solved now and then", transient=True):
            seen = evaluate(
                model,
                tokenizer,
                task,
                problems[start : start + _PROMPTS_AT_A_TIME],
                samples=tries,
                max_new_tokens=config.max_completion_length,
                temperature=config.temperature,
                seed=_SEED + start * tries,
                chat=chat,
                batch_size=config.evaluation.batch_size,
            )
            correct += seen.correct.int().tolist()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(correct) + "\n")
    kept = [
        problem
        for problem, count in zip(problems, correct, strict=True)
        if low <= count / tries <= high
    ]
    if len(kept) < config.prompts:
        raise ValueError(
            f"of {len(problems)} problems the start solves only {len(kept)} in {low:.0%} to "
            f"{high:.0%} of {tries} tries, and a batch takes {config.prompts} prompts; widen "
            "task.pass_rate, or raise task.train_size"
        )
    return kept


def _digest(model: Any) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
