"""Configuration of `entrocraft dynamics`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from entrocraft.lab.training.config import (
    TINY,
    EvaluationConfig,
    TaskConfig,
    TrainConfig,
)
from entrocraft.settings import ControlSettings

__all__ = ["FIRST_STEP", "DynamicsConfig"]

FIRST_STEP = 6
"""Steps before the first look: Adam's first ones are nearly the sign of the gradient, and no
linear prediction can describe them."""

_SHARED = (
    "output",
    "seed",
    "algorithm",
    "model",
    "dtype",
    "chat",
    "warm_start",
    "cache_dir",
    "prompts",
    "generations",
    "micro_batch",
    "learning_rate",
    "max_completion_length",
    "temperature",
    "trainer",
    "task",
)


@dataclass
class DynamicsConfig:
    """Predicted against realized change of entropy, the paper's theorem, and authority by rule.

    Args:
        output: directory; gets config.yaml, dynamics.json, dynamics.png, and while the study goes
            parts/ and checkpoints/.
        seed: of model sampling, prompts and keep patterns.
        algorithm: grpo or rloo.
        model: a directory or hub name of a causal language model; "tiny" is a small reasoner that
            is warm-started on the task once and cached.
        dtype: of the weights in training.
        chat: talk in messages through the tokenizer's chat template; null does so if it has one.
        warm_start: changes to the tiny model's warm start, e.g. {steps: 400}.
        cache_dir: where warm starts are kept; null takes $ENTROCRAFT_CACHE or ~/.cache/entrocraft.
        stages: optimizer steps of the plain training at which it is held.
        batches: rollout batches of each stage, one optimizer step apart, so that what momentum
            carries differs.
        patterns: keep patterns tried on each batch.
        authority_batches: batches of each stage on which the rules are tried; 0 leaves that out.
        inner_updates: optimizer steps on one batch after which a rule's authority is read.
        clips: clip ranges of the probability ratio for that; null does not clip.
        probe_prompts: held-out problems, one fresh sample each, on which authority is measured.
        prompts: prompts per rollout batch.
        generations: rollouts per prompt.
        micro_batch: rollouts per pass; null takes the whole batch.
        learning_rate: of AdamW.
        max_completion_length: longest completion in tokens.
        temperature: of sampling; entropy is measured at it.
        trainer: any other option of TRL's config, e.g. {loss_type: dr_grpo}.
        resume: keep the parts that are there; false starts over and removes them.
        task: what to train on.
    """

    output: Path = Path("runs/dynamics")
    seed: int = 0
    algorithm: Literal["grpo", "rloo"] = "grpo"
    model: str = TINY
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chat: bool | None = None
    warm_start: dict[str, Any] = field(default_factory=dict)
    cache_dir: Path | None = None
    stages: list[int] = field(default_factory=lambda: [10, 50, 100])
    batches: int = 4
    patterns: int = 12
    authority_batches: int = 2
    inner_updates: list[int] = field(default_factory=lambda: [1, 4, 16])
    clips: list[float | None] = field(default_factory=lambda: [0.2, None])
    probe_prompts: int = 512
    prompts: int = 32
    generations: int = 8
    micro_batch: int | None = None
    learning_rate: float = 3e-4
    max_completion_length: int = 24
    temperature: float = 1.0
    trainer: dict[str, Any] = field(default_factory=dict)
    resume: bool = True
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        self.output = Path(self.output)
        for name in ("batches", "probe_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.patterns < 3:
            raise ValueError(
                f"patterns is {self.patterns}; a line fitted to fewer than 3 says nothing"
            )
        if not 0 <= self.authority_batches <= self.batches:
            raise ValueError(
                f"authority_batches is {self.authority_batches}; use 0 to batches={self.batches}"
            )
        if not self.stages or min(self.stages) < FIRST_STEP:
            raise ValueError(
                f"stages are {self.stages}; name at least one, and none before step {FIRST_STEP}: "
                "an optimizer's first steps, with its moments still empty, are not linear"
            )
        if any(later - earlier < self.batches for earlier, later in pairwise(self.stages)):
            raise ValueError(
                f"stages are {self.stages}; each takes {self.batches} steps (batches) and the next "
                "one starts after it: put them in order and further apart"
            )
        updates = self.inner_updates
        if not updates or updates[0] < 1 or any(b <= a for a, b in pairwise(updates)):
            raise ValueError(f"inner_updates are {updates}; name them in rising order, from 1 on")
        if not self.clips or any(clip is not None and clip <= 0 for clip in self.clips):
            raise ValueError(
                f"clips are {self.clips}; use numbers above 0, or null for no clipping"
            )
        self.training()

    @property
    def holds(self) -> list[tuple[int, int]]:
        """(stage, optimizer step) of every batch, in order."""
        return [(stage, stage + i) for stage in self.stages for i in range(self.batches)]

    def training(self) -> TrainConfig:
        """Return the config of the plain training that is looked at."""
        return TrainConfig(
            steps=self.holds[-1][1] + 1,
            save_every=0,
            control=ControlSettings(rule=None),
            evaluation=EvaluationConfig(probe_every=0, every=0),
            **{name: getattr(self, name) for name in _SHARED},
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, as written to config.yaml."""
        values = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
