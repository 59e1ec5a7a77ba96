"""Configuration of `entrocraft dynamics`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from entrocraft.lab.parsing import config_from_mapping
from entrocraft.lab.training.config import TaskConfig, TrainConfig

__all__ = ["FIRST_STEP", "DynamicsConfig"]

FIRST_STEP = 6
"""Steps before the first look: Adam's first ones are nearly the sign of the gradient, and no
linear prediction can describe them."""


@dataclass
class DynamicsConfig:
    """Predicted against post-update change of entropy, the paper's theorem, reach of each rule.

    Args:
        output: directory; gets dynamics.json, dynamics.png, and while the study goes checkpoints/.
            The same command goes on after a stop.
        model: a directory or hub name of a causal language model; "tiny" is a small reasoner that
            is warm-started on the task once and cached.
        seed: of model sampling, prompts and keep patterns.
        learning_rate: of AdamW.
        training: other keys of `entrocraft train` for the training that is looked at, e.g.
            {algorithm: rloo, prompts: 16, trainer: {loss_type: dr_grpo}}.
        stages: optimizer steps of the plain training at which it is held.
        batches: rollout batches of each stage, one optimizer step apart, so that what momentum
            brings differs.
        patterns: keep patterns tried on each batch.
        reach_batches: batches of each stage on which the rules are tried; 0 leaves that out.
        inner_updates: optimizer steps on one batch after which a rule's reach is read.
        clips: clip ranges of the probability ratio for that; null does not clip.
        probe_prompts: held-out problems, one fresh sample each, on which reach is measured.
        task: what to train on.
    """

    output: Path = Path("runs/dynamics")
    model: str = "tiny"
    seed: int = 0
    learning_rate: float = 3e-4
    training: dict[str, Any] = field(default_factory=dict)
    stages: list[int] = field(default_factory=lambda: [10, 50, 100])
    batches: int = 4
    patterns: int = 12
    reach_batches: int = 2
    inner_updates: list[int] = field(default_factory=lambda: [1, 4, 16])
    clips: list[float | None] = field(default_factory=lambda: [0.2, None])
    probe_prompts: int = 512
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        self.output = Path(self.output)
        self.plain_training()
        rising = [0, *self.inner_updates]
        wrong = [
            (self.batches < 1, "batches", "use at least 1"),
            (self.patterns < 3, "patterns", "a line fitted to fewer than 3 says nothing"),
            (self.probe_prompts < 1, "probe_prompts", "use at least 1"),
            (not 0 <= self.reach_batches <= self.batches, "reach_batches", "use 0 to batches"),
            (
                not self.stages or min(self.stages) < FIRST_STEP,
                "stages",
                f"name at least one, and none before step {FIRST_STEP}: an optimizer's first "
                "steps, with its moments still empty, are not linear",
            ),
            (
                any(later - earlier < self.batches for earlier, later in pairwise(self.stages)),
                "stages",
                f"each takes {self.batches} steps (batches) and the next one starts after it: put "
                "them in order and further apart",
            ),
            (
                len(rising) < 2 or any(b <= a for a, b in pairwise(rising)),
                "inner_updates",
                "name them in rising order, from 1 on",
            ),
            (
                not self.clips or any(clip is not None and clip <= 0 for clip in self.clips),
                "clips",
                "use numbers above 0, or null for no clipping",
            ),
        ]
        for bad, name, remedy in wrong:
            if bad:
                raise ValueError(f"{name}={getattr(self, name)}: {remedy}")

    @property
    def holds(self) -> list[tuple[int, int]]:
        """(stage, optimizer step) of every batch, in order."""
        return [(stage, stage + i) for stage in self.stages for i in range(self.batches)]

    def plain_training(self) -> TrainConfig:
        """Return the config of the training that is looked at: no control, no evaluation.

        Raises:
            ValueError: `training` has an unknown key, or one that this study sets.
        """
        fixed = {
            "output": str(self.output),
            "model": self.model,
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "task": dataclasses.asdict(self.task),
            "steps": max(self.stages, default=0) + self.batches,
            "updates": 1,
            "save_every": 0,
            "control": {"rule": None},
            "evaluation": {"probe_every": 0, "every": 0},
        }
        if clash := sorted(self.training.keys() & fixed.keys()):
            raise ValueError(f"training.{clash[0]} is set by the study itself; leave it out")
        return config_from_mapping(TrainConfig, self.training | fixed)

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, as written to dynamics.json."""
        return dataclasses.asdict(self) | {"output": str(self.output)}
