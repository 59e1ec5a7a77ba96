"""The study: a plain training run, paused at its stages, measured, and resumed."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from entrocraft.lab.dynamics.bench import Bench
from entrocraft.lab.dynamics.config import DynamicsConfig
from entrocraft.lab.dynamics.figure import draw
from entrocraft.lab.dynamics.summary import Rows, read_results, summarize
from entrocraft.lab.dynamics.theorem import check_theorem
from entrocraft.lab.dynamics.trials import KINDS, try_patterns, try_rules
from entrocraft.lab.evaluation import evaluate
from entrocraft.lab.models import load_model
from entrocraft.lab.report import save_png
from entrocraft.lab.tasks import get_task
from entrocraft.lab.tasks.prompts import speaks_chat
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.directory import RunDirectory
from entrocraft.lab.training.run import prepare_model
from entrocraft.lab.training.trainer import build_trainer, trainer_arguments
from entrocraft.storage import write_atomically

_PROBE_SEED = 7_003
_PARTS = ("theorem", "patterns", "reach")


def dynamics(config: DynamicsConfig, console: Console | None = None) -> dict[str, Any]:
    """Run what is missing of a study, write its files, and return what dynamics.json holds.

    Raises:
        ValueError: a config that cannot run, or a directory that holds something else.
        RuntimeError: another process is writing the directory.
    """
    directory = RunDirectory(config.output)
    with directory.locked():
        trainer_arguments(config.plain_training())  # its errors cost no warm start
        if directory.metrics.exists():
            raise ValueError(f"{config.output} holds a training run; choose another output")
        results = _Results(config)
        if results.missing:
            _measure(config, directory, results, console or Console())
            shutil.rmtree(directory.checkpoints, ignore_errors=True)
        results.save(summary=summarize(results.values))
        save_png(draw(results.values), config.output / "dynamics.png")
    return results.values


class _Results:
    """dynamics.json: rewritten with every part that is finished, so that a stop loses one part."""

    def __init__(self, config: DynamicsConfig) -> None:
        self.config, self.file = config, config.output / "dynamics.json"
        mine = config.as_dict()
        self.values: dict[str, Any] = {part: [] for part in _PARTS}
        if self.file.exists():
            self.values = read_results(self.file)
            theirs = self.values["config"] | {"output": mine["output"]}
            if other := [f"{k}={v!r}" for k, v in theirs.items() if v != mine.get(k)]:
                known = ", ".join(other)
                raise ValueError(f"{self.file} is of a study with {known}; choose another output")
        self.values |= {"command": " ".join(["entrocraft", *sys.argv[1:]]), "config": mine}

    @property
    def missing(self) -> dict[int, list[str]]:
        """Optimizer step -> parts that are not measured yet."""
        there = {(row["step"], part) for part in _PARTS for row in self.values[part]}
        found: dict[int, list[str]] = {}
        for stage, step in self.config.holds:
            tries_rules = step - stage < self.config.reach_batches
            for part in _PARTS if tries_rules else _PARTS[:-1]:
                if (step, part) not in there:
                    found.setdefault(step, []).append(part)
        return found

    def add(self, part: str, step: int, rows: Rows) -> None:
        """Write a finished part."""
        stage = max(stage for stage in self.config.stages if stage <= step)
        rows = self.values[part] + [{"stage": stage, "step": step, **row} for row in rows]
        self.save(**{part: sorted(rows, key=lambda row: row["step"])})

    def save(self, **values: Any) -> None:
        """Rewrite the file, whole or not at all; JSON has no NaN and no infinity: null."""
        text = json.dumps(self.values | values)
        self.values = json.loads(text, parse_constant=lambda name: None)
        write_atomically(self.file, json.dumps(self.values, indent=1) + "\n")


def _measure(
    config: DynamicsConfig, directory: RunDirectory, results: _Results, console: Console
) -> None:
    training = config.plain_training()
    model, tokenizer = load_model(prepare_model(training, console), dtype=training.dtype)
    chat = speaks_chat(tokenizer, training.chat)
    task = get_task(config.task.name, **config.task.options)
    problems = partial(stored_problems, task, cache_dir=training.cache_dir, fewer=True)
    probed = problems("probe", config.probe_prompts) if config.reach_batches else []
    train = problems("train", config.task.train_size)
    trainer = build_trainer(training, model, tokenizer, task, train, chat)
    trainer.entropy_control = None  # plain TRL
    missing = results.missing

    def probe() -> float:
        # the same seed each time: differences are less noisy than the values
        options: dict[str, Any] = {"max_new_tokens": training.max_completion_length}
        options |= {"temperature": training.temperature, "seed": _PROBE_SEED, "chat": chat}
        return evaluate(model, tokenizer, task, probed, **options).entropy.value

    def look(step: int) -> None:
        seed = config.seed * 1_000_003 + step
        bench = Bench(trainer, seed)
        for part in missing[step]:
            console.print(f"held before step {step}: {part}", highlight=False)
            if part == "theorem":
                tokens = bench.logprob, bench.baseline, bench.sensitivity, bench.mask
                rows = check_theorem(*tokens, bench.advantages)
            elif part == "patterns":
                offset = [s for _, s in config.holds].index(step) * config.patterns % len(KINDS)
                rows = try_patterns(bench, config.patterns, seed, offset)
            else:
                rows = try_rules(bench, probe)
            results.add(part, step, rows)

    class Hold(TrainerCallback):
        """Looks at the policy before steps of the study; keeps checkpoints to resume from."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in missing:
                look(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = state.global_step in config.stages
            control.should_training_stop |= state.global_step > max(missing)

    trainer.add_callback(Hold())
    checkpoint = directory.last_checkpoint(below=min(missing) + 1)
    trainer.train(resume_from_checkpoint=checkpoint)
