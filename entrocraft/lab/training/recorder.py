"""Recorder of metrics.jsonl, one JSON object per optimizer step, and the measurements in it.

Target, measurement, probe and reward of one record belong to the same policy. One more record, at
the last step, holds the final probe and evaluation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer

from entrocraft.lab.evaluation import evaluate
from entrocraft.lab.tasks import Problem, Split, Task
from entrocraft.lab.tasks.prompts import short_enough
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.config import TrainConfig
from entrocraft.method import EntropyControlWarning
from entrocraft.trl import MetricsFile

_PROBE_SEED, _EVALUATION_SEED = 7_001, 7_002
_LARGEST_PROBE_STDERR = 0.005
_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty")


class Recorder(MetricsFile):
    """Writes metrics.jsonl, and has the policy measured on the way.

    What is measured goes through the trainer's log, so that every tracker of the run gets it.

    Args:
        path: the metrics file.
        trainer: the callback joins this one, before the trackers, which end first otherwise.
        measure: step -> metrics of the policy at that step (probe, evaluation), or an empty dict.
        show: called with every record.
    """

    def __init__(
        self,
        path: Path,
        trainer: Any,
        measure: Callable[[int], dict[str, float]],
        show: Callable[[dict[str, Any]], None],
    ) -> None:
        super().__init__(path, show)
        self.trainer = trainer
        self.measure = measure
        trainer.callback_handler.callbacks.insert(0, self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the policy that is about to make this step's rollouts."""
        if measured := self.measure(state.global_step):
            # not TRL's own log, which would average and print what belongs to the next step
            Trainer.log(self.trainer, measured)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the final policy."""
        self.on_step_begin(args, state, control)
        target = self.trainer.entropy_control.target(state.global_step)
        if self._held and target is not None:
            self._held["entropy/target"] = target
        super().on_train_end(args, state, control)


def measurements(
    config: TrainConfig, trainer: Any, tokenizer: Any, task: Task, chat: bool
) -> Callable[[int], dict[str, float]]:
    """Return the function step -> metrics of the present policy that are due at that step."""
    settings = config.evaluation

    def held_out(split: Split, size: int) -> list[Problem]:
        found = stored_problems(task, split, size, cache_dir=config.cache_dir, fewer=True)
        return short_enough(found, tokenizer, chat, config.task.max_prompt_tokens)

    probe = held_out("probe", settings.probe_prompts) if settings.probe_every else None
    evaluation = held_out("eval", settings.prompts) if settings.every else None
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
                text = f"the probe's standard error is {entropy.stderr:.4f} nats per token with "
                text += f"{len(probe)} problems; for less than {_LARGEST_PROBE_STDERR} raise "
                text += "evaluation.probe_prompts"
                warnings.warn(text, EntropyControlWarning, stacklevel=2)
        if evaluation is not None and due(step, settings.every):
            samples = settings.samples
            seen = evaluate(*policy, evaluation, samples=samples, seed=_EVALUATION_SEED, **common)
            metrics |= seen.metrics()
        return metrics

    return measure
