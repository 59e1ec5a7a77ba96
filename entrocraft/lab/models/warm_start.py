"""Supervised warm start of a tiny reasoner, cached on disk by its configuration.

Reinforcement learning needs a policy that is right now and then; the warm start makes one within
minutes on one processor core.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from entrocraft.lab.evaluation import evaluate
from entrocraft.lab.models.reasoner import ReasonerConfig, build_reasoner, build_tokenizer
from entrocraft.lab.tasks import Problem, Task, get_task
from entrocraft.lab.tasks.store import default_cache_dir, stored_problems
from entrocraft.typed import check_types

# Part of the cache key: raise it when the same configuration no longer gives the same model.
FORMAT_VERSION = 1
RECORD = "warm_start.json"
_IGNORED = -100
_ABANDONED = 24 * 3600.0  # seconds after which nobody is at work on a partial directory

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
Progress = Callable[[str, int, int, "float | None"], None]
"""Called with (stage, done, total, loss in nats per token or None)."""


@dataclass
class WarmStartConfig:
    """Everything that decides which model a warm start makes.

    Attributes:
        task, task_options: which task, and its options where they differ from the defaults.
        problems: number of train-split problems to draw demonstrations from.
        steps, batch_size: optimizer steps, and demonstrations in each.
        learning_rate: peak learning rate of AdamW; linear warm-up, then cosine decay to zero.
        skill: share of demonstrations that are right on purpose, in [0, 1].
        max_new_tokens: longest completion when measuring, eos included.
        probe_problems: number of probe-split problems to measure on.
        seed: of weights, problems, demonstrations and batches.
    """

    task: str = "countdown"
    task_options: dict[str, Any] = field(default_factory=dict)
    reasoner: ReasonerConfig = field(default_factory=ReasonerConfig)
    problems: int = 3000
    steps: int = 400
    batch_size: int = 128
    learning_rate: float = 3e-3
    skill: float = 1.0
    max_new_tokens: int = 16
    probe_problems: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, "warm_start.")
        for name in ("problems", "steps", "batch_size", "max_new_tokens", "probe_problems"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; use at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}; use a positive one")
        if not 0 <= self.skill <= 1:
            raise ValueError(f"skill={self.skill} is a probability; use a number in [0, 1]")
        get_task(self.task, **self.task_options)

    @classmethod
    def for_task(cls, task: str, **changes: Any) -> WarmStartConfig:
        """Tested settings for a task, with ``changes`` to any field.

        Raises:
            ValueError: there are no tested settings for the task.
        """
        if task not in PRESETS:
            known = ", ".join(sorted(PRESETS))
            remedy = f"only for {known}; give a model of your own (model: PATH)"
            raise ValueError(f"there is no tiny model for the task {task!r}, {remedy}")
        return cls(**{"task": task, **PRESETS[task], **changes})


PRESETS: dict[str, dict[str, Any]] = {
    "countdown": {},
    "chain_sum": {"problems": 1000, "skill": 0.5},
    "permutation_words": {"problems": 20_000},
    "maze": {"steps": 600, "max_new_tokens": 24},
}
"""Fields of `WarmStartConfig` for each task, where they differ from the defaults."""


def cache_key(config: WarmStartConfig) -> str:
    """Name of a configuration's directory: sha256 of its canonical JSON and of the formats.

    One major version of transformers cannot read all that another one writes. Options left at their
    defaults count with their value: a new default is a new key.
    """
    content = asdict(config)
    content["task_options"] = asdict(get_task(config.task, **config.task_options))
    major = int(version("transformers").partition(".")[0])
    formats = {"format": FORMAT_VERSION, "transformers": major}
    canonical = json.dumps(formats | {"config": content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def warm_start(
    config: WarmStartConfig, cache_dir: str | Path | None = None, progress: Progress | None = None
) -> Path:
    """Make a warm-started reasoner, or find it in the cache; return its model directory.

    The directory holds ``warm_start.json`` besides the model: ``config``, ``measurement``
    (accuracy, and token-mean entropy in nats, on probe problems), ``parameters``, ``loss``,
    ``seconds`` and ``files`` with their sizes: where one is missing or cut, it is made anew. It
    appears in one piece: a killed run leaves no directory, and of two processes making the same
    model one result stays. The global random states are left as they were.

    `cache_dir` is where models are kept, by default `default_cache_dir()`.
    """
    cache = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    root = cache / "models"
    final = root / cache_key(config)
    if _whole(final):
        return final
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob("*.partial-*"):  # of processes that were killed
        if time.time() - left.stat().st_mtime > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    # Same file system as the final place, so that the move is one step.
    partial = Path(tempfile.mkdtemp(prefix=f"{final.name[:12]}.partial-", dir=root))
    try:
        _make(config, partial, cache, progress or (lambda *call: None))
        _publish(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _whole(directory: Path) -> bool:
    """Whether the directory has a record and every file that it lists, at its size."""
    try:
        files = json.loads((directory / RECORD).read_text(encoding="utf-8"))["files"]
        return all((directory / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _publish(partial: Path, final: Path) -> None:
    """Move a finished directory to its place, unless another process was faster."""
    partial.chmod(0o755)  # mkdtemp gives access to its owner only
    try:
        os.replace(partial, final)
    except OSError:
        if _whole(final):
            return
        # Not made by us, or somebody deleted or cut files in it.
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)


def _make(config: WarmStartConfig, directory: Path, cache_dir: Path, progress: Progress) -> None:
    start = time.perf_counter()
    task = get_task(config.task, **config.task_options)
    tokenizer = build_tokenizer(config.reasoner.max_positions)
    model = build_reasoner(config.reasoner, tokenizer, config.seed)
    progress("problems", 0, 1, None)
    problems = stored_problems(task, "train", config.problems, cache_dir=cache_dir)
    loss = _train(model, _batches(tokenizer, task, problems, config), config, progress)
    progress("measuring", 0, 1, loss)
    probe = stored_problems(task, "probe", config.probe_problems, cache_dir=cache_dir)
    seen = evaluate(model, tokenizer, task, probe, max_new_tokens=config.max_new_tokens)
    progress("measuring", 1, 1, loss)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    record = {
        "format": FORMAT_VERSION,
        "config": asdict(config),
        "measurement": {
            "accuracy": asdict(seen.pass_at(1)),
            "entropy": asdict(seen.entropy),
            "length": seen.length,
            "finished": seen.finished,
            "problems": len(probe),
        },
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": loss,
        "seconds": time.perf_counter() - start,
        "files": {file.name: file.stat().st_size for file in sorted(directory.iterdir())},
    }
    (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _train(model: Any, batches: Batches, config: WarmStartConfig, progress: Progress) -> float:
    """Train on batches of demonstrations; return the last steps' mean loss, nats per token."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    warm_up = max(1, min(100, config.steps // 10))

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, config.steps - warm_up)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    average = 0.0
    progress("training", 0, config.steps, None)
    for step in range(config.steps):
        ids, labels = next(batches)
        logits = model(ids[:, :-1], use_cache=False).logits.flatten(0, 1)
        loss = F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=_IGNORED)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        average += (loss.item() - average) / min(step + 1, 50)
        progress("training", step + 1, config.steps, average)
    model.eval()
    return average


def _batches(
    tokenizer: Any, task: Task, problems: list[Problem], config: WarmStartConfig
) -> Batches:
    """Endless batches of token ids and labels, (B, L) each; every pass has new demonstrations.

    Padding is on the right, where causal attention needs no mask. Labels cover completion and eos.
    """
    rng = random.Random(f"warm start {config.seed}")
    vocabulary = tokenizer.get_vocab()
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    queue: list[Problem] = []
    while True:
        while len(queue) < config.batch_size:
            queue += rng.sample(problems, len(problems))
        chosen, queue = queue[: config.batch_size], queue[config.batch_size :]
        texts = [p.prompt + task.demonstration(p, rng, config.skill) for p in chosen]
        rows = [torch.tensor([*(vocabulary[c] for c in text), eos]) for text in texts]
        ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        labels = pad_sequence(rows, batch_first=True, padding_value=_IGNORED)
        for row, problem in zip(labels, chosen, strict=True):
            row[: len(problem.prompt)] = _IGNORED
        yield ids, labels
