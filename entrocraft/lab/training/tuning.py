"""Values of one key that a method of a comparison tries before its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from entrocraft.lab.report.summary import BURN_IN
from entrocraft.lab.training.config import TrainConfig

__all__ = ["Tune", "TuningConfig", "merge"]


@dataclass
class TuningConfig:
    """How values that a method has tried are judged.

    Args:
        seed: of the trial runs; none of the comparison's seeds.
        by: tracking_error takes the least mean distance of the probe from the schedule,
            final_reward the largest reward at the end.
    """

    seed: int = 1000
    by: Literal["tracking_error", "final_reward"] = "tracking_error"

    def check(self, trial: TrainConfig) -> None:
        """Refuse a trial run that will not have the number that is to judge it.

        Raises:
            ValueError: names the key to change.
        """
        if self.by != "tracking_error":
            return
        method: Any = trial.control.build(trial.seed)
        if method.schedule is None:
            missing = "control.schedule is null; set a schedule"
        elif not trial.evaluation.probe_every:
            missing = "evaluation.probe_every is 0; probe, e.g. every 10 steps"
        elif trial.steps <= BURN_IN:
            missing = f"steps is {trial.steps}, and probes count after step {BURN_IN}; raise steps"
        else:
            return
        raise ValueError(
            f"tuning.by is tracking_error, which the trial {trial.title} will not have: {missing}, "
            "or tuning.by to final_reward"
        )

    def best(self, method: str, numbers: Mapping[Any, float | None]) -> Any:
        """Return the value whose number is best.

        Raises:
            RuntimeError: no trial run has the number that is to judge them.
        """
        known = {value: number for value, number in numbers.items() if number is not None}
        if not known:
            raise RuntimeError(
                f"no trial run of {method} has a {self.by}; tracking_error needs a schedule and "
                "probes after the first steps, final_reward a reward"
            )
        choose = min if self.by == "tracking_error" else max
        return choose(known, key=lambda value: known[value])


@dataclass(frozen=True)
class Tune:
    """One key of a training run and the values to try, e.g. control.options.bonus."""

    key: str
    values: list[Any]

    @classmethod
    def of(cls, method: str, keys: Mapping[str, Any]) -> Tune | None:
        """Read the entry `tune` of a method's keys, None if it has none.

        Raises:
            ValueError: something else than one key with a list of values.
        """
        if "tune" not in keys:
            return None
        tune = keys["tune"]
        if isinstance(tune, dict) and len(tune) == 1:
            [(key, values)] = tune.items()
            if isinstance(values, list) and values and len(set(map(str, values))) == len(values):
                return cls(key, values)
        raise ValueError(
            f"tune of {method} is {tune!r}; give one key with the values to try, e.g. "
            "{control.options.bonus: [0.001, 0.01]}"
        )

    def changes(self, value: Any) -> dict[str, Any]:
        """Return nested keys that set the key to a value."""
        changes: Any = value
        for part in reversed(self.key.split(".")):
            changes = {part: changes}
        return changes


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(old, value) if both and old is not None else value
    return merged
