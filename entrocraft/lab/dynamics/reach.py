"""Reachable change of entropy: how far each rejection rule can push it, over inner updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from entrocraft.lab.dynamics.bench import Bench
from entrocraft.selection import RuleInput, get_rule

__all__ = ["RULES", "try_rules"]

_SIZES = {
    ("sign", "sign"): 1.0,
    ("switch", "sign"): 1.0,
    ("tilt", "sampled"): math.inf,
    ("tilt", "logit"): math.inf,
    ("tilt", "gradient"): math.inf,
}
RULES: tuple[tuple[str, str | None, float], ...] = (
    ("plain", None, 0.0),
    *((*rule, pressure) for rule, size in _SIZES.items() for pressure in (size, -size)),
)
"""(rule, effect level, pressure): all as hard as they can, up and down. `tilt` at infinite pressure
weighs every rollout whose effect has the wrong sign by the floor of its probability, 0.02."""


def try_rules(
    bench: Bench,
    inner_updates: Sequence[int],
    clips: Sequence[float | None],
    probe: Callable[[], float],
) -> list[dict[str, Any]]:
    """Follow each rule for the largest number of inner updates and read the entropy on the way.

    All steps use the whole batch and the keep pattern chosen at the start; the ratio's denominator
    stays the policy that made the batch.

    Args:
        bench: the held trainer.
        inner_updates: numbers of optimizer steps after which to read, rising.
        clips: clip ranges; None does not clip.
        probe: mean entropy of fresh samples of the present policy, nats per token.

    Returns:
        One row per rule, direction, clip range and reading: `kept` (share of rollouts), and the
        changes since the start of the entropy of fresh samples, `probe`, and of the batch's own
        tokens, `batch`, nats per token. Fresh samples are what a user sees, and noisy; the batch's
        own tokens are exact, but stand for the policy only while it is near the one that drew them.
    """
    old = bench.old_logprobs()
    choices = [_choose(bench, *rule) for rule in RULES]
    start_batch, start_probe = bench.entropy(), probe()
    rows = []
    for (name, level, pressure), (kept, advantages) in zip(RULES, choices, strict=True):
        case = {"rule": name, "level": level, "kept": kept}
        case["direction"] = int(math.copysign(1, pressure)) if pressure else 0
        for clip in clips:
            with bench.undone():
                for step in range(1, inner_updates[-1] + 1):
                    bench.update(advantages, old, clip)
                    if step in inner_updates:
                        changes = {
                            "probe": probe() - start_probe,
                            "batch": bench.entropy() - start_batch,
                        }
                        rows.append(case | {"clip": clip, "updates": step} | changes)
    return rows


def _choose(bench: Bench, name: str, level: str | None, pressure: float) -> tuple[float, Tensor]:
    """Share of rollouts that a rule keeps at this pressure, and the weighted advantages (B,)."""
    if level is None:
        return 1.0, bench.advantages
    effects = bench.effects(level)
    scale = float(effects.abs().mean())
    given = RuleInput(bench.stats.advantages, effects, scale, bench.stats.rewards)
    selection = get_rule(name).select(given, pressure)
    weighted = selection.advantages * selection.probabilities
    return float((selection.probabilities > 0).double().mean()), weighted.to(bench.advantages)
