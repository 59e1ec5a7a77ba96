"""The study: a plain training, held at its stages, looked at, and let go on."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from entrocraft.lab.dynamics.bench import Bench
from entrocraft.lab.dynamics.config import DynamicsConfig
from entrocraft.lab.dynamics.figure import draw
from entrocraft.lab.dynamics.patterns import KINDS, try_patterns
from entrocraft.lab.dynamics.reach import try_rules
from entrocraft.lab.dynamics.summary import Rows, read_results, summarize
from entrocraft.lab.dynamics.theorem import check_theorem
from entrocraft.lab.evaluation import evaluate
from entrocraft.lab.models import load_model
from entrocraft.lab.report import save_png
from entrocraft.lab.tasks import get_task
from entrocraft.lab.tasks.prompts import speaks_chat
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.directory import RunDirectory
from entrocraft.lab.training.run import prepare_model
from entrocraft.lab.training.trainer import build_trainer, trainer_arguments

__all__ = ["dynamics"]

_PROBE_SEED = 7_003
_PARTS = ("theorem", "patterns", "reach")


def dynamics(config: DynamicsConfig, console: Console | None = None) -> dict[str, Any]:
    """Run what is missing of a study, write its files, and return what dynamics.json holds.

    Raises:
        ValueError: a config that cannot run, or a directory that holds something else.
        RuntimeError: several processes, or another process is writing the directory.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RuntimeError("this study runs in one process; start it without torchrun")
    directory = RunDirectory(config.output)
    with directory.locked():
        trainer_arguments(config.plain_training())  # its errors cost no warm start
        results = _Results(config, directory)
        if results.missing():
            _measure(config, directory, results, console or Console())
            shutil.rmtree(directory.checkpoints, ignore_errors=True)
        rows = {part: results.values[part] for part in _PARTS}
        results.save({"summary": summarize(rows)})
        save_png(draw(results.values), config.output / "dynamics.png")
    return results.values


class _Results:
    """dynamics.json: rewritten with every part that is finished, so that a stop loses one part.

    Raises:
        ValueError: the directory holds a training run, or a study with another config.
    """

    def __init__(self, config: DynamicsConfig, directory: RunDirectory) -> None:
        self.config = config
        self.file = directory.path / "dynamics.json"
        mine = config.as_dict()
        self.values: dict[str, Any] = {
            "command": " ".join(["entrocraft", *sys.argv[1:]]),
            "config": mine,
            **{part: [] for part in _PARTS},
        }
        if directory.metrics.exists():
            raise ValueError(f"{config.output} holds a training run; choose another output")
        if not self.file.exists():
            return
        self.values = read_results(self.file)
        theirs = self.values["config"]
        for key in mine:
            if key != "output" and theirs.get(key) != mine[key]:
                raise ValueError(
                    f"{config.output} holds a study with {key}={theirs.get(key)!r}, now asked for "
                    f"{key}={mine[key]!r}; choose another output, or remove the directory"
                )

    def missing(self) -> dict[int, list[str]]:
        """Optimizer step -> parts that are not measured yet."""
        found = {}
        for stage, step in self.config.holds:
            parts = _PARTS if step - stage < self.config.reach_batches else _PARTS[:-1]
            there = {part for part in parts for row in self.values[part] if row["step"] == step}
            if left := [part for part in parts if part not in there]:
                found[step] = left
        return found

    def add(self, part: str, step: int, rows: Rows) -> None:
        """Write a finished part; a kill leaves it whole or absent."""
        stage = dict(map(reversed, self.config.holds))[step]  # type: ignore[arg-type]
        own = [{"stage": stage, "step": step, **row} for row in rows]
        self.save({part: sorted(self.values[part] + own, key=lambda row: row["step"])})

    def save(self, values: dict[str, Any]) -> None:
        """Rewrite the file with these values."""
        # JSON has no NaN and no infinity: null
        text = json.dumps(self.values | values)
        self.values = json.loads(text, parse_constant=lambda name: None)
        partial_file = self.file.with_suffix(".partial")
        partial_file.write_text(json.dumps(self.values, indent=1) + "\n")
        os.replace(partial_file, self.file)


def _measure(
    config: DynamicsConfig, directory: RunDirectory, results: _Results, console: Console
) -> None:
    training = config.plain_training()
    path = prepare_model(training, console)
    model, tokenizer = load_model(path, dtype=training.dtype)
    chat = speaks_chat(tokenizer, training.chat)
    task = get_task(config.task.name, **config.task.options)
    problems = partial(stored_problems, task, cache_dir=training.cache_dir, fewer=True)
    probed = problems("probe", config.probe_prompts) if config.reach_batches else []

    def probe() -> float:
        # the same seed each time: differences are less noisy than the values
        return evaluate(
            model,
            tokenizer,
            task,
            probed,
            max_new_tokens=training.max_completion_length,
            temperature=training.temperature,
            seed=_PROBE_SEED,
            chat=chat,
        ).entropy.value

    train = problems("train", config.task.train_size)
    trainer = build_trainer(training, model, tokenizer, task, train, chat)
    trainer.entropy_control = None  # plain TRL
    trainer.add_callback(_Hold(results, trainer, probe, console))
    checkpoint = directory.last_checkpoint(below=min(results.missing()) + 1)
    trainer.train(resume_from_checkpoint=checkpoint)


class _Hold(TrainerCallback):
    """Looks at the policy before the steps of the study; keeps checkpoints to resume from."""

    def __init__(
        self, results: _Results, trainer: Any, probe: Callable[[], float], console: Console
    ) -> None:
        self.results, self.trainer, self.probe = results, trainer, probe
        self.console = console
        self.missing = results.missing()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold the training here, if this step lacks parts of the study."""
        step, config = state.global_step, self.results.config
        if step not in self.missing:
            return
        seed = config.seed * 1_000_003 + step
        bench = Bench(self.trainer, seed)
        for part in self.missing[step]:
            self.console.print(f"held before step {step}: {part}", highlight=False)
            if part == "theorem":
                rows = check_theorem(
                    bench.logprob, bench.baseline, bench.sensitivity, bench.mask, bench.advantages
                )
            elif part == "patterns":
                offset = [s for _, s in config.holds].index(step) * config.patterns % len(KINDS)
                rows = try_patterns(bench, config.patterns, seed, offset)
            else:
                rows = try_rules(bench, config.inner_updates, config.clips, self.probe)
            self.results.add(part, step, rows)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the training where a stage begins; end it after the last look."""
        control.should_save = state.global_step in self.results.config.stages
        control.should_training_stop |= state.global_step > max(self.missing)
