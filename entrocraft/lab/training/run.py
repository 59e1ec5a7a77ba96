"""Training run, from a config to a run directory."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console

from entrocraft.lab.models import WarmStartConfig, load_model, warm_start
from entrocraft.lab.parsing import config_from_mapping, merge
from entrocraft.lab.report import write_report
from entrocraft.lab.tasks import DataTask, get_task
from entrocraft.lab.tasks.prompts import short_enough, speaks_chat
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.checkpoints import StopOnSignal, lacking
from entrocraft.lab.training.config import TINY, TrainConfig
from entrocraft.lab.training.directory import RunDirectory
from entrocraft.lab.training.perfectible import perfectible
from entrocraft.lab.training.progress import RunProgress, WarmStartProgress
from entrocraft.lab.training.recorder import Recorder, measurements
from entrocraft.lab.training.rollouts import RolloutSamples
from entrocraft.lab.training.trainer import (
    build_trainer,
    rollout_batch_steps,
    trainer_arguments,
)
from entrocraft.trl import Steering


def train(config: TrainConfig, console: Console | None = None, verbose: bool = False) -> Path:
    """Run one training and return its directory.

    Goes on from the last whole checkpoint in the directory; a finished run is not repeated, its
    report is drawn again. Under `torchrun` every process takes part; the first one writes. The
    console shows step, entropy, target, reward and kept share, with `verbose` all that is logged.

    Raises:
        ValueError: a config that cannot run, or a directory that holds a run of another config.
        RuntimeError: another process is writing the directory.
        KeyboardInterrupt: the run was told to stop, by a SIGTERM or through its steer.json; the
            state is saved.
    """
    console = console or Console()
    progress = RunProgress(config.title, config.steps, console, verbose)
    processes = PartialState(cpu=not torch.cuda.is_available())
    directory = RunDirectory(config.output)
    with directory.locked() if processes.is_main_process else nullcontext():
        with processes.main_process_first():
            finished = config.resume and directory.finished(config)
            trainer_arguments(config, processes.num_processes)  # fails before a warm start
            path = prepare_model(config, console)
        if finished:
            remedy = "More steps go on from its end, resume=false starts over"
            text = f"{directory.path} holds this run, whole; nothing is trained. {remedy}"
            console.print(text, soft_wrap=True, highlight=False)
        else:
            _train(config, directory, path, processes.is_main_process, progress)
        if processes.is_main_process:
            write_report([directory.path], directory.path)
    return config.output


def prepare_model(config: TrainConfig, console: Console | None = None) -> str:
    """Return the model's directory or hub name; the tiny model is made if it is not cached."""
    if config.model != TINY:
        return config.model
    settings = WarmStartConfig.for_task(config.task.name, task_options=config.task.options)
    if config.warm_start:
        changed = merge(asdict(settings), config.warm_start)
        try:
            settings = config_from_mapping(WarmStartConfig, changed)
        except ValueError as error:
            raise ValueError(f"warm_start is {config.warm_start}: {error}") from error
    with WarmStartProgress(settings.steps, console) as progress:
        return str(warm_start(settings, config.cache_dir, progress))


def _train(
    config: TrainConfig, directory: RunDirectory, model_path: str, main: bool, progress: RunProgress
) -> None:
    task = get_task(config.task.name, **config.task.options)
    problems = stored_problems(
        task, "train", config.task.train_size, cache_dir=config.cache_dir, fewer=True
    )
    if main and isinstance(task, DataTask):
        progress.console.print(f"data: {task.describe()}", soft_wrap=True, highlight=False)
    model, tokenizer = load_model(model_path, config.eos, dtype=config.dtype)
    chat = speaks_chat(tokenizer, config.chat)
    problems = short_enough(problems, tokenizer, chat, config.task.max_prompt_tokens)
    if config.task.pass_rate is not None:
        with PartialState().main_process_first():
            problems = perfectible(config, model, tokenizer, task, problems, chat)
    trainer = build_trainer(config, model, tokenizer, task, problems, chat)
    steering = Steering(trainer, directory.path)
    stopping = StopOnSignal(rollout_batch_steps(config))
    trainer.add_callback(steering)
    trainer.add_callback(stopping)
    checkpoint = None
    if main:
        trainer.add_callback(RolloutSamples(directory.rollouts, trainer))
        measure = measurements(config, trainer, tokenizer, task, chat)
        Recorder(directory.metrics, trainer, measure, progress)
        directory.claim(config)
        # a checkpoint at the end would be followed by one step too many
        checkpoint = directory.last_checkpoint(below=config.steps) if config.resume else None
        if checkpoint and (parts := lacking(Path(checkpoint))):
            text = f"{checkpoint} lacks the state of {', '.join(parts)}, which starts afresh"
            warnings.warn(f"{text}; the run is not the uninterrupted one", stacklevel=2)
    [checkpoint] = broadcast_object_list([checkpoint])
    with progress if main else nullcontext():
        trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < config.steps:
        if steering.stopped or stopping.received:  # from outside, as by Ctrl-C
            raise KeyboardInterrupt
        ended = f"training ended at step {trainer.state.global_step} of {config.steps}"
        raise RuntimeError(f"{ended}: the trainer found no more data; look at its messages")
