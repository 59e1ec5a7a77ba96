"""The study: a plain training, held at its stages, looked at, and let go on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from entrocraft.lab.dynamics.authority import count_updates, try_rules
from entrocraft.lab.dynamics.bench import Bench
from entrocraft.lab.dynamics.config import DynamicsConfig
from entrocraft.lab.dynamics.parts import StudyDirectory
from entrocraft.lab.dynamics.patterns import KINDS, try_patterns
from entrocraft.lab.dynamics.summary import summarize
from entrocraft.lab.dynamics.theorem import check_theorem
from entrocraft.lab.evaluation import evaluate
from entrocraft.lab.models import load_model
from entrocraft.lab.tasks import Problem, Task, get_task
from entrocraft.lab.tasks.prompts import speaks_chat
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.progress import Display
from entrocraft.lab.training.run import prepare_model
from entrocraft.lab.training.trainer import build_trainer, trainer_arguments

__all__ = ["dynamics"]

_PROBE_SEED = 7_003


def dynamics(config: DynamicsConfig, console: Console | None = None) -> dict[str, Any]:
    """Run what is missing of a study, write its files, and return what dynamics.json holds.

    Raises:
        ValueError: a config that cannot run, or a directory that holds another study.
        RuntimeError: several processes, or another process is writing the directory.
    """
    from entrocraft.lab.dynamics.figure import draw
    from entrocraft.lab.report import save_png

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RuntimeError("this study runs in one process; start it without torchrun")
    console = console or Console()
    directory = StudyDirectory(config.output)
    with directory.locked():
        trainer_arguments(config.training())  # its errors cost no warm start
        directory.claim(config)
        if any(directory.load(part) is None for part in _parts(config)):
            _measure(config, directory, console)
            directory.forget_checkpoints()
        parts = {name: directory.load(name) or {} for name in _parts(config)}
        rows = {
            kind: [
                {"stage": stage, "step": step, **row}
                for stage, step in config.holds
                for row in parts.get(_name(step, kind), {}).get("rows", [])
            ]
            for kind in ("patterns", "theorem", "authority")
        }
        results = _plain(
            {
                "command": " ".join(["entrocraft", *sys.argv[1:]]),
                "config": config.as_dict(),
                "summary": summarize(rows),
                **rows,
            }
        )
        directory.save_results(results)
        save_png(draw(results), directory.figure)
    return results


def _name(step: int, kind: str) -> str:
    return f"{step:06d}-{kind}"


def _parts(config: DynamicsConfig) -> list[str]:
    """Names of all parts, in the order in which they are made."""
    names = []
    for stage, step in config.holds:
        names += [_name(step, "theorem"), _name(step, "patterns")]
        if step - stage < config.authority_batches:
            names.append(_name(step, "authority"))
    return names


def _measure(config: DynamicsConfig, directory: StudyDirectory, console: Console) -> None:
    training = config.training()
    path = prepare_model(training, console)
    model, tokenizer = load_model(path, dtype=config.dtype)
    chat = speaks_chat(tokenizer, config.chat)
    task = get_task(config.task.name, **config.task.options)
    problems = stored_problems(
        task, "train", config.task.train_size, cache_dir=config.cache_dir, fewer=True
    )
    trainer = build_trainer(training, model, tokenizer, task, problems, chat)
    trainer.entropy_control = None  # plain TRL
    missing = [step for _, step in config.holds if _missing(config, directory, step)]
    checkpoint = directory.last_checkpoint(missing[0])
    start = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    with _StudyProgress(config, directory, missing[-1], start, console) as progress:
        probe = _probe(config, trainer, tokenizer, task, chat)
        trainer.add_callback(_Hold(config, directory, trainer, probe, progress, missing[-1]))
        trainer.train(resume_from_checkpoint=checkpoint)


def _missing(config: DynamicsConfig, directory: StudyDirectory, step: int) -> list[str]:
    here = [name for name in _parts(config) if int(name.split("-")[0]) == step]
    return [name.split("-")[1] for name in here if directory.load(name) is None]


class _Hold(TrainerCallback):
    """Looks at the policy before the steps of the study; keeps checkpoints to resume from."""

    def __init__(
        self,
        config: DynamicsConfig,
        directory: StudyDirectory,
        trainer: Any,
        probe: Callable[[], float],
        progress: _StudyProgress,
        last: int,
    ) -> None:
        self.config = config
        self.directory = directory
        self.trainer = trainer
        self.probe = probe
        self.progress = progress
        self.last = last

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold the training here, if this step belongs to the study."""
        if any(step == state.global_step for _, step in self.config.holds):
            self._look(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the training where a stage begins; end it after the last look."""
        self.progress.tick(f"training, step {state.global_step}")
        control.should_save = state.global_step in self.config.stages
        control.should_training_stop |= state.global_step > self.last

    def _look(self, step: int) -> None:
        missing = _missing(self.config, self.directory, step)
        if not missing:
            return
        config, save = self.config, self.directory.save
        seed = config.seed * 1_000_003 + step
        bench = Bench(self.trainer, seed)

        def tick() -> None:
            self.progress.tick(f"held at step {step}")

        if "theorem" in missing:
            counts = check_theorem(
                bench.logprob, bench.baseline, bench.opposition, bench.mask, bench.advantages
            )
            rows = [{"advantage": sign, **values} for sign, values in counts.items()]
            save(_name(step, "theorem"), {"rows": rows})
        if "patterns" in missing:
            offset = [s for _, s in config.holds].index(step) * config.patterns % len(KINDS)
            tried = try_patterns(bench, config.patterns, seed, offset, tick)
            save(_name(step, "patterns"), {"rows": tried})
        if "authority" in missing:
            tried = try_rules(bench, config.inner_updates, config.clips, self.probe, tick)
            save(_name(step, "authority"), {"rows": tried})


def _probe(
    config: DynamicsConfig, trainer: Any, tokenizer: Any, task: Task, chat: bool
) -> Callable[[], float]:
    problems: list[Problem] = []

    def measure() -> float:
        if not problems:
            size = config.probe_prompts
            cache = config.cache_dir
            problems.extend(stored_problems(task, "probe", size, cache_dir=cache, fewer=True))
        model = trainer.accelerator.unwrap_model(trainer.model)
        # the same seed each time: differences are less noisy than the values
        seen = evaluate(
            model,
            tokenizer,
            task,
            problems,
            max_new_tokens=config.max_completion_length,
            temperature=config.temperature,
            seed=_PROBE_SEED,
            chat=chat,
        )
        return seen.entropy.value

    return measure


class _StudyProgress(Display):
    """One bar over training steps, keep patterns and the rules' inner updates."""

    def __init__(
        self,
        config: DynamicsConfig,
        directory: StudyDirectory,
        last: int,
        start: int,
        console: Console,
    ) -> None:
        work = last + 1 - start
        for _, step in config.holds:
            missing = _missing(config, directory, step)
            work += config.patterns if "patterns" in missing else 0
            if "authority" in missing:
                work += count_updates(config.inner_updates, config.clips)
        super().__init__(console, work)
        self._task = self._progress.add_task("[bold]dynamics", total=work)
        self._done, self._work = 0, work

    def tick(self, text: str) -> None:
        """Count one optimizer step."""
        self._done += 1
        self._progress.update(self._task, completed=self._done, numbers=text)
        self._every_tenth(self._done, f"dynamics {self._done}/{self._work} updates  ({text})")


def _plain(values: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    return json.loads(json.dumps(values), parse_constant=lambda name: None)
