"""Build and run one training, from a config to a run directory."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from entrocraft.evaluation import evaluate
from entrocraft.models import WarmStartConfig, load_model, progress_bar, warm_start
from entrocraft.report import write_report
from entrocraft.tasks import Problem, Task, get_task
from entrocraft.tasks.prompts import completion_text, speaks_chat, trainer_prompt
from entrocraft.tasks.store import stored_problems
from entrocraft.training.config import TINY, TrainConfig, check_trainer_options
from entrocraft.training.progress import RunProgress
from entrocraft.training.recorder import Recorder

__all__ = ["prepare_model", "train"]

_PROBE_SEED, _EVALUATION_SEED = 7_001, 7_002


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Run one training and return its directory.

    Goes on from the last whole checkpoint in the directory; a finished run is not repeated, its
    report is drawn again.

    Raises:
        ValueError: a config that cannot run, or a directory that holds a run of another config.
    """
    console = console or Console()
    main = int(os.environ.get("RANK", "0")) == 0
    output = config.output
    if main:
        _claim(output, config)
    path = prepare_model(config, console)
    model, tokenizer = load_model(path)
    chat = speaks_chat(tokenizer, config.chat)
    task = get_task(config.task.name, **config.task.options)
    problems = stored_problems(task, "train", config.task.train_size, cache_dir=config.cache_dir)
    trainer = _trainer(config, model, tokenizer, task, problems, chat)
    controller = trainer.entropy_control
    progress: Any = nullcontext()
    if main:
        progress = RunProgress(config.title, config.steps, console)
        recorder = Recorder(
            output / "metrics.jsonl",
            _measurements(config, trainer, tokenizer, task, chat),
            controller.target,
            [progress],
        )
        trainer.add_callback(recorder)
    checkpoint = _last_checkpoint(output) if config.resume else None
    with progress:
        trainer.train(resume_from_checkpoint=checkpoint)
    if main:
        write_report([output], output)
    return output


def prepare_model(config: TrainConfig, console: Console | None = None) -> str:
    """Return the model's directory or hub name; the tiny model is made if it is not cached."""
    if config.model != TINY:
        return config.model
    settings = WarmStartConfig.for_task(
        config.task.name, **{"task_options": config.task.options, **config.warm_start}
    )
    with progress_bar() as progress:
        return str(warm_start(settings, config.cache_dir, progress))


def _claim(output: Path, config: TrainConfig) -> None:
    """Write config.yaml, or check that the directory already holds this very run."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / "config.yaml"
    mine = config.as_dict()
    same = [key for key in mine if key not in ("output", "resume", "cache_dir")]
    if file.exists() and config.resume:
        theirs = yaml.safe_load(file.read_text()) or {}
        changed = [key for key in same if theirs.get(key) != mine[key]]
        if changed:
            key = changed[0]
            raise ValueError(
                f"{output} holds a run with {key}={theirs.get(key)!r}, now asked for "
                f"{key}={mine[key]!r}; choose another output, or set resume=false to start over"
            )
    command = " ".join(["entrocraft", *sys.argv[1:]])
    partial = output / "config.yaml.partial"
    partial.write_text(yaml.safe_dump(mine | {"command": command}, sort_keys=False))
    os.replace(partial, file)


def _last_checkpoint(output: Path) -> str | None:
    """Last checkpoint that was written to its end."""
    root = output / "checkpoints"
    while root.exists() and (found := get_last_checkpoint(str(root))) is not None:
        if (Path(found) / "trainer_state.json").exists():
            return found
        os.replace(found, root / f"broken-{Path(found).name}")
    return None


def _trainer(
    config: TrainConfig,
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: list[Problem],
    chat: bool,
) -> Any:
    from trl import GRPOConfig, RLOOConfig

    from entrocraft.trl import GRPOTrainer, RLOOTrainer

    config_class, trainer_class = {
        "grpo": (GRPOConfig, GRPOTrainer),
        "rloo": (RLOOConfig, RLOOTrainer),
    }[config.algorithm]
    check_trainer_options(config.trainer, config_class)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rollouts = config.prompts * config.generations
    per_update, rest = divmod(rollouts, processes * config.updates)
    if rest:
        raise ValueError(
            f"{rollouts} rollouts ({config.prompts} prompts x {config.generations}) do not divide "
            f"into {config.updates} updates on {processes} processes; change prompts or updates"
        )
    micro = min(config.micro_batch or per_update, per_update)
    if per_update % micro:
        raise ValueError(
            f"micro_batch is {micro}, which does not divide the {per_update} rollouts of an "
            "update; choose a divisor"
        )
    accumulation = per_update // micro
    cuda = torch.cuda.is_available()
    arguments = {
        "output_dir": str(config.output / "checkpoints"),
        "seed": config.seed,
        "use_cpu": not cuda,
        "bf16": cuda,
        "gradient_checkpointing": cuda,
        "max_steps": config.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * config.updates,
        "num_generations": config.generations,
        "max_completion_length": config.max_completion_length,
        "temperature": config.temperature,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "beta": 0.0,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": config.save_every or config.steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        **config.trainer,
    }
    by_key = {problem.key: problem for problem in problems}

    def score(completions: list[Any], key: list[str], **columns: Any) -> list[float]:
        texts = [completion_text(completion) for completion in completions]
        return [task.verify(by_key[k], text) for k, text in zip(key, texts, strict=True)]

    score.__name__ = task.name
    trainer = trainer_class(
        model=model,
        reward_funcs=score,
        args=config_class(**arguments),
        train_dataset=Dataset.from_dict(
            {
                "prompt": [trainer_prompt(problem, chat) for problem in problems],
                "key": list(by_key),
            }
        ),
        processing_class=tokenizer,
        entropy_control=config.control.build(config.seed),
    )
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    return trainer


def _measurements(config: TrainConfig, trainer: Any, tokenizer: Any, task: Task, chat: bool) -> Any:
    """Return the function step -> probe and evaluation metrics that are due at it."""
    settings = config.evaluation
    probe = evaluation = None
    if settings.probe_every:
        probe = stored_problems(task, "probe", settings.probe_prompts, cache_dir=config.cache_dir)
    if settings.every:
        evaluation = stored_problems(task, "eval", settings.prompts, cache_dir=config.cache_dir)
    common: dict[str, Any] = {
        "max_new_tokens": config.max_completion_length,
        "temperature": config.temperature,
        "chat": chat,
    }

    def due(step: int, every: int) -> bool:
        return step % every == 0 or step == config.steps

    def measure(step: int) -> dict[str, float]:
        model = trainer.accelerator.unwrap_model(trainer.model)
        metrics = {}
        if probe is not None and due(step, settings.probe_every):
            seen = evaluate(model, tokenizer, task, probe, seed=_PROBE_SEED, **common)
            metrics["entropy/probe"] = seen.entropy.value
            metrics["entropy/probe_stderr"] = seen.entropy.stderr
        if evaluation is not None and due(step, settings.every):
            seen = evaluate(
                model,
                tokenizer,
                task,
                evaluation,
                samples=settings.samples,
                seed=_EVALUATION_SEED,
                **common,
            )
            for k in sorted({1, settings.samples}):
                estimate = seen.pass_at(k)
                metrics[f"eval/pass@{k}"] = estimate.value
                metrics[f"eval/pass@{k}_stderr"] = estimate.stderr
        return metrics

    return measure
