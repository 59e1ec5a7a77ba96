"""Adapter of slime: a custom advantage function.

    export ENTROCRAFT='{schedule: "linear(0.6, 0.3, 400)"}'
    python train.py ... --custom-advantage-function-path entrocraft.slime.control_advantages \\
        --use-rollout-entropy

slime calls it in place of its own estimator, on every data-parallel rank with that rank's samples.
ENTROCRAFT is the section `control` of entrocraft's YAML files, as text. Effect levels are "sampled"
(the default) and "sign". slime hands the function no model, so `remeasure` is 0. miles, a fork of
slime, has no such hook. The interface is that of 2026 (slime/backends/megatron_utils/loss.py); this
is tested as a function, not in a run of slime, which needs GPUs.
"""

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from entrocraft.adapter import Adapter, Processes, run_decision
from entrocraft.effects import TOKEN_LEVELS
from entrocraft.method import Decision, Method
from entrocraft.rollouts import RolloutBatch, RolloutStats, StepInfo
from entrocraft.selection import RULES
from entrocraft.settings import settings_from_mapping
from entrocraft.storage import read_checkpoint, write_checkpoint

__all__ = ["control_advantages"]

VARIABLE = "ENTROCRAFT"
_ESTIMATORS = ("grpo", "gspo", "cispo")

logger = logging.getLogger("entrocraft.slime")
_state: dict[str, Any] = {}


def control_advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """Put GRPO's advantages, with those of rejected samples at 0, into `rollout_data`.

    The method's state is written to `args.save` after every decision and read from `args.load` at
    the start; slime does not tell when it writes checkpoints, so after a crash the state may be a
    few batches ahead of the weights.

    Args:
        args: slime's; read are `advantage_estimator`, `calculate_per_token_loss`,
            `context_parallel_size`, `normalize_advantages`, `use_opd`, `save`, `load`,
            `n_samples_per_prompt`, and for the optimizer steps `num_steps_per_rollout` or
            `global_batch_size` and `rollout_batch_size`.
        rollout_data: lists over samples: `rewards` (normalized over groups by slime), `log_probs`,
            `entropy` and `loss_masks` (one tensor each); `partition` (places of this rank's samples
            in the whole batch) and `raw_reward` (of the whole batch), where slime sends them. Gets
            `advantages` and `returns`.

    Raises:
        ValueError: a setting or a batch that cannot be controlled.
    """
    batch = RolloutData(args, rollout_data, _method(args))
    decision = run_decision(batch)
    if decision is not None and decision.stop is not None:
        raise RuntimeError(f"{decision.stop}; go on from the last checkpoint")
    _state["steps"] += batch.step_info().optimizer_steps
    if batch.processes.index == 0 and getattr(args, "save", None):
        # other tensor-parallel ranks beside the first write the same state
        write_checkpoint(Path(args.save), batch.method.state_dict(), _state["steps"])


class DataParallelRanks(Processes):
    """slime's data-parallel ranks, each with its own number of samples."""

    def __init__(self) -> None:
        self._group = None
        if not (dist.is_available() and dist.is_initialized()):
            return
        with contextlib.suppress(ImportError):
            from megatron.core import mpu

            self._group = mpu.get_data_parallel_group()
        self.count = dist.get_world_size(self._group)
        self.index = dist.get_rank(self._group)

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate the rows of all ranks."""
        if self.count == 1:
            return rows
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, rows, group=self._group)
        return torch.cat(parts)


class RolloutData(Adapter):
    """One rollout batch of slime, as one rank sees it."""

    def __init__(self, args: Any, data: dict[str, Any], method: Method) -> None:
        _check(args, data)
        self.method = method
        self.processes = DataParallelRanks()
        self._args, self._data = args, data
        self._step = StepInfo(round(_state["steps"]), _steps(args))
        self._put(torch.tensor(data["rewards"], dtype=torch.float64))

    def _put(self, advantages: Tensor) -> None:
        """Write one advantage for each sample."""
        found = [
            torch.full_like(tokens, float(value), dtype=torch.float32)
            for tokens, value in zip(self._data["log_probs"], advantages, strict=True)
        ]
        self._data["advantages"], self._data["returns"] = found, list(found)

    def step_info(self) -> StepInfo:
        """Optimizer steps taken, and those that this batch is used for."""
        return self._step

    def local_stats(self) -> RolloutStats:
        """Per-rollout sums of this rank, with prompts and raw rewards where slime sends them."""
        data = self._data
        partition, raw = data.get("partition"), data.get("raw_reward")
        size = getattr(self._args, "n_samples_per_prompt", None)
        group = rewards = None
        # samples of a prompt are neighbors in the whole batch, unless some were filtered out
        if partition is not None and raw is not None and size and len(raw) % size == 0:
            group = torch.tensor(partition) // size
            rewards = torch.tensor([float(raw[place]) for place in partition], dtype=torch.float64)
        batch = RolloutBatch(
            step=self._step.step,
            advantages=torch.tensor(data["rewards"], dtype=torch.float64),
            mask=_padded(data["loss_masks"]).bool(),
            logprobs=_padded(data["log_probs"]),
            entropies=_padded(data["entropy"]),
            rewards=rewards,
            group=group,
        )
        return batch.stats()

    def complete(self, stats: RolloutStats) -> RolloutStats:
        """Add the loss's weights: means over samples of token means, unless told otherwise."""
        by_token = bool(getattr(self._args, "calculate_per_token_loss", False))
        weight = None if by_token else 1 / stats.tokens.clamp(min=1)
        return replace(stats, token_weight=weight, by_rollout=not by_token)

    def write(self, decision: Decision, advantages: Tensor, stats: RolloutStats) -> None:
        """Put the advantages into slime's batch."""
        self._put(advantages)

    def log(self, metrics: dict[str, float]) -> None:
        """Log one line on the first rank."""
        if self.processes.index == 0:
            logger.info("step %d %s", self._step.step, json.dumps(metrics))


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """(B, T) from one tensor for each sample."""
    return pad_sequence([row.detach().cpu() for row in rows], batch_first=True)


def _method(args: Any) -> Method:
    """Make the method once per process; later calls return it."""
    if "method" in _state:
        return _state["method"]
    text = os.environ.get(VARIABLE)
    if not text:
        raise ValueError(
            f"no entropy control is configured; set {VARIABLE}, e.g. to "
            "'{schedule: \"linear(0.6, 0.3, 400)\"}'"
        )
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "entrocraft.slime needs PyYAML; install entrocraft with its extra [slime]"
        ) from error
    keys = yaml.safe_load(text)
    if not isinstance(keys, dict):
        raise ValueError(f"{VARIABLE} is {text!r}; it has keys, e.g. {{schedule: '0.5'}}")
    seed = keys.pop("seed", 0)
    own = {"remeasure": 0.0} if keys.get("rule", "tilt") in RULES else {}
    method = settings_from_mapping(own | keys).build(seed)
    if method.effect in TOKEN_LEVELS:
        raise ValueError(
            f"effect is {method.effect!r}, which needs logits; slime has 'sampled' or 'sign'"
        )
    if method.trainer_options or method.token_scope or method.uses_bonus or method.samples_more:
        raise ValueError(
            f"{VARIABLE}.rule is {method.name!r}, which works inside the trainer's loss or on its "
            "options; in slime choose tilt, sign, switch or a baseline that works on advantages"
        )
    if method.drop_rejected:
        raise ValueError(f"{VARIABLE}.drop_rejected is for TRL; leave it out")
    if method.sets_learning_rate:
        raise ValueError(
            f"{VARIABLE} asks for changes of the learning rate between batches (feedback."
            "learning_rate, guard.action=pause), which slime cannot do; leave them out"
        )
    if method.remeasure:
        raise ValueError(
            f"{VARIABLE}.remeasure is {method.remeasure}; slime hands over no model for it: use 0"
        )
    steps = 0.0
    if getattr(args, "load", None) and (found := read_checkpoint(Path(args.load))) is not None:
        state, steps = found
        method.load_state_dict(state)
    _state.update(method=method, steps=steps)
    return method


def _steps(args: Any) -> float:
    """Optimizer steps that slime makes of a rollout batch; the schedule counts by them."""
    if steps := getattr(args, "num_steps_per_rollout", None):
        return float(steps)
    names = ("rollout_batch_size", "n_samples_per_prompt", "global_batch_size")
    prompts, samples, batch = (getattr(args, name, None) for name in names)
    if not (prompts and samples and batch):
        raise ValueError(
            "it is not known how many optimizer steps a rollout batch makes; set "
            "--num-steps-per-rollout or --global-batch-size"
        )
    return prompts * samples / batch


def _check(args: Any, data: dict[str, Any]) -> None:
    """Refuse settings under which advantages of rejected samples would not stay 0."""
    if args.advantage_estimator not in _ESTIMATORS:
        raise ValueError(
            f"advantage_estimator is {args.advantage_estimator!r}; entropy control in slime knows "
            f"{', '.join(_ESTIMATORS)}"
        )
    if getattr(args, "context_parallel_size", 1) > 1:
        raise ValueError(
            f"context_parallel_size is {args.context_parallel_size}; a rank then sees only parts "
            "of samples, which entropy control does not put together: use 1"
        )
    harms = {"normalize_advantages": "whitens", "use_opd": "adds its own term to"}
    for name, harm in harms.items():
        if getattr(args, name, False):
            raise ValueError(
                f"{name} is set: slime {harm} what this function returns, and rejected samples "
                f"would be trained on; leave --{name.replace('_', '-')} out"
            )
    if data.get("entropy") is None:
        raise ValueError("the batch has no entropies; start slime with --use-rollout-entropy")
