"""Trials: real updates from the paused state, with random keep masks and rejection rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from entrocraft.lab.dynamics.bench import Bench
from entrocraft.selection import RuleInput, get_rule

_SIGNED = ("gradient up", "gradient down", "logit up", "logit down")
KINDS = tuple(kind for signed in _SIGNED for kind in ("random", signed))
"""Every second pattern keeps a random part of the batch; the others keep, besides a random part,
all rollouts whose effect at that level is positive (up) or negative (down)."""

LEVELS = ("sign", "sampled", "logit", "gradient", "anchored")
"""The effect levels, and the gradient level about a measured step; see `Bench.read_anchored`."""

RULES: tuple[tuple[str, str | None, float], ...] = (
    ("plain", None, 0.0),
    *((rule, "sign", pressure) for rule in ("sign", "switch") for pressure in (1.0, -1.0)),
    *(("tilt", level, sign * math.inf) for level in LEVELS[1:4] for sign in (1, -1)),
)
"""(rule, effect level, pressure): all as hard as they can, up and down. `tilt` at infinite pressure
weighs every rollout whose effect has the wrong sign by the floor of its probability, 0.02."""

INNER_UPDATES, CLIPS = (1, 4, 16), (0.2, None)
"""Optimizer steps on one batch after which a rule's reach is read, and clip ranges of the ratio."""


def try_patterns(bench: Bench, count: int, seed: int, offset: int) -> list[dict[str, Any]]:
    """Make `count` real optimizer steps from the same state, each with another keep pattern.

    `offset` tells where to start in `KINDS`, `seed` is that of the patterns. A row per pattern has
    the measured change `post_update` of the batch's token-mean entropy, nats per token; `pending`,
    what momentum and weight decay are predicted to bring to it; and the prediction of each level:
    `gradient` and `anchored` with the pending change, the others up to a gain and without it.
    """
    effects = {level: bench.effects(level) for level in LEVELS[:-1]}
    pending = bench.reading.response.pending
    anchor, anchored = bench.read_anchored()
    generator = torch.Generator().manual_seed(seed)
    before = bench.entropy()
    rows = []
    for index in range(count):
        kind = KINDS[(offset + index) % len(KINDS)]
        keep = draw_keep(kind, effects, generator)
        with bench.undone():
            bench.update(bench.advantages * keep.to(bench.advantages))
            change = bench.entropy() - before
        predicted = {level: float(values[keep].sum()) for level, values in effects.items()}
        predicted["gradient"] += pending
        predicted["anchored"] = anchor + float(((keep.double() - 0.5) * anchored).sum())
        row = {"kind": kind, "kept": float(keep.double().mean()), "post_update": change}
        rows.append(row | {"pending": pending, "clip": bench.reading.clip} | predicted)
    return rows


def draw_keep(kind: str, effects: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Which rollouts to keep, (B,) bool; the random part's share is itself uniform."""
    share = torch.rand((), generator=generator)
    keep = torch.rand(len(effects["logit"]), generator=generator) < share
    level, _, direction = kind.partition(" ")
    if direction:
        keep = keep | ((1.0 if direction == "up" else -1.0) * effects[level] > 0)
    return keep


def try_rules(bench: Bench, probe: Callable[[], float]) -> list[dict[str, Any]]:
    """Follow each rule over inner updates from the same state, and read the entropy on the way.

    All steps use the whole batch and the keep pattern chosen at the start; the ratio's denominator
    stays the policy that made the batch. `probe` measures the mean entropy of fresh samples of the
    present policy, nats per token; a row's `probe` is its change since the start.
    """
    old, start = bench.logprob.to(bench.advantages), probe()
    rows: list[dict[str, Any]] = []
    for name, level, pressure in RULES:
        kept, advantages = _choose(bench, name, level, pressure)
        direction = int(math.copysign(1, pressure)) if pressure else 0
        case = {"rule": name, "level": level, "direction": direction, "kept": kept}
        for clip in CLIPS:
            with bench.undone():
                for step in range(1, INNER_UPDATES[-1] + 1):
                    bench.update(advantages, old, clip)
                    if step in INNER_UPDATES:
                        change = {"clip": clip, "updates": step, "probe": probe() - start}
                        rows.append(case | change)
    return rows


def _choose(bench: Bench, name: str, level: str | None, pressure: float) -> tuple[float, Tensor]:
    """Share of rollouts that a rule keeps at this pressure, and the weighted advantages (B,)."""
    if level is None:
        return 1.0, bench.advantages
    effects = bench.effects(level)
    scale = float(effects.abs().mean())
    given = RuleInput(bench.stats.advantages, effects, scale, bench.stats.rewards)
    chosen = get_rule(name).select(given, pressure)
    weighted = chosen.advantages * chosen.probabilities
    return float((chosen.probabilities > 0).double().mean()), weighted.to(bench.advantages)
