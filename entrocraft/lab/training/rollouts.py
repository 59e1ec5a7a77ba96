"""A few rollouts of the run's batches as text, with what was decided on them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from entrocraft.lab.records import read_rollouts
from entrocraft.lab.tasks.base import completion_text
from entrocraft.storage import write_atomically
from entrocraft.trl.checkpoint import batches_before

PER_BATCH = 4
BATCHES = 200
LONGEST = 1000  # characters of a prompt or a completion


class RolloutSamples(TrainerCallback):
    """Writes `rollouts.jsonl`: a record a batch, with the batch's step and four rollouts.

    These are evenly spaced in the order of their predicted effect, both ends included. The file
    stays below about 2 MB: when it has 200 batches, every second one is dropped and from then on
    half as many are kept.

    Args:
        path: of the file.
        trainer: that the callback joins, on the main process.
    """

    def __init__(self, path: Path, trainer: Any) -> None:
        self._path, self._trainer = path, trainer
        self._records: list[dict[str, Any]] = []
        self._every, self._decision = 1, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what was recorded before the step that the run starts from."""
        self._records = [r for r in read_rollouts(self._path) if r["step"] < state.global_step]
        self._every = max(
            math.gcd(*(int(batches_before(args, r["step"])) for r in self._records)), 1
        )
        self._decision = self._trainer.last_decision
        self._write()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the batch that was decided on for this step, if there was one."""
        decision, step = self._trainer.last_decision, state.global_step - 1
        if decision is self._decision or int(batches_before(args, step)) % self._every:
            return
        self._decision = decision
        self._records.append({"step": step, "rollouts": self._rollouts(decision)})
        if len(self._records) <= BATCHES:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._records[-1]) + "\n")
            return
        self._every *= 2
        self._records = [
            r for r in self._records if int(batches_before(args, r["step"])) % self._every == 0
        ]
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, "".join(json.dumps(r) + "\n" for r in self._records))

    def _rollouts(self, decision: Any) -> list[dict[str, Any]]:
        logs, effects = self._trainer._logs, decision.effects
        advantages = torch.tensor(list(logs["advantages"]), dtype=torch.float64)
        if effects is None:  # a baseline predicts none
            order = advantages.argsort(stable=True)
        else:
            # nats per unit of effect, as the filter has learned them
            gain = [
                decision.metrics.get(f"entropy/gain_{s}", 1.0) for s in ("negative", "positive")
            ]
            effects = effects * torch.where(advantages > 0, gain[1], gain[0])
            order = effects.argsort(stable=True)
        places = torch.linspace(0, len(order) - 1, min(PER_BATCH, len(order))).round().long()
        rewards = {name: list(values) for name, values in logs["rewards"].items()}
        prompts, completions = list(logs["prompt"]), list(logs["completion"])
        return [
            {
                "prompt": completion_text(prompts[row])[-LONGEST:],
                "completion": completion_text(completions[row])[:LONGEST],
                "reward": sum(values[row] for values in rewards.values()),
                "advantage": float(advantages[row]),
                "predicted_effect": None if effects is None else float(effects[row]),
                "keep_probability": float(decision.probabilities[row]),
                "kept": bool(decision.weights[row] != 0),
            }
            for row in order[places].tolist()
        ]
