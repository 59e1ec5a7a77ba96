"""Rollouts at another temperature that join a generation batch of TRL's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from entrocraft.method import ExtraRollouts
from entrocraft.trl.adapter import response_mask

__all__ = ["join_extra_rollouts"]

# what padding looks like; completions grow to the right, prompts to the left
_COMPLETION = {
    "completion_mask": 0,
    "old_per_token_logps": 0.0,
    "ref_per_token_logps": 0.0,
    "sampling_per_token_logps": 0.0,
    "importance_sampling_ratio": 1.0,
    "tool_mask": 1,
}
_ROWS = ("advantages", "old_logps")


def join_extra_rollouts(
    trainer: Any,
    generate: Callable[[Any], dict[str, Any]],
    inputs: list[dict[str, Any]],
    output: dict[str, Any],
    extra: ExtraRollouts,
) -> int:
    """Sample again and put the best of it in place of the first rows of `output`.

    Every process does its share: `generate`, TRL's `_generate_and_score_completions`, has made
    `output` of its `inputs`.

    Returns:
        How many rows were replaced on this process.

    Raises:
        ValueError: a batch with columns that cannot be joined, such as images.
    """
    group = trainer.num_generations
    prompts, rest = divmod(len(inputs), group)
    # where a group is spread over processes only the whole batch keeps groups together
    rows = len(inputs) if rest else max(1, round(extra.share * prompts)) * group
    with _temperature(trainer, extra.temperature), _unlogged(trainer):
        more = generate(inputs[:rows])
    good = torch.nonzero(more["advantages"] > extra.least_advantage)[:, 0]
    limit = max(1, extra.rows // trainer.accelerator.num_processes)
    good = good[: int(extra.taken * min(limit, len(good)))]
    token = trainer.processing_class.pad_token_id
    padding = {"prompt_ids": token, "prompt_mask": 0, "completion_ids": token, **_COMPLETION}
    if unknown := sorted({*output, *more} - {*padding, *_ROWS, "num_items_in_batch"}):
        raise ValueError(
            f"cannot join extra rollouts with {', '.join(unknown)}; use a method that samples no "
            "extra ones"
        )
    found = _as_sampled_by_the_policy(more)
    for name, value in padding.items():
        if name in output:
            output[name] = _joined(output[name], found[name][good], value, "prompt" in name)
    for name in _ROWS:
        if name in output:
            output[name] = output[name].clone()
            output[name][: len(good)] = more[name][good]
    output["advantages"][: len(good)] = extra.advantage
    if "num_items_in_batch" in output:
        tokens = response_mask(output).sum()
        output["num_items_in_batch"] = trainer.accelerator.gather(tokens).sum()
    return len(good)


def _as_sampled_by_the_policy(rows: dict[str, Any]) -> dict[str, Any]:
    """Rows whose sampler counts as the policy itself.

    vLLM reports log-probabilities at the temperature that it sampled at, so its importance ratio
    (B, T) or (B, 1) is that of the policy to the policy at another temperature. The loss would
    multiply by it and so undo what the other temperature is for: next to nothing would remain of
    unlikely tokens that were sampled hot. The published method has no such ratio.
    """
    rows = dict(rows)
    if (ratio := rows.get("importance_sampling_ratio")) is not None:
        rows["importance_sampling_ratio"] = torch.ones_like(ratio)
    # TRL's off_policy_mask_threshold would take the temperature for a policy that has moved
    if "sampling_per_token_logps" in rows and rows.get("old_per_token_logps") is not None:
        rows["sampling_per_token_logps"] = rows["old_per_token_logps"]
    return rows


def _joined(rows: Tensor, new: Tensor, value: float, left: bool) -> Tensor:
    """Replace the first rows of (B, T) by `new` (n, T'), both padded to the longer of the two."""
    width = max(rows.shape[1], new.shape[1])

    def padded(part: Tensor) -> Tensor:
        short = width - part.shape[1]
        return torch.nn.functional.pad(part, (short, 0) if left else (0, short), value=value)

    return torch.cat([padded(new), padded(rows)[len(new) :]])


@contextmanager
def _temperature(trainer: Any, temperature: float) -> Iterator[None]:
    """Sample at another temperature inside this block; log-probabilities stay at the usual one."""
    names = ("generation_config", "vllm_generation")
    samplers = [getattr(trainer, name) for name in names if hasattr(trainer, name)]
    with ExitStack() as stack:
        for sampler in samplers:
            stack.callback(setattr, sampler, "temperature", sampler.temperature)
            sampler.temperature = temperature
        yield


@contextmanager
def _unlogged(trainer: Any) -> Iterator[None]:
    """Keep rollouts made inside this block out of the trainer's reward and completion logs."""
    metrics = {name: list(values) for name, values in trainer._metrics["train"].items()}
    logs = copy.deepcopy(trainer._logs)
    try:
        yield
    finally:
        trainer._metrics["train"].clear()
        trainer._metrics["train"].update(metrics)
        trainer._logs = logs
