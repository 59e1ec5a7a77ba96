"""Entropy control in slime (and miles, its fork): a custom advantage function.

    export ENTROCRAFT='{schedule: "linear(0.6, 0.3, 400)"}'
    python train.py ... --custom-advantage-function-path entrocraft.slime.control_advantages \\
        --use-rollout-entropy

slime calls it in place of its own estimator, on every data-parallel rank with that rank's samples.
ENTROCRAFT is the section `control` of entrocraft's YAML files, as text. Effect levels are "sampled"
(the default here) and "sign", rules are tilt and sign: slime hands over no logits and no raw
rewards.

The function follows the interface that slime had in 2026 (slime/backends/megatron_utils/loss.py);
it is tested as a function, not in a run of slime, which needs GPUs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor

from entrocraft.effects import TOKEN_LEVELS
from entrocraft.lab.parsing import config_from_mapping
from entrocraft.method import EntropyMethod
from entrocraft.rollouts import RolloutStats
from entrocraft.settings import ControlConfig

__all__ = ["control_advantages"]

VARIABLE = "ENTROCRAFT"
_ESTIMATORS = ("grpo", "gspo", "cispo")
_RULES = ("tilt", "sign")
_FILE = "entrocraft.json"
_COLUMNS = ("advantages", "tokens", "logprob", "entropy")

logger = logging.getLogger("entrocraft.slime")
_state: dict[str, Any] = {}


def control_advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """Put GRPO's advantages, with those of rejected samples at 0, into `rollout_data`.

    Writes the method's memory to `args.save` after every decision and takes it from `args.load` at
    the start; slime tells this function nothing of its checkpoints, so after a crash the memory may
    be a few batches ahead of the weights.

    Args:
        args: slime's; read are `advantage_estimator`, `calculate_per_token_loss`,
            `context_parallel_size`, `normalize_advantages`, `use_opd`, `save`, `load`, and for the
            clock `num_steps_per_rollout` or `global_batch_size`, `rollout_batch_size` and
            `n_samples_per_prompt`.
        rollout_data: lists over samples: `rewards` (normalized over groups by slime), `log_probs`,
            `entropy` and `loss_masks` (one tensor each). Gets `advantages` and `returns`.

    Raises:
        ValueError: a setting or a batch that cannot be controlled.
    """
    method = _method(args)
    local = _sums(args, rollout_data)
    mine = torch.stack([getattr(local, name) for name in _COLUMNS], dim=1)
    columns, start = _gathered(mine)
    named: dict[str, Any] = {name: columns[:, i] for i, name in enumerate(_COLUMNS)}
    # slime's loss is a mean over samples of means over tokens unless it is told otherwise
    by_token = bool(getattr(args, "calculate_per_token_loss", False))
    weight = None if by_token else 1 / named["tokens"].clamp(min=1)
    stats = RolloutStats(**named, token_weight=weight, by_rollout=not by_token)
    steps = _steps(args)
    decision = method.decide(stats, step=round(_state["steps"]), optimizer_steps=steps)
    _state["steps"] += steps
    kept = decision.advantages[start : start + len(mine)]
    advantages = [
        torch.full_like(logprobs, float(value), dtype=torch.float32)
        for logprobs, value in zip(rollout_data["log_probs"], kept, strict=True)
    ]
    rollout_data["advantages"] = advantages
    rollout_data["returns"] = list(advantages)
    if start == 0:
        logger.info("step %d %s", _state["steps"], json.dumps(decision.metrics))
        _write(args)


def _method(args: Any) -> EntropyMethod:
    """Make the method once per process; later calls return it."""
    if "method" in _state:
        return _state["method"]
    text = os.environ.get(VARIABLE)
    if not text:
        raise ValueError(
            f"no entropy control is configured; set {VARIABLE}, e.g. "
            f"{VARIABLE}='{{schedule: \"linear(0.6, 0.3, 400)\"}}'"
        )
    keys = yaml.safe_load(text)
    if not isinstance(keys, dict):
        raise ValueError(f"{VARIABLE} is {text!r}; it has keys, e.g. {{schedule: '0.5'}}")
    seed = keys.pop("seed", 0)
    rule = keys.get("rule", "tilt")
    if rule not in _RULES:
        raise ValueError(
            f"{VARIABLE}.rule is {rule!r}; slime hands over neither raw rewards nor its loss, so "
            f"entropy control there knows {', '.join(_RULES)}"
        )
    own = {"schedule": None, "remeasure": False} | ({"effect": "sampled"} if rule == "tilt" else {})
    method = config_from_mapping(ControlConfig, own | keys).build(seed)
    if method.effect in TOKEN_LEVELS:
        raise ValueError(
            f"effect is {method.effect!r}, which needs logits that slime does not hand over; use "
            "'sampled' or 'sign'"
        )
    _state.update(method=method, steps=0.0)
    file = Path(args.load) / _FILE if getattr(args, "load", None) else None
    if file is not None and file.exists():
        memory = json.loads(file.read_text())
        method.load_state_dict(memory["method"])
        _state["steps"] = memory["optimizer_steps"]
    return method


def _steps(args: Any) -> float:
    """Optimizer steps that slime makes of a rollout batch."""
    if steps := getattr(args, "num_steps_per_rollout", None):
        return float(steps)
    names = ("rollout_batch_size", "n_samples_per_prompt", "global_batch_size")
    prompts, samples, batch = (getattr(args, name, None) for name in names)
    if not (prompts and samples and batch):
        raise ValueError(
            "it is not known how many optimizer steps a rollout batch makes, by which the schedule "
            "counts; set --num-steps-per-rollout or --global-batch-size"
        )
    return prompts * samples / batch


def _sums(args: Any, data: dict[str, Any]) -> RolloutStats:
    if args.advantage_estimator not in _ESTIMATORS:
        raise ValueError(
            f"advantage_estimator is {args.advantage_estimator!r}; entropy control in slime knows "
            f"{', '.join(_ESTIMATORS)}"
        )
    if getattr(args, "context_parallel_size", 1) > 1:
        raise ValueError(
            f"context_parallel_size is {args.context_parallel_size}; a rank then sees a part of "
            "each sample only, which entropy control in slime does not put together: use 1"
        )
    for name, harm in (
        ("normalize_advantages", "whitens what this function returns"),
        ("use_opd", "adds its own term to what this function returns"),
    ):
        if getattr(args, name, False):
            raise ValueError(
                f"{name} is set: slime {harm}, and rejected samples would be trained on; leave "
                f"--{name.replace('_', '-')} out"
            )
    if data.get("entropy") is None:
        raise ValueError("the batch has no entropies; start slime with --use-rollout-entropy")
    masks = [mask.bool() for mask in data["loss_masks"]]

    def added(values: Sequence[Tensor]) -> Tensor:
        pairs = zip(values, masks, strict=True)
        return torch.stack([value[mask].double().sum().cpu() for value, mask in pairs])

    return RolloutStats(
        advantages=torch.tensor(data["rewards"], dtype=torch.float64),
        tokens=torch.tensor([float(mask.sum()) for mask in masks], dtype=torch.float64),
        logprob=added(data["log_probs"]),
        entropy=added(data["entropy"]),
    )


def _gathered(mine: Tensor) -> tuple[Tensor, int]:
    """Columns (B, n) of all data-parallel ranks in their order, and where this rank's begin."""
    if not (dist.is_available() and dist.is_initialized()):
        return mine, 0
    group = None
    try:
        from megatron.core import mpu
    except ImportError:
        pass
    else:
        group = mpu.get_data_parallel_group()
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, mine, group=group)
    rank = dist.get_rank(group)
    return torch.cat(parts), sum(len(part) for part in parts[:rank])


def _write(args: Any) -> None:
    if not getattr(args, "save", None):
        return
    file = Path(args.save) / _FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    memory = {"method": _state["method"].state_dict(), "optimizer_steps": _state["steps"]}
    # tensor-parallel peers of the first rank write the same memory; each has a partial of its own
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(memory))
    os.replace(partial, file)
