"""A run as data: its metrics by step, and the settings of ``config.yaml`` if it has one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from entrocraft.lab.parsing import flat_keys, read_yaml
from entrocraft.lab.records import SCHEDULE, RunError, read
from entrocraft.methods import METHODS, follows_target

_SEED_SUFFIX = re.compile(r"(?:^|[-_ ./])(?:seed|s)[-_=]?(\d+)$", re.IGNORECASE)
_OTHER = ("seed", "name", "output", "command", "resume", "cache_dir", "save_every")
_RENAMED = {"uniform_groups": "constant_reward_groups", "renormalise": "renormalize"}


@dataclass
class Run:
    """One training run.

    ``frame`` has one row per logged optimizer step (its index, ascending) and one column per
    metric, NaN where it was not logged or not finite; entropies are in nats per token.
    """

    path: Path
    name: str  # of the configuration, else of the directory
    config: dict[str, Any]  # nested; empty when there is no config.yaml
    frame: pd.DataFrame
    schedules: dict[int, str] = field(default_factory=dict)  # from which step on, if changed
    group: str = ""  # the name without its seed: tilt-seed3 and tilt_s3 are both tilt

    def __post_init__(self) -> None:
        match = _SEED_SUFFIX.search(self.name)
        if match and self.seed in (None, int(match[1])):
            # a name that is nothing but a seed takes that of the parent directory
            self.group = self.name[: match.start()] or self.path.resolve().parent.name
        self.group = self.group or self.name

    def column(self, key: str) -> pd.Series:
        """Return the values of ``key`` by logged step; all NaN when it was never logged."""
        return self.frame[key] if key in self.frame else pd.Series(np.nan, self.frame.index)

    def points(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (steps, values) at the steps where ``key`` was logged with a finite value."""
        logged = self.column(key).dropna()
        return logged.index.to_numpy(), logged.to_numpy()

    def has(self, key: str) -> bool:
        """Whether ``key`` was logged at least once."""
        return bool(self.column(key).notna().any())

    @property
    def control(self) -> dict[str, Any]:
        """The ``control`` section of the configuration, empty when there is none."""
        control = self.config.get("control")
        return control if isinstance(control, dict) else {}

    @property
    def rule(self) -> str | None:
        """The selection rule or baseline by name, None when nothing chose between rollouts."""
        rule = self.control.get("rule")
        return None if str(rule).lower() in ("", "none", "null") else str(rule)

    @property
    def controlled(self) -> bool:
        """Whether the method steers entropy, so that the logged target is more than a reference."""
        if "rule" in self.control:
            return self.rule is not None and (self.rule not in METHODS or follows_target(self.rule))
        return bool((self.points("entropy/pressure")[1] != 0).any())  # a guess without a config

    @property
    def seed(self) -> int | None:
        """The seed of the run, None when the configuration does not say."""
        seed = self.config.get("seed")
        return seed if type(seed) is int else None

    @property
    def command(self) -> str | None:
        """The shell command that started the run, when the configuration kept it."""
        command = self.config.get("command")
        return (
            shlex.join(map(str, command)) if isinstance(command, list) else command and str(command)
        )


def load_run(path: str | Path) -> Run:
    """Load a run directory, of a run that has ended or is still going.

    Raises:
        RunError: there is no complete record yet, or a file that cannot be read; see its message.
    """
    runs = runs_in(Path(path))
    if len(runs) > 1:
        raise RunError(f"{path} holds {len(runs)} runs: {', '.join(run.name for run in runs)}")
    return runs[0]


def runs_in(path: Path) -> list[Run]:
    """Load every run of a directory, or of a file of trackio's; raises as `load_run` does."""
    config, runs = _read_config(path / "config.yaml"), []
    for own, records in read(path).items():
        schedules = {r["step"]: r.pop(SCHEDULE) for r in records if SCHEDULE in r}
        frame = pd.DataFrame(records).set_index("step").astype(float)
        name = own or str(config.get("name") or "").strip() or path.resolve().name
        runs.append(Run(path, name, config, frame.where(np.isfinite(frame)), schedules))
    return runs


def load_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Load the runs of one report; runs share a group only if nothing but the seed differs.

    Runs of one name with other settings get these into their names, as in "tilt, steps=30"; runs
    of the same settings and seed get their directories. Raises RunError as `load_run` does, and for
    a run that is given twice.
    """
    places = [Path(path).resolve() for path in paths]
    if twice := [place for place in places if places.count(place) > 1]:
        raise RunError(f"{twice[0]} is given twice; give each run once")
    runs = [run for path in paths for run in runs_in(Path(path))]
    for members in grouped(runs).values():
        settings = differing_settings(members)
        for i, run in enumerate(members if settings else ()):
            shown = (f"{key.rpartition('.')[2]}={row[i]}" for key, row in settings.items())
            run.group = ", ".join([run.group, *shown])
            run.name = run.group if run.seed is None else f"{run.group} seed{run.seed}"
    for members in grouped(runs).values():
        # without a seed the name alone tells runs apart
        seeds = [run.name if run.seed is None else run.seed for run in members]
        for run, seed in zip(members, seeds, strict=True):
            if seeds.count(seed) > 1:
                run.name = run.group = f"{run.group} ({run.path})"
    return runs


def grouped(runs: Sequence[Any]) -> dict[str, list[Any]]:
    """Return group -> its runs (or summaries), in order of appearance."""
    groups: dict[str, list[Any]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return dotted key -> its value in each run, for settings that are not the same in all."""
    settings = [flat_keys({k: v for k, v in r.config.items() if k not in _OTHER}) for r in runs]
    rows = {key: [str(one.get(key)) for one in settings] for keys in settings for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = read_yaml(file) if file.is_file() else {}
    except ValueError as error:
        raise RunError(str(error)) from None
    if isinstance(config.get("control"), dict):
        config["control"] = {_RENAMED.get(k, k): v for k, v in config["control"].items()}
    return config
