"""Configuration of a training run: the same dataclasses from Python, YAML and the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from entrocraft.settings import ControlSettings
from entrocraft.typed import check_types

TINY = "tiny"


@dataclass
class TaskConfig:
    """What to train on.

    Args:
        name: countdown, chain_sum, permutation_words or maze; hf, data of your own; gsm8k, math500,
            numinamath or aime, from the hub.
        options: the task's own options, e.g. {max_value: 12}, or key by key: --task.options.data.
        train_size: training problems, or all that the task has if these are fewer; the run repeats
            them when it has used them all.
        max_prompt_tokens: longest prompt; problems with a longer one are left out. null keeps all.
        pass_rate: keep the training problems alone whose share of right answers by the start is
            within [low, high], e.g. [0.2, 0.8]; null keeps all.
        pass_tries: answers to each problem from which that share is taken.
    """

    name: str = "countdown"
    options: dict[str, Any] = field(default_factory=dict)
    train_size: int = 3000
    max_prompt_tokens: int | None = None
    pass_rate: list[float] | None = None
    pass_tries: int = 40

    def __post_init__(self) -> None:
        check_types(self, "task.")
        _at_least(1, self, "task.", ["train_size", "pass_tries", "max_prompt_tokens"])
        rate = self.pass_rate
        if rate is not None and not (len(rate) == 2 and 0 <= rate[0] <= rate[1] <= 1):
            raise ValueError(f"task.pass_rate is {rate}; use two shares, e.g. [0.2, 0.8]")


@dataclass
class LoraSettings:
    """Low-rank adapters, which are trained instead of the weights.

    Args:
        rank: of the adapters.
        alpha: their weight is alpha / rank.
        dropout: of their input; 0 keeps the policy that is trained the one that sampled.
        targets: names of the layers that get one, e.g. [q_proj, v_proj]; all-linear takes all.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        _at_least(1, self, "lora.", ["rank", "alpha"])

    def build(self) -> Any:
        """Make peft's config."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
        )


@dataclass
class EvaluationConfig:
    """When and on how many held-out problems the policy is measured.

    Args:
        probe_every: optimizer steps between two probes of the entropy; 0 switches them off.
        probe_prompts: problems of the probe, one sample each, or all that there are if fewer.
        every: optimizer steps between two evaluations, start and end included; 0 never.
        prompts: problems of an evaluation.
        samples: samples per problem, for pass@k and its kin; more tell more of large k.
        batch_size: completions generated at a time.
    """

    probe_every: int = 10
    probe_prompts: int = 1024
    every: int = 50
    prompts: int = 128
    samples: int = 8
    batch_size: int = 1024

    def __post_init__(self) -> None:
        check_types(self, "evaluation.")
        _at_least(0, self, "evaluation.", ["probe_every", "every"])
        _at_least(1, self, "evaluation.", ["probe_prompts", "prompts", "samples", "batch_size"])


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
        lora: train adapters instead of the weights, e.g. {rank: 16}.
        chat: talk in messages through the tokenizer's chat template; null does so if it has one.
        eos: token that ends an answer, e.g. <|im_end|>; null takes the tokenizer's own.
        warm_start: changes to the tiny model's warm start, e.g. {steps: 400}.
        cache_dir: where warm starts are kept; null takes $ENTROCRAFT_CACHE or ~/.cache/entrocraft.
        steps: optimizer steps.
        prompts: prompts per rollout batch.
        generations: rollouts per prompt.
        updates: optimizer steps per rollout batch.
        micro_batch: rollouts per pass and device; null takes as many as one update uses.
        learning_rate: of AdamW.
        max_completion_length: longest completion in tokens.
        temperature: of sampling; entropy is measured at it.
        trainer: any other option of TRL's config, e.g. {loss_type: dr_grpo, beta: 0.01}.
        save_every: optimizer steps between checkpoints, rounded up to whole rollout batches; 0
            keeps only the last state.
        resume: go on from the last checkpoint in `output`, if there is one; false starts over and
            moves what is there into its folder previous/.
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
    lora: LoraSettings | None = None
    chat: bool | None = None
    eos: str | None = None
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
    control: ControlSettings = field(default_factory=ControlSettings)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_types(self)
        counts = ["steps", "prompts", "updates", "micro_batch", "max_completion_length"]
        _at_least(1, self, "", counts)
        _at_least(0, self, "", ["save_every"])
        if self.task.train_size < self.prompts:
            few = f"fewer than the {self.prompts} prompts of a batch; raise it, or lower prompts"
            raise ValueError(f"task.train_size is {self.task.train_size}, {few}")
        if self.generations < 2:
            need = f"{self.algorithm} compares the rollouts of a prompt and needs at least 2"
            raise ValueError(f"generations is {self.generations}; {need}")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use a number above 0")
        if not 0 <= self.advantage_noise < float("inf"):
            remedy = "use a standard deviation of at least 0"
            raise ValueError(f"advantage_noise is {self.advantage_noise}; {remedy}")
        self.control.build(self.seed)  # a bad schedule, rule or band fails before anything is built

    @property
    def title(self) -> str:
        """The run's name in reports."""
        return self.name or self.control.rule or "plain"

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, as written to config.yaml."""
        values = dataclasses.asdict(self) | {"name": self.title}
        return {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}


def _at_least(least: int, config: Any, section: str, names: list[str]) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{section}{name} is {value}; use at least {least}")
