"""The settings of a study, expanded to the training runs that they ask for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from entrocraft.lab.grid.cells import Cell
from entrocraft.lab.parsing import config_from_mapping, merge
from entrocraft.lab.training.config import TrainConfig
from entrocraft.typed import check_type, check_types


@dataclass(frozen=True)
class Entry:
    """One method on one schedule with one seed; `schedule` is empty if the study names none."""

    method: str
    schedule: str
    seed: int

    @property
    def key(self) -> str:
        """Name in the result file."""
        return "/".join(filter(None, (self.method, self.schedule, str(self.seed))))


@dataclass(frozen=True)
class Part:
    """A table of a study: methods x schedules x seeds, and what they are compared with."""

    name: str
    methods: list[str]
    schedules: list[str]
    seeds: list[int] | None = None
    title: str = ""
    reference: str = ""
    better_of: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, f"parts.{self.name}.")


@dataclass
class TuningConfig:
    """How values that a method has tried are judged.

    Args:
        seed: of the trial runs; none of the seeds that the method is compared on.
        by: tracking_error takes the least mean distance of the probe from the schedule,
            final_reward the largest reward at the end; over several schedules their mean.
    """

    seed: int = 1000
    by: Literal["tracking_error", "final_reward"] = "tracking_error"

    def __post_init__(self) -> None:
        check_types(self, "tuning.")


@dataclass
class Study:
    """Methods x schedules x seeds.

    Args:
        output: directory of the study: cells/, tuning/, report.html, entropy.png.
        results: result file; null takes results.json in `output`.
        base: keys of `entrocraft train` that all runs share.
        seeds: of the runs, where neither a part nor a method names its own.
        schedules: name -> text of a schedule, or {text, base: further changes to base, bound:
            factor on the bound that tables judge by, step_at: step of a jump whose response is
            measured}. Without any, all runs have base's control.schedule.
        methods: name -> changes to base, e.g. {tilt: {control: {rule: tilt}}}. Three keys are not
            for the runs: `follows: false`, nothing steers the method and one run serves all
            schedules; `seeds`, its own; `tune`, one key with the values to try first, e.g.
            {control.options.bonus: [0.001, 0.003, 0.01]}.
        parts: name -> {methods, schedules, seeds, title, reference: method shown beside them,
            better_of: {name: [methods]}: the reference is compared with the best of each list}. Run
            in this order, within a part seed by seed. Without any, all methods on all schedules.
        tuning: how values that a method has tried are judged.
        jobs: runs at a time.
        threads: processor threads of each.
    """

    output: Path = Path("runs/compare")
    results: Path | None = None
    base: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    schedules: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any] | None] = field(
        default_factory=lambda: {
            "GRPO": {"control": {"rule": None}},
            "sign": {"control": {"rule": "sign"}},
            "tilt": {"control": {"rule": "tilt"}},
        }
    )
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    jobs: int = 2
    threads: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        self.output = Path(self.output)
        self.results_file = Path(self.results or self.output / "results.json")
        if not self.methods or not self.seeds:
            raise ValueError("a comparison needs at least one method and one seed")
        if self.jobs < 1 or self.threads < 1:
            raise ValueError(f"jobs={self.jobs}, threads={self.threads}; use at least 1 of each")
        for name, value in self.schedules.items():
            keys = self.schedule(name)
            if "text" not in keys or not isinstance(keys.get("base", {}), dict):
                known = "text of a schedule, or {text, base: {...}}"
                raise ValueError(f"schedules.{name} is {value!r}; give {known}")
        for name in self.methods:
            self._check_method(name)
        names = [*self.methods, *self.schedules]
        names += [f"{name} {value}" for name in self.methods for value in self.tried(name)]
        for name in names:
            if not re.fullmatch(r"[\w .,+()-]{1,100}", name):
                raise ValueError(
                    f"{name!r} becomes a directory; use letters, digits, spaces, . , + - ()"
                )
        everything = {"methods": list(self.methods), "schedules": list(self.schedules) or [""]}
        parts = self.parts or {"all": {}}
        self.tables = [self._part(name, everything | keys) for name, keys in parts.items()]

    def _check_method(self, name: str) -> None:
        keys, seeds = self.of(name), self.seeds_of(name)
        for key in ("seed", "output", "name"):
            if key in keys:
                raise ValueError(
                    f"methods.{name}.{key} is {keys[key]!r}; a comparison sets it itself: use "
                    "seeds, the comparison's output and the method's own name"
                )
        check_type(f"methods.{name}.seeds", seeds, list[int])
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"methods.{name}.seeds is {seeds!r}; list each once, e.g. [0, 1, 2]")
        if self.tried(name) and self.tuning.seed in seeds:
            raise ValueError(
                f"tuning.seed is {self.tuning.seed}, which {name} is compared on; a value "
                "chosen there would have seen its own test"
            )

    def _part(self, name: str, keys: dict[str, Any]) -> Part:
        try:
            part = Part(name, **keys)
        except TypeError as error:
            raise ValueError(f"part {name}: {error}") from None
        named = [*part.methods, *([part.reference] if part.reference else [])]
        named += [method for methods in part.better_of.values() for method in methods]
        unknown = [method for method in named if method not in self.methods]
        unknown += [text for text in part.schedules if text and text not in self.schedules]
        if unknown:
            known = ", ".join([*self.methods, *self.schedules])
            raise ValueError(f"part {name}: {unknown[0]!r} is none of the study's: {known}")
        if part.better_of and not part.reference:
            raise ValueError(f"part {name}: better_of needs a reference to compare with")
        return part

    @property
    def settings(self) -> dict[str, Any]:
        """What decides about the cells, as it is kept in the result file."""
        names = ("base", "seeds", "schedules", "methods", "parts")
        kept = {name: getattr(self, name) for name in names if getattr(self, name)}
        return kept | ({"tuning": asdict(self.tuning)} if self.tuned() else {})

    def of(self, method: str) -> dict[str, Any]:
        """Keys of a method as they are in the settings."""
        return self.methods[method] or {}

    def follows(self, method: str) -> bool:
        """Whether the method is steered toward the schedule."""
        return bool(self.of(method).get("follows", True))

    def seeds_of(self, method: str) -> list[int]:
        """Seeds of a method where a part names none."""
        return self.of(method).get("seeds", self.seeds)

    def schedule(self, name: str) -> dict[str, Any]:
        """Text and options of a schedule; nothing for the schedule of the runs' own keys."""
        value = self.schedules.get(name, {})
        return value if isinstance(value, dict) else {"text": str(value)}

    def with_seeds(self, seeds: Iterable[int]) -> Study:
        """The study with these seeds beside its own."""
        return replace(self, seeds=list(dict.fromkeys([*self.seeds, *seeds])))

    def entries(
        self, only: Sequence[str] | None = None, seeds: Sequence[int] | None = None
    ) -> list[Entry]:
        """Every cell once, part by part and within a part seed by seed."""
        names = [part.name for part in self.tables]
        for name in only or []:
            if name not in names:
                raise ValueError(f"there is no part {name!r}; choose from {', '.join(names)}")
        found = []
        for part in [part for part in self.tables if only is None or part.name in only]:
            own = {method: part.seeds or self.seeds_of(method) for method in part.methods}
            for seed in dict.fromkeys(seed for seeds_of in own.values() for seed in seeds_of):
                for method in [method for method in part.methods if seed in own[method]]:
                    found += [Entry(method, schedule, seed) for schedule in part.schedules]
        for seed in seeds or []:
            if seed not in {entry.seed for entry in found}:
                raise ValueError(f"no part runs seed {seed}; add it to the part's own seeds")
        return [e for e in dict.fromkeys(found) if seeds is None or e.seed in seeds]

    def keys(self, entry: Entry) -> dict[str, Any]:
        """Keys of `entrocraft train` for the run of a cell."""
        keys, schedule = self.base, self.schedule(entry.schedule)
        if schedule and self.follows(entry.method):
            keys = merge(keys, schedule.get("base", {}))
            keys = merge(keys, {"control": {"schedule": schedule["text"]}})
        own, not_for_runs = self.of(entry.method), ("follows", "seeds", "tune")
        own = {key: value for key, value in own.items() if key not in not_for_runs}
        return merge(keys, own) | {"seed": entry.seed}

    def digest(self, entry: Entry) -> str:
        """Hash of the settings of a cell's run. It does not cover the code."""
        text = json.dumps(self.keys(entry), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def run_name(self, entry: Entry) -> str:
        """What the run of a cell is called; one that follows nothing serves every schedule."""
        scheduled = entry.schedule and self.follows(entry.method)
        return f"{entry.method}-{entry.schedule}" if scheduled else entry.method

    def directory(self, entry: Entry) -> Path:
        """The run directory of a cell."""
        return self.output / "cells" / f"{self.run_name(entry)}-seed{entry.seed}"

    def cell(self, entry: Entry) -> Cell:
        """The run of a cell; ValueError if no training accepts its settings."""
        name, directory = self.run_name(entry), self.directory(entry)
        keys = self.keys(entry) | {"name": name, "output": str(directory)}
        try:
            return Cell(directory, config_from_mapping(TrainConfig, keys))
        except ValueError as error:
            raise ValueError(f"the method {name}: {error}") from error

    def tried(self, method: str) -> dict[Any, dict[str, Any]]:
        """Values that a method is to try: value -> keys of the method with that value."""
        tune = self.of(method).get("tune", {})
        own = {key: keys for key, keys in self.of(method).items() if key != "tune"}
        found: dict[Any, dict[str, Any]] = {}
        if isinstance(tune, dict) and len(tune) == 1:
            [(key, values)] = tune.items()
            listed = values if isinstance(values, list) and isinstance(key, str) else []
            for value in [value for value in listed if isinstance(value, str | int | float | None)]:
                changes: Any = value
                for part in reversed(key.split(".")):
                    changes = {part: changes}
                found[value] = merge(own, changes)
        if "tune" in self.of(method) and not found:
            raise ValueError(
                f"tune of {method} is {tune!r}; give one key with the values to try, e.g. "
                "{control.options.bonus: [0.001, 0.01]}"
            )
        return found

    def tuned(self) -> list[str]:
        """Methods that have values to try."""
        return [name for name in self.methods if "tune" in self.of(name)]

    def trials(self) -> Study:
        """The study of the values to try, each a method of its own with the seed of `tuning`."""
        methods: dict[str, dict[str, Any] | None] = {}
        parts = {}
        for name in self.tuned():
            seed = {"seeds": [self.tuning.seed]}
            trials = {f"{name} {value}": keys | seed for value, keys in self.tried(name).items()}
            used = [s for part in self.tables if name in part.methods for s in part.schedules]
            parts[name] = {"methods": list(trials), "schedules": list(dict.fromkeys(used))}
            methods |= trials
        folder = self.output / "tuning"
        return replace(self, output=folder, methods=methods or self.methods, parts=parts)

    def choose(self, chosen: dict[str, Any]) -> Study:
        """The study with the values that were best in place of those to try."""
        found = {name: self.tried(name)[value] for name, value in chosen.items()}
        return replace(self, methods={**self.methods, **found})
