"""metrics.jsonl: one object per optimizer step, written as the run goes.

A record's `step` counts the optimizer steps taken before its rollouts: target, measurement, probe
and reward of one record belong to the same policy. One more record, at the last step, holds the
final probe and evaluation.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from entrocraft.lab.records import read_records

__all__ = ["Recorder"]

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

Listener = Callable[[dict[str, Any]], None]


class Recorder(TrainerCallback):
    """Writes metrics.jsonl beside the trainer's checkpoints.

    Args:
        path: the metrics file; on resume, records from the checkpoint's step on are written anew.
        measure: step -> metrics of the policy at that step (probe, evaluation), or an empty dict.
        target: step -> target entropy in nats per token, or None while it is not known.
        listeners: called with every record.
    """

    def __init__(
        self,
        path: Path,
        measure: Callable[[int], dict[str, float]],
        target: Callable[[int], float | None],
        listeners: list[Listener],
    ) -> None:
        self.path = path
        self.measure = measure
        self.target = target
        self.listeners = listeners
        self._measured: dict[str, float] = {}
        self._start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what was recorded before the step that the run starts from."""
        kept = [r for r in read_records(self.path) if r["step"] < state.global_step]
        before = max((r.get("seconds", 0.0) for r in kept), default=0.0)
        self._start = time.perf_counter() - before
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(partial, self.path)
        for record in kept:
            for listener in self.listeners:
                listener(record)

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
        for listener in self.listeners:
            listener(record)
