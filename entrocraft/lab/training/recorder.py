"""Recorder of metrics.jsonl, one JSON object per optimizer step, and the measurements in it.

A record's `step` counts the optimizer steps taken before its rollouts: target, measurement, probe
and reward of one record belong to the same policy. One more record, at the last step, holds the
final probe and evaluation.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from entrocraft.lab.evaluation import evaluate
from entrocraft.lab.records import read_records
from entrocraft.lab.tasks import Task
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.config import TrainConfig
from entrocraft.method import EntropyControlWarning
from entrocraft.storage import write_atomically

_LOGGED = (
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "loss",
    "grad_norm",
    "learning_rate",
    "kl",
    "completions/mean_length",
    "completions/clipped_ratio",
)
_PROBE_SEED, _EVALUATION_SEED = 7_001, 7_002
_LARGEST_PROBE_STDERR = 0.005
_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty")


class Recorder(TrainerCallback):
    """Trainer callback that writes metrics.jsonl.

    Args:
        path: the metrics file; on resume, records from the checkpoint's step on are written anew.
        measure: step -> metrics of the policy at that step (probe, evaluation), or an empty dict.
        target: step -> target entropy in nats per token, or None while it is not known.
        show: called with every record.
    """

    def __init__(
        self,
        path: Path,
        measure: Callable[[int], dict[str, float]],
        target: Callable[[int], float | None],
        show: Callable[[dict[str, Any]], None],
    ) -> None:
        self.path = path
        self.measure = measure
        self.target = target
        self.show = show
        self._measured: dict[str, float] = {}
        self._start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what was recorded before the step that the run starts from."""
        kept = [r for r in read_records(self.path) if r["step"] < state.global_step]
        before = max((r.get("seconds", 0.0) for r in kept), default=0.0)
        self._start = time.perf_counter() - before
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        for record in kept:
            self.show(record)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the policy that is about to make this step's rollouts."""
        self._measured = self.measure(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Turn the trainer's log of one step into a record."""
        if not logs or "loss" not in logs:
            return  # the summary at the end of training
        chosen = {k: v for k, v in logs.items() if k in _LOGGED or k.startswith("entropy/")}
        self._write(state.global_step - 1, chosen | self._measured)
        self._measured = {}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the final policy."""
        measured = self.measure(state.global_step)
        if measured:
            target = self.target(state.global_step)
            known = {} if target is None else {"entropy/target": target}
            self._write(state.global_step, known | measured)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        finite = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        record = {"step": step, "seconds": round(time.perf_counter() - self._start, 3), **finite}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.show(record)


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
