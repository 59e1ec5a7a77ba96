"""How far each acceptance rule can push entropy, over inner updates and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from entrocraft.lab.dynamics.bench import Bench
from entrocraft.selection.rules import RuleInput, get_rule

__all__ = ["RULES", "count_updates", "try_rules"]

RULES: tuple[tuple[str, str | None, float], ...] = (
    ("plain", None, 0.0),
    *(
        (rule, level, direction)
        for rule, level, size in (
            ("sign", "sign", 1.0),
            ("switch", "sign", 1.0),
            ("tilt", "sampled", math.inf),
            ("tilt", "logit", math.inf),
            ("tilt", "gradient", math.inf),
        )
        for direction in (size, -size)
    ),
)
"""(rule, effect level, pressure): all as hard as they can, up and down. `tilt` at infinite pressure
weighs every rollout whose effect has the wrong sign by the floor of its probability, 0.02."""


def count_updates(inner_updates: Sequence[int], clips: Sequence[float | None]) -> int:
    """Optimizer steps that `try_rules` takes."""
    return len(RULES) * len(clips) * inner_updates[-1]


def try_rules(
    bench: Bench,
    inner_updates: Sequence[int],
    clips: Sequence[float | None],
    probe: Callable[[], float],
    tick: Any,
) -> list[dict]:
    """Follow each rule for the largest number of inner updates and read entropy on the way.

    All steps use the whole batch and the keep pattern chosen at the start; the ratio's denominator
    stays the policy that made the batch.

    Args:
        inner_updates: numbers of optimizer steps after which to read, rising.
        clips: clip ranges; None does not clip.
        probe: mean entropy of fresh samples of the present policy, nats per token.
        tick: called after each step.

    Returns:
        One row per rule, direction, clip range and reading: `kept` (share of rollouts), and the
        changes since the start of the entropy of fresh samples, `probe`, and of the batch's own
        tokens, `batch`, nats per token. Fresh samples are what a user sees, and noisy; the batch's
        own tokens are exact, but stand for the policy only while it is near the one that drew them.
    """
    reading = bench.read_gradient()
    old = bench.old_logprobs()
    start_batch, start_probe = bench.entropy(), probe()
    rows = []
    for name, level, pressure in RULES:
        keep, advantages = _choose(bench, name, level, pressure, reading)
        for clip in clips:
            with bench.undone():
                for step in range(1, inner_updates[-1] + 1):
                    bench.update(keep, advantages, old_logprobs=old, clip=clip)
                    tick()
                    if step not in inner_updates:
                        continue
                    rows.append(
                        {
                            "rule": name,
                            "level": level,
                            "direction": int(math.copysign(1, pressure)) if pressure else 0,
                            "clip": clip,
                            "updates": step,
                            "kept": float((keep > 0).double().mean()),
                            "probe": probe() - start_probe,
                            "batch": bench.entropy() - start_batch,
                        }
                    )
    return rows


def _choose(
    bench: Bench, name: str, level: str | None, pressure: float, reading: Any
) -> tuple[Tensor, Tensor]:
    """Return the factors (B,) and the advantages (B,) of a rule at this pressure."""
    if level is None:
        return bench.advantages.new_ones(len(bench.advantages)), bench.advantages
    effects = bench.effects(level, reading)
    scale = float(effects.abs().mean())
    ballot = RuleInput(
        advantages=bench.stats.advantages, effects=effects, scale=scale, rewards=bench.stats.rewards
    )
    verdict = get_rule(name).select(ballot, pressure)
    return verdict.probabilities.to(bench.advantages), verdict.advantages.to(bench.advantages)
