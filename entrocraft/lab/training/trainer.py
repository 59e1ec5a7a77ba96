"""TRL trainer of a config: arguments, data, reward, entropy control."""

from __future__ import annotations

import difflib
import os
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback

from entrocraft.lab.tasks import Problem, Task
from entrocraft.lab.tasks.prompts import trainer_prompt
from entrocraft.lab.training.checkpoints import RotationByStep
from entrocraft.lab.training.config import TrainConfig
from entrocraft.typed import check_type

# options of TRL's config that are derived from keys of `TrainConfig`, and the key that sets them
_OWNED = {
    "output_dir": "output",
    "seed": "seed",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "micro_batch",
    "steps_per_generation": "updates",
    "generation_batch_size": "prompts",
    "num_generations": "generations",
    "max_completion_length": "max_completion_length",
    "temperature": "temperature",
    "learning_rate": "learning_rate",
    "save_steps": "save_every",
    "save_strategy": "save_every",
    "logging_steps": "none: every step is logged",
    "logging_strategy": "none: every step is logged",
}


def trainer_arguments(config: TrainConfig, processes: int = 1) -> dict[str, Any]:
    """Return the keyword arguments of TRL's `GRPOConfig` or `RLOOConfig`.

    Raises:
        ValueError: rollouts that do not divide into updates, processes and micro-batches, or an
            option that TRL does not have or that another key of ours sets.
    """
    _check_options(config)
    rollouts = config.prompts * config.generations
    per_update, rest = divmod(rollouts, processes * config.updates)
    if rest:
        batch = f"{rollouts} rollouts ({config.prompts} prompts x {config.generations})"
        parts = f"{config.updates} updates on {processes} processes"
        raise ValueError(f"{batch} do not divide into {parts}; change prompts or updates")
    micro = min(config.micro_batch or per_update, per_update)
    if per_update % micro:
        parts = f"the {per_update} rollouts of an update"
        raise ValueError(f"micro_batch is {micro}, which does not divide {parts}; choose a divisor")
    accumulation = per_update // micro
    # saved after whole rollout batches: the trainer cannot resume exactly inside one
    cycle = rollout_batch_steps(config)
    save_steps = -(-(config.save_every or config.steps) // cycle) * cycle
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(config.output / "checkpoints"),
        "seed": config.seed,
        "use_cpu": not cuda,
        "bf16": cuda and torch.cuda.is_bf16_supported(),
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
        "save_steps": save_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        **config.trainer,
    }


def rollout_batch_steps(config: TrainConfig) -> int:
    """Optimizer steps that one rollout batch is used for.

    Raises:
        ValueError: `trainer.num_iterations` is no whole number of at least 1.
    """
    iterations = config.trainer.get("num_iterations", 1)
    check_type("trainer.num_iterations", iterations, int)
    if iterations < 1:
        raise ValueError(f"trainer.num_iterations is {iterations}; use at least 1")
    return config.updates * iterations


def build_trainer(
    config: TrainConfig, model: Any, tokenizer: Any, task: Task, problems: list[Problem], chat: bool
) -> Any:
    """Make the trainer; its log is left to the caller's callbacks.

    Raises:
        ValueError: the task has too few problems for one batch.
    """
    if len(problems) < config.prompts:
        few = f"{task} has only {len(problems)} train problems and a batch takes {config.prompts}"
        remedy = "widen its ranges (task.options), add data or lower prompts"
        raise ValueError(f"{few} prompts; {remedy}")
    from entrocraft.trl import GRPOTrainer, RLOOTrainer

    trainer_class: type = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}[config.algorithm]
    if config.raw_rewards or config.advantage_noise:
        trainer_class = with_changed_advantages(
            trainer_class, config.raw_rewards, config.advantage_noise, config.seed
        )
    arguments = trainer_arguments(config, int(os.environ.get("WORLD_SIZE", "1")))
    limit = arguments.pop("save_total_limit")
    prompts = [trainer_prompt(problem, chat) for problem in problems]
    keys = [problem.key for problem in problems]
    trainer = trainer_class(
        model=model,
        reward_funcs=_reward(task, problems),
        args=config_class(config)(**arguments),
        train_dataset=Dataset.from_dict({"prompt": prompts, "key": keys}),
        processing_class=tokenizer,
        peft_config=None if config.lora is None else config.lora.build(),
        entropy_control=config.control.build(config.seed),
        callbacks=[RotationByStep(limit)],
    )
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    return trainer


def _reward(task: Task, problems: list[Problem]) -> Any:
    """Return the reward function that TRL calls: the task's rewards, by the problems' keys."""
    by_key = {problem.key: problem for problem in problems}

    def score(completions: list[Any], key: list[str], **columns: Any) -> list[float | None]:
        return task.rewards([by_key[k] for k in key], completions, **columns)

    score.__name__ = task.name  # TRL logs it
    return score


def config_class(config: TrainConfig) -> type:
    """Return TRL's config class of the algorithm."""
    from trl import GRPOConfig, RLOOConfig

    return GRPOConfig if config.algorithm == "grpo" else RLOOConfig


def _check_options(config: TrainConfig) -> None:
    kind = config_class(config)
    known = {field.name for field in fields(kind)}
    for name in config.trainer:
        if name in _OWNED:
            raise ValueError(f"trainer.{name} is set by this project's own key: {_OWNED[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"trainer.{name} is no option of {kind.__name__}{hint}")
    needed = {"vllm": config.trainer.get("use_vllm"), "peft": config.lora is not None}
    for package, wanted in needed.items():
        if wanted and find_spec(package) is None:
            key = {"vllm": "trainer.use_vllm is true", "peft": "lora is set"}[package]
            remedy = {"vllm": "trl[vllm]", "peft": "entrocraft[peft]"}[package]
            raise ValueError(f"{key}, but {package} is not installed: pip install '{remedy}'")


def with_changed_advantages(trainer_class: type, raw: bool, noise: float, seed: int) -> type:
    """Return a subclass of the trainer whose advantages are raw rewards, or carry noise, or both.

    `raw` is REINFORCE without a baseline, `noise` the standard deviation of normal noise. It is
    drawn from seed and step, so that a resumed run sees the same.
    """

    class Changed(trainer_class):
        """The trainer with changed advantages."""

        def _decide_on(self, output: dict[str, Any]) -> None:
            own = output["advantages"]
            if own.ndim == 1:
                start = self.accelerator.process_index * len(own)
                mine = slice(start, start + len(own))
                advantages = self._rollout_rewards[mine].nan_to_num().to(own) if raw else own
                if noise:
                    step = seed * 1_000_003 + self.state.global_step
                    generator = torch.Generator().manual_seed(step)
                    count = len(own) * self.accelerator.num_processes
                    drawn = noise * torch.randn(count, generator=generator)
                    advantages = advantages + drawn[mine].to(own)
                output["advantages"] = advantages
            super()._decide_on(output)

    Changed.__name__ = Changed.__qualname__ = trainer_class.__name__
    return Changed
