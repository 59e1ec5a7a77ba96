"""Configuration of `entrocraft dynamics`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from entrocraft.lab.parsing import config_from_mapping
from entrocraft.lab.training.config import TaskConfig, TrainConfig
from entrocraft.typed import check_types

_FIRST_STEP = 6


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
    probe_prompts: int = 512
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        check_types(self)
        self.output = Path(self.output)
        self.plain_training()
        apart = min((b - a for a, b in pairwise(self.stages)), default=self.batches)
        late = min(self.stages, default=0) >= _FIRST_STEP
        for name, good, remedy in (
            ("batches", self.batches >= 1, "use at least 1"),
            ("patterns", self.patterns >= 3, "a line fitted to fewer than 3 says nothing"),
            ("probe_prompts", self.probe_prompts >= 1, "use at least 1"),
            ("reach_batches", 0 <= self.reach_batches <= self.batches, "use 0 to batches"),
            ("stages", late, f"Adam's steps before the {_FIRST_STEP}th are not linear"),
            ("stages", apart >= self.batches, "put them in order, at least `batches` steps apart"),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}; {remedy}")

    @property
    def holds(self) -> list[tuple[int, int]]:
        """(stage, optimizer step) of every batch, in order."""
        return [(stage, stage + i) for stage in self.stages for i in range(self.batches)]

    def plain_training(self) -> TrainConfig:
        """Return the config of the training that is looked at: no control, no evaluation.

        Raises:
            ValueError: `training` has an unknown key, or one that this study sets.
        """
        own = {name: getattr(self, name) for name in ("model", "seed", "learning_rate")}
        own |= {"output": str(self.output), "task": dataclasses.asdict(self.task)}
        own |= {"steps": max(self.stages, default=0) + self.batches, "updates": 1, "save_every": 0}
        own |= {"control": {"rule": None}, "evaluation": {"probe_every": 0, "every": 0}}
        if clash := sorted(self.training.keys() & own.keys()):
            raise ValueError(f"training.{clash[0]} is set by the study itself; leave it out")
        return config_from_mapping(TrainConfig, self.training | own)

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, as written to dynamics.json."""
        return dataclasses.asdict(self) | {"output": str(self.output)}
