"""What `tracking.py` runs, from its settings, and what it reads from a finished run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entrocraft import schedules
from entrocraft.lab.report import load_run, summarize
from entrocraft.lab.report.summary import BURN_IN
from entrocraft.lab.training.cells import Cell
from entrocraft.lab.training.comparison import CompareConfig
from entrocraft.lab.training.tuning import merge

NEAR = 0.02
"""Nats from the new target within which a step's response has arrived."""
AFTER_STEP = 40
"""Optimizer steps after a step of the target in which overshoot is looked for."""

Curve = list[list[Any]]
"""[step, target, probe, its standard error] of every probe; entropies in nats per token."""


# What is to be run --------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A table of the study: methods x schedules x seeds, and what they are compared with."""

    name: str
    methods: list[str]
    schedules: list[str]
    seeds: list[int]
    title: str = ""
    reference: str = ""
    better_of: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One method on one schedule with one seed."""

    method: str
    schedule: str
    seed: int

    @property
    def key(self) -> str:
        """Name in the result file."""
        return f"{self.method}/{self.schedule}/{self.seed}"


class Study:
    """The settings file, expanded.

    Raises:
        ValueError: settings that contradict themselves; the message names the entry.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.parts = [self._part(name, keys) for name, keys in settings["parts"].items()]

    def _part(self, name: str, keys: dict[str, Any]) -> Part:
        try:
            part = Part(name, **{"seeds": self.settings.get("seeds", [0])} | keys)
        except TypeError as error:
            raise ValueError(f"part {name}: {error}") from None
        named = [*part.methods, *([part.reference] if part.reference else [])]
        named += [method for methods in part.better_of.values() for method in methods]
        for kind, names in (("methods", named), ("schedules", part.schedules)):
            for unknown in [n for n in names if n not in self.settings[kind]]:
                known = ", ".join(self.settings[kind])
                raise ValueError(f"part {name}: {unknown!r} is none of the {kind}: {known}")
        if part.better_of and not part.reference:
            raise ValueError(f"part {name}: better_of needs a reference to compare with")
        return part

    def entries(
        self, only: Iterable[str] | None = None, seeds: Iterable[int] | None = None
    ) -> list[Entry]:
        """Every cell once, part by part and in a part seed by seed.

        Raises:
            ValueError: a part that there is not, or a seed that no part uses.
        """
        names = [part.name for part in self.parts]
        for name in only or []:
            if name not in names:
                raise ValueError(f"there is no part {name!r}; choose from {', '.join(names)}")
        chosen = [part for part in self.parts if only is None or part.name in only]
        used = {seed for part in chosen for seed in part.seeds}
        for seed in seeds or []:
            if seed not in used:
                raise ValueError(f"no part runs seed {seed}; add it to the settings file")
        cells = [
            Entry(method, schedule, seed)
            for part in chosen
            for seed in part.seeds
            if seeds is None or seed in seeds
            for method in part.methods
            for schedule in part.schedules
        ]
        return list(dict.fromkeys(cells))

    def _schedule(self, name: str) -> dict[str, Any]:
        value = self.settings["schedules"][name]
        return {"text": value} if isinstance(value, str) else value

    def text(self, schedule: str) -> str:
        """The schedule as entrocraft reads it."""
        return self._schedule(schedule)["text"]

    def bound_factor(self, schedule: str) -> float:
        """How many times the usual bound the tables allow on this schedule."""
        return float(self._schedule(schedule).get("bound", 1))

    def step_at(self, schedule: str) -> int | None:
        """Where the schedule jumps, if its response is to be measured."""
        return self._schedule(schedule).get("step_at")

    def follows(self, method: str) -> bool:
        """Whether the method is steered towards the schedule."""
        return bool(self.settings["methods"][method].get("follows", True))

    def keys(self, entry: Entry) -> dict[str, Any]:
        """Keys of `entrocraft train` for the run of a cell; without schedule if it follows none."""
        method = dict(self.settings["methods"][entry.method])
        keys = dict(self.settings["base"])
        if method.pop("follows", True):
            keys = merge(keys, self._schedule(entry.schedule).get("base", {}))
            keys = merge(keys, {"control": {"schedule": self.text(entry.schedule)}})
        return merge(keys, method) | {"seed": entry.seed}

    def digest(self, entry: Entry) -> str:
        """Hash of the settings of a cell's run."""
        text = json.dumps(self.keys(entry), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def cell(self, entry: Entry, runs: Path) -> Cell:
        """The cell of entrocraft's comparison engine; cells that share a run share its directory.

        Raises:
            ValueError: settings that no training accepts.
        """
        name = entry.method
        if self.follows(name):
            name += f"-{entry.schedule}"
        keys = self.keys(entry)
        seed = keys.pop("seed")
        try:
            [cell] = CompareConfig(runs, {name: keys}, [seed]).cells()
        except ValueError as error:
            raise ValueError(f"{entry.key}: {error}") from error
        return cell


# What came out ------------------------------------------------------------------------------


def measure(study: Study, entry: Entry, directory: Path) -> dict[str, Any]:
    """Read the numbers of a cell from the directory of its finished run.

    Raises:
        ValueError: an unreadable run, or one that logged another target than its schedule's.
    """
    run = load_run(directory)
    summary = summarize(run)
    initial = float(run.points("entropy/measured")[1][0])
    steps, probe = run.points("entropy/probe")
    stderr = run.column("entropy/probe_stderr")[np.isin(run.steps, steps)]
    pressure = np.abs(run.points("entropy/pressure")[1])
    result: dict[str, Any] = {
        "settings_hash": study.digest(entry),
        "initial": _rounded(initial),
        "final_reward": _rounded(summary.final_reward),
        "pass_at": {
            name: [_rounded(at.first), _rounded(at.last)] for name, at in summary.pass_at.items()
        },
        "kept_fraction": _rounded(summary.kept_fraction),
        "saturated_share": _rounded(summary.saturated_share),
        "pressure": _rounded(pressure.mean()) if run.controlled and len(pressure) else None,
        "seconds": _rounded(summary.seconds, 1),
        "probe": [
            [int(step), None, _rounded(value), _rounded(error)]
            for step, value, error in zip(steps, probe, stderr, strict=True)
        ],
    }
    result = aim(result, study, entry.schedule)
    if study.follows(entry.method):
        target = schedules.anchor(schedules.from_string(study.text(entry.schedule)), initial)
        for step, logged in zip(*run.points("entropy/target"), strict=True):
            if not math.isclose(logged, target(step), abs_tol=1e-6):
                raise ValueError(
                    f"{directory}: target {logged:.6f} logged at step {step}, the schedule "
                    f"{study.text(entry.schedule)} asks for {target(step):.6f}"
                )
    return result


def aim(result: dict[str, Any], study: Study, schedule: str) -> dict[str, Any]:
    """Return `result` with a schedule as its target, and the distances from that."""
    text, step_at = study.text(schedule), study.step_at(schedule)
    target = schedules.anchor(schedules.from_string(text), result["initial"])
    curve = [
        [step, _rounded(target(step)), probe, error] for step, _, probe, error in result["probe"]
    ]
    kept = {key: value for key, value in result.items() if key not in ("probe", "step_response")}
    kept |= {"schedule": text, **distances(curve)}
    if step_at is not None:
        kept["step_response"] = step_response(curve, step_at)
    return kept | {"probe": curve}


def distances(curve: Curve) -> dict[str, float | None]:
    """Mean distance of the probe from the target after the burn-in, without and with its sign."""
    late = [(target, probe, error) for step, target, probe, error in curve if step > BURN_IN]
    gaps = [probe - target for target, probe, _ in late]
    errors = [error for *_, error in late if error is not None]
    return {
        "tracking_error": _rounded(np.mean(np.abs(gaps))) if gaps else None,
        "tracking_bias": _rounded(np.mean(gaps)) if gaps else None,
        "probe_stderr": _rounded(np.mean(errors)) if errors else None,
    }


def step_response(curve: Curve, at: int) -> dict[str, float | None]:
    """How the probe answers a jump of the target at step `at`.

    Returns:
        `arrival_steps`: steps from the jump to the first probe within NEAR of the new target, None
        if there is none. `overshoot`: how far the probe goes beyond the new target, on the side
        away from the old one, in the AFTER_STEP steps after the jump (nats, 0 if it does not). It
        is a largest value, so the probe's own noise is part of it.
    """
    before = [target for step, target, *_ in curve if step < at]
    after = [(step, target, probe) for step, target, probe, _ in curve if step >= at]
    if not before or not after:
        return {"arrival_steps": None, "overshoot": None}
    side = math.copysign(1.0, after[0][1] - before[-1])
    near = [step - at for step, target, probe in after if _rounded(abs(probe - target)) <= NEAR]
    beyond = [
        side * (probe - target) for step, target, probe in after if at < step <= at + AFTER_STEP
    ]
    return {
        "arrival_steps": near[0] if near else None,
        "overshoot": _rounded(max(0.0, *beyond)) if beyond else None,
    }


def _rounded(value: float | None, digits: int = 5) -> float | None:
    return round(float(value), digits) if value is not None and math.isfinite(value) else None
