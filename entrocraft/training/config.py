"""Configuration of a training run: the same dataclasses from Python, YAML and the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from entrocraft import methods
from entrocraft.acceptance import RULES
from entrocraft.controller import EntropyController
from entrocraft.method import EntropyMethod

__all__ = [
    "ControlConfig",
    "EvaluationConfig",
    "TaskConfig",
    "TrainConfig",
]

TINY = "tiny"


@dataclass
class TaskConfig:
    """What to train on.

    Args:
        name: countdown, chain_sum or prime_factorization.
        options: the task's own options, e.g. {max_number: 12}.
        train_size: training problems; the run repeats them when it has used them all.
    """

    name: str = "countdown"
    options: dict[str, Any] = field(default_factory=dict)
    train_size: int = 3000


@dataclass
class ControlConfig:
    """Which entropy curve, and by which rule.

    Args:
        rule: tilt, sign, switch; a peer by its name, such as clip_cov; or null: plain RL that logs
            the same numbers.
        options: the peer's own options, e.g. {ratio: 0.001}; the keys below are not for peers.
        schedule: target entropy in nats per token over optimiser steps, for example
            "linear(0.6, 0.3, 300)"; "initial" stands for the first measured entropy.
        effect: sign, sampled, logit or gradient; null takes the rule's own.
        band: half-width around the target, in nats, for the rules sign and switch.
        feedback: plan or pi, for the rule tilt; null takes plan.
        uniform_groups: let all-correct and all-wrong groups join with raw rewards.
        correction: importance weights a^-correction of what was kept with probability a; 0 to 1.
        draw: false weighs rollouts by their keep probability instead of drawing.
        effective_batch: rollouts with a vote to keep at most; null keeps all that are left.
        renormalise: none, rollouts or tokens; scales what is kept up to the whole batch's size.
        refresh: decisions that share one entropy gradient, for the effect gradient.
        remeasure: score each batch once more after its update; null does so with feedback plan.
    """

    rule: str | None = "tilt"
    options: dict[str, Any] = field(default_factory=dict)
    schedule: str = "linear(initial, 0.6*initial, 150)"
    effect: str | None = None
    band: float = 0.05
    feedback: Literal["plan", "pi"] | None = None
    uniform_groups: bool = False
    correction: float = 0.0
    draw: bool = True
    effective_batch: int | None = None
    renormalise: Literal["none", "rollouts", "tokens"] = "none"
    refresh: int = 1
    remeasure: bool | None = None

    def build(self, seed: int) -> EntropyMethod:
        """Make the method; with rule null it observes and rejects nothing.

        Raises:
            ValueError: settings that cannot be met, or that this method does not have.
        """
        keys = dataclasses.asdict(self)
        options = keys.pop("options")
        if self.rule is None or self.rule in RULES:
            if options:
                raise ValueError(
                    f"control.options is {options}; the rule {self.rule!r} has keys of control "
                    "itself, options are for peers"
                )
            return EntropyController(**keys, seed=seed)
        if self.rule not in methods.METHODS:
            names = ", ".join([*RULES, *methods.METHODS])
            raise ValueError(f"unknown rule {self.rule!r}; choose null or one of {names}")
        defaults = dataclasses.asdict(ControlConfig())
        for key in keys.keys() - {"rule", "schedule"}:
            if keys[key] != defaults[key]:
                raise ValueError(
                    f"control.{key} is {keys[key]!r}; the method {self.rule!r} does not have it, "
                    "its own options go into control.options"
                )
        if "seed" in methods.options_of(self.rule):
            options = {"seed": seed} | options
        return methods.get_method(self.rule, self.schedule, **options)


@dataclass
class EvaluationConfig:
    """When and on how many held-out problems the policy is measured.

    Args:
        probe_every: optimiser steps between two probes of the entropy; 0 switches them off.
        probe_prompts: problems of the probe, one sample each.
        every: optimiser steps between two evaluations, start and end included; 0 never.
        prompts: problems of an evaluation.
        samples: samples per problem; pass@1 and pass@samples are logged.
        batch_size: completions generated at a time.
    """

    probe_every: int = 10
    probe_prompts: int = 1024
    every: int = 50
    prompts: int = 128
    samples: int = 8
    batch_size: int = 1024


@dataclass
class TrainConfig:
    """A GRPO or RLOO run whose policy entropy follows a schedule.

    Args:
        output: run directory; gets config.yaml, metrics.jsonl, checkpoints/ and report.html.
        name: what the report calls the run; null takes the rule's name.
        seed: of model sampling, prompts and controller.
        algorithm: grpo or rloo.
        raw_rewards: train on the rewards themselves instead of the estimator's advantages.
        advantage_noise: standard deviation of noise that is added to the advantages, for studies.
        model: a directory or hub name of a causal language model; "tiny" is a small reasoner that
            is warm-started on the task once and cached.
        dtype: of the weights in training; float32 keeps small updates, mixed precision is TRL's.
        chat: talk in messages through the tokenizer's chat template; null does so if it has one.
        warm_start: changes to the tiny model's warm start, e.g. {steps: 400}.
        cache_dir: where warm starts are kept; null takes $ENTROCRAFT_CACHE or ~/.cache/entrocraft.
        steps: optimiser steps.
        prompts: prompts per rollout batch.
        generations: rollouts per prompt.
        updates: optimiser steps per rollout batch.
        micro_batch: rollouts per pass and device; null takes as many as one update uses.
        learning_rate: of AdamW.
        max_completion_length: longest completion in tokens.
        temperature: of sampling; entropy is measured at it.
        trainer: any other option of TRL's config, e.g. {loss_type: dr_grpo, beta: 0.01}.
        save_every: optimiser steps between checkpoints, rounded up to whole rollout batches; 0
            keeps only the last state.
        resume: go on from the last checkpoint in `output`, if there is one; false starts over and
            removes what is there.
        task: what to train on.
        control: which entropy curve, and by which rule.
        evaluation: when and on what the policy is measured.
    """

    output: Path = Path("runs/train")
    name: str | None = None
    seed: int = 0
    algorithm: Literal["grpo", "rloo"] = "grpo"
    raw_rewards: bool = False
    advantage_noise: float = 0.0
    model: str = TINY
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chat: bool | None = None
    warm_start: dict[str, Any] = field(default_factory=dict)
    cache_dir: Path | None = None
    steps: int = 150
    prompts: int = 32
    generations: int = 8
    updates: int = 1
    micro_batch: int | None = None
    learning_rate: float = 3e-4
    max_completion_length: int = 24
    temperature: float = 1.0
    trainer: dict[str, Any] = field(default_factory=dict)
    save_every: int = 50
    resume: bool = True
    task: TaskConfig = field(default_factory=TaskConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "prompts", "generations", "updates", "max_completion_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.generations < 2:
            raise ValueError(
                f"generations is {self.generations}; {self.algorithm} compares the rollouts of a "
                "prompt with each other and needs at least 2"
            )
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use a number above 0")
        if not 0 <= self.advantage_noise < float("inf"):
            raise ValueError(
                f"advantage_noise is {self.advantage_noise}; use a standard deviation of at least 0"
            )
        self.control.build(self.seed)  # a bad schedule, rule or band fails before anything is built

    @property
    def title(self) -> str:
        """The run's name in reports."""
        return self.name or self.control.rule or "plain"

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, as written to config.yaml."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(inner) for key, inner in value.items()}
            return str(value) if isinstance(value, Path) else value

        return plain(dataclasses.asdict(self)) | {"name": self.title}
