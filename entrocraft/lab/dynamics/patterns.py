"""Predicted against realized change of entropy, for keep patterns that nothing was tuned on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entrocraft.lab.dynamics.bench import Bench

__all__ = ["KINDS", "PREDICTIONS", "draw_keep", "try_patterns"]

KINDS = (
    "random",
    "gradient up",
    "random",
    "gradient down",
    "random",
    "logit up",
    "random",
    "logit down",
)
"""Every second pattern keeps a random part of the batch; the others keep, besides a random part,
all rollouts whose effect at that level is positive (up) or negative (down)."""

PREDICTIONS = ("sign", "sampled", "logit", "gradient", "anchored")
"""What is compared: the effect levels, and the gradient level about a known step; see `anchor`."""


def draw_keep(kind: str, effects: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Draw which rollouts to keep, (B,) bool; the random part's share is itself uniform."""
    share = torch.rand((), generator=generator)
    rows = len(next(iter(effects.values())))
    keep = torch.rand(rows, generator=generator) < share
    level, _, direction = kind.partition(" ")
    if direction:
        sign = 1.0 if direction == "up" else -1.0
        keep = keep | (sign * effects[level] > 0)
    return keep


def try_patterns(bench: Bench, count: int, seed: int, offset: int, tick: Any) -> list[dict]:
    """Make `count` real optimizer steps from the same state, each with another keep pattern.

    Args:
        seed: of the patterns.
        offset: where to start in `KINDS`.
        tick: called after each step.

    Returns:
        One row per pattern: `kind`, `kept` (share of rollouts), `realized` (change of the batch's
        token-mean entropy, nats per token), `drift` (what momentum and weight decay are predicted
        to bring, nats per token), `clip` (factor of clipping by norm for the whole batch), and the
        prediction of each level: `gradient` and `anchored` in nats per token, drift included; the
        others up to a gain and without drift.
    """
    reading, (anchor, anchored) = bench.read_gradient(), bench.read_anchored()
    effects = {level: bench.effects(level, reading) for level in PREDICTIONS[:-1]}
    step = reading.response
    drift = step.momentum_share * step.pending + step.decay
    generator = torch.Generator().manual_seed(seed)
    before = bench.entropy()
    rows = []
    for index in range(count):
        kind = KINDS[(offset + index) % len(KINDS)]
        keep = draw_keep(kind, effects, generator)
        with bench.undone():
            bench.update(keep)
            realized = bench.entropy() - before
        predicted = {level: float(values[keep].sum()) for level, values in effects.items()}
        predicted["gradient"] = step.share * predicted["gradient"] + drift
        predicted["anchored"] = anchor + float(((keep.double() - 0.5) * anchored).sum())
        rows.append(
            {
                "kind": kind,
                "kept": float(keep.double().mean()),
                "realized": realized,
                "drift": drift,
                "clip": reading.clip,
                **predicted,
            }
        )
        tick()
    return rows
