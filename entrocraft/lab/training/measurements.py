"""Measurements of a training run on held-out problems: entropy probe and pass@k."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from entrocraft.lab.evaluation import evaluate
from entrocraft.lab.tasks import Task
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.config import TrainConfig
from entrocraft.method import EntropyControlWarning

__all__ = ["measurements"]

_PROBE_SEED, _EVALUATION_SEED = 7_001, 7_002
_LARGEST_PROBE_STDERR = 0.005
_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty")


def measurements(
    config: TrainConfig, trainer: Any, tokenizer: Any, task: Task, chat: bool
) -> Callable[[int], dict[str, float]]:
    """Return the function step -> metrics of the present policy that are due at that step."""
    settings, cache = config.evaluation, config.cache_dir
    probe = evaluation = None
    if settings.probe_every:
        probe = stored_problems(task, "probe", settings.probe_prompts, cache_dir=cache, fewer=True)
    if settings.every:
        evaluation = stored_problems(task, "eval", settings.prompts, cache_dir=cache, fewer=True)
    common: dict[str, Any] = {
        "max_new_tokens": config.max_completion_length,
        "temperature": config.temperature,
        "chat": chat,
        "batch_size": settings.batch_size,
        "sampling": {key: config.trainer[key] for key in _SAMPLING if key in config.trainer},
    }

    def due(step: int, every: int) -> bool:
        return step % every == 0 or step == config.steps

    def measure(step: int) -> dict[str, float]:
        policy = trainer.accelerator.unwrap_model(trainer.model), tokenizer, task
        metrics: dict[str, float] = {}
        if probe is not None and due(step, settings.probe_every):
            entropy = evaluate(*policy, probe, seed=_PROBE_SEED, **common).entropy
            metrics |= {"entropy/probe": entropy.value, "entropy/probe_stderr": entropy.stderr}
            if step == 0 and entropy.stderr > _LARGEST_PROBE_STDERR:
                warnings.warn(
                    f"the probe's standard error is {entropy.stderr:.4f} nats per token with "
                    f"{len(probe)} problems; for less than {_LARGEST_PROBE_STDERR} raise "
                    "evaluation.probe_prompts",
                    EntropyControlWarning,
                    stacklevel=2,
                )
        if evaluation is not None and due(step, settings.every):
            samples = settings.samples
            seen = evaluate(*policy, evaluation, samples=samples, seed=_EVALUATION_SEED, **common)
            for k in sorted({1, samples}):
                estimate = seen.pass_at(k)
                metrics |= {
                    f"eval/pass@{k}": estimate.value,
                    f"eval/pass@{k}_stderr": estimate.stderr,
                }
        return metrics

    return measure
