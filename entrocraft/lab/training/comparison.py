"""Several methods and seeds on the same work, side by side, resumable cell by cell.

A cell is one method with one seed: a training run of its own in a process of its own. All cells
share the model, the problems and, for the same seed, the order of the prompts. A method may have
values of one key tried first, on a seed of their own; its cells then use the best, once every
value has been tried.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from entrocraft.lab.parsing import config_from_mapping
from entrocraft.lab.training.cells import Cell, run_cells
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.tuning import Tune, TuningConfig, merge

__all__ = ["CompareConfig", "compare"]

_TRIAL_NUMBERS = ("tracking_error", "final_reward", "entropy_start", "entropy_end")


@dataclass
class CompareConfig:
    """Methods x seeds.

    Args:
        output: directory of the comparison: cells/, tuning/, report.html, entropy.png,
            results.json.
        methods: name -> changes to `base`, e.g. {tilt: {control: {rule: tilt}}}. Two keys of a
            method are not for its runs: seeds, in place of those below; and tune, one key with the
            values to try, e.g. {control.options.bonus: [0.001, 0.003, 0.01]}.
        seeds: one run of every method for each.
        tuning: how values that a method has tried are judged.
        base: keys of `entrocraft train` that all cells share.
        jobs: cells at a time.
        threads: processor threads of each.
    """

    output: Path = Path("runs/compare")
    methods: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "GRPO": {"control": {"rule": None}},
            "sign": {"control": {"rule": "sign"}},
            "tilt": {"control": {"rule": "tilt"}},
        }
    )
    seeds: list[int] = field(default_factory=lambda: [0])
    tuning: TuningConfig = field(default_factory=TuningConfig)
    base: dict[str, Any] = field(default_factory=dict)
    jobs: int = 2
    threads: int = 1

    def __post_init__(self) -> None:
        self.output = Path(self.output)
        self.methods = {name: keys or {} for name, keys in self.methods.items()}
        if not self.methods or not self.seeds:
            raise ValueError("a comparison needs at least one method and one seed")
        for name, keys in self.methods.items():
            for key in ("seed", "output", "name"):
                if key in keys:
                    raise ValueError(
                        f"methods.{name}.{key} is {keys[key]!r}; a comparison sets it itself: use "
                        "seeds, the comparison's output and the method's own name"
                    )
            if not isinstance(self._seeds(name), list):
                raise ValueError(
                    f"methods.{name}.seeds is {self._seeds(name)!r}; give a list, e.g. [0, 1, 2]"
                )
            tune, seeds = Tune.of(name, keys), self._seeds(name)
            for part in [name, *(str(value) for value in (tune.values if tune else []))]:
                if not re.fullmatch(r"[\w .,+()-]{1,60}", part):
                    raise ValueError(
                        f"{part!r} of {name!r} becomes a directory; use letters, digits, . , + - ()"
                    )
            if not seeds or len(set(seeds)) < len(seeds):
                raise ValueError(f"seeds of {name} are {seeds}; name each once")
            if tune and self.tuning.seed in seeds:
                raise ValueError(
                    f"tuning.seed is {self.tuning.seed}, which {name} is compared on; a value "
                    "chosen there would have seen its own test"
                )
        if self.jobs < 1 or self.threads < 1:
            raise ValueError(f"jobs={self.jobs}, threads={self.threads}; use at least 1 of each")

    def cells(self, chosen: dict[str, Any] | None = None) -> list[Cell]:
        """Every cell, seed by seed, so that an early stop leaves whole comparisons.

        Args:
            chosen: name -> value of the key that the method has tried.
        """
        chosen = chosen or {}
        found = []
        for seed in dict.fromkeys(seed for name in self.methods for seed in self._seeds(name)):
            for name in self.methods:
                if seed in self._seeds(name):
                    changes = self._changes(name, chosen)
                    directory = self.output / "cells" / f"{name}-seed{seed}"
                    found.append(self._cell(name, changes, seed, directory))
        return found

    def trials(self) -> dict[str, dict[Any, Cell]]:
        """Runs of the values to try: method -> value -> run."""
        found = {}
        for name, keys in self.methods.items():
            if tune := Tune.of(name, keys):
                found[name] = {
                    value: self._cell(
                        f"{name} {value}",
                        self._changes(name, {name: value}),
                        self.tuning.seed,
                        self.output / "tuning" / f"{name}-{value}",
                    )
                    for value in tune.values
                }
        return found

    def _changes(self, name: str, chosen: dict[str, Any]) -> dict[str, Any]:
        keys = self.methods[name]
        own = {key: keys[key] for key in keys if key not in ("seeds", "tune")}
        tune = Tune.of(name, keys)
        return merge(own, tune.changes(chosen[name])) if tune and name in chosen else own

    def _cell(self, title: str, changes: dict[str, Any], seed: int, directory: Path) -> Cell:
        keys = merge(self.base, changes) | {"name": title, "seed": seed, "output": str(directory)}
        try:
            return Cell(directory, config_from_mapping(TrainConfig, keys))
        except ValueError as error:
            raise ValueError(f"the method {title}: {error}") from error

    def _seeds(self, name: str) -> list[int]:
        return self.methods[name].get("seeds", self.seeds)


def compare(config: CompareConfig, console: Console | None = None) -> Path:
    """Run what is missing, then draw the common report; return its path.

    Raises:
        ValueError: a run that could not start, be judged or go on; nothing was run.
        RuntimeError: runs that failed, with their logs; the finished ones are kept and reported. A
            method with a failed trial is not compared before the same command has made it.
    """
    console = console or Console()
    _prepare_models(_check(config), console)
    tuning, waiting = _tune(config, console)
    chosen = {name: tuning[name]["chosen"] for name in tuning if name not in waiting}
    cells = [cell for cell in config.cells(chosen) if cell.config.name not in waiting]
    failed = _run_missing(cells, config, "runs", console)
    finished = [cell for cell in cells if cell not in failed]
    if finished:
        _report(config, tuning, finished, console)
    _complain([*(cell for trials in waiting.values() for cell in trials), *failed], list(waiting))
    return config.output / "report.html"


def _check(config: CompareConfig) -> list[Cell]:
    """Return the runs that there may be, all of them able to start.

    A method's cells have the value of its first trial: with the others they are as valid as the
    trials that have these.

    Raises:
        ValueError: names the method and what to change.
    """
    from entrocraft.lab.tasks import get_task
    from entrocraft.lab.training.trainer import trainer_arguments

    trials = config.trials()
    known = [cell for values in trials.values() for cell in values.values()]
    for cell in known:
        config.tuning.check(cell.config)
    cells = config.cells({name: next(iter(values)) for name, values in trials.items()})
    known += [cell for cell in cells if cell.config.name not in trials]
    for cell in known:
        try:
            trainer_arguments(cell.config)
            get_task(cell.config.task.name, **cell.config.task.options)
        except ValueError as error:
            raise ValueError(f"the method {cell.config.title}: {error}") from error
        cell.finished()  # refuses a directory that holds another run
    return known


def _prepare_models(cells: list[Cell], console: Console) -> None:
    """Make the models that the runs start from, each once."""
    from entrocraft.lab.training.run import prepare_model

    for model in {json.dumps(_model_settings(cell.config)): cell.config for cell in cells}.values():
        prepare_model(model, console)


def _tune(
    config: CompareConfig, console: Console
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Cell]]]:
    """Run the trials; say what was tried, how each value did and which is best.

    Returns:
        Findings by method, and the failed trials of the methods that have some: which of their
        values is best is not known yet.
    """
    trials = config.trials()
    cells = [cell for values in trials.values() for cell in values.values()]
    failed = _run_missing(cells, config, "trial runs", console)
    by, seed = config.tuning.by, config.tuning.seed
    tuning, waiting = {}, {}
    for name, values in trials.items():
        done = {value: _summary(cell) for value, cell in values.items() if cell not in failed}
        numbers = {value: getattr(summary, by) for value, summary in done.items()}
        tune = Tune.of(name, config.methods[name])
        assert tune is not None, "it has trials"
        tried = {str(value): numbers.get(value) for value in values}
        shown = ", ".join(f"{value}: {_shown(number)}" for value, number in tried.items())
        if missing := [cell for cell in values.values() if cell in failed]:
            waiting[name] = missing
            best = None
            _say(console, f"{name} waits for its trials of {tune.key}; {by} so far: {shown}")
        else:
            best = config.tuning.best(name, numbers)
            _say(console, f"{name}: {tune.key}={best} has the best {by} ({shown})")
        tuning[name] = {
            "key": tune.key,
            "by": by,
            "seed": seed,
            "tried": tried,
            "chosen": best,
            "trials": {str(value): _trial_numbers(done.get(value)) for value in values},
        }
    return tuning, waiting


def _trial_numbers(summary: Any) -> dict[str, float | None] | None:
    """What a trial came to, also beside the number it is judged by; None if it failed."""
    return None if summary is None else {key: getattr(summary, key) for key in _TRIAL_NUMBERS}


def _shown(number: float | None) -> str:
    return "none" if number is None else f"{number:.4g}"


def _run_missing(
    cells: list[Cell], config: CompareConfig, what: str, console: Console
) -> list[Cell]:
    """Run those of the cells that are not there; return those that failed."""
    todo = [cell for cell in cells if not cell.finished()]
    if len(todo) < len(cells):
        there = f"{len(cells) - len(todo)} of {len(cells)} {what} are there already"
        _say(console, f"{there}; delete them in {cells[0].directory.parent} to train them again")
    return run_cells(todo, config.jobs, config.threads, console) if todo else []


def _complain(failed: list[Cell], waiting: list[str]) -> None:
    if failed:
        logs = "\n".join(f"  {cell.title}: {cell.directory / 'log.txt'}" for cell in failed)
        message = (
            f"{len(failed)} of the runs failed; the others are kept, the same command tries these "
            f"again:\n{logs}"
        )
        if waiting:
            message += (
                f"\nnot compared before their trials are there: {', '.join(waiting)}; take a value "
                "that cannot run out of tune"
            )
        raise RuntimeError(message)


def _report(
    config: CompareConfig, tuning: dict[str, Any], cells: list[Cell], console: Console
) -> None:
    from entrocraft.lab.report import group_table, render_table, write_report

    write_report([cell.directory for cell in cells], config.output)
    summaries = [_summary(cell) for cell in cells]
    results = {
        "command": " ".join(["entrocraft", *sys.argv[1:]]),
        "config": {**asdict(config), "output": str(config.output)},
        "tuning": tuning,
        "groups": group_table(summaries),
        "runs": [
            asdict(summary) | {"probe": _probe_curve(cell)}
            for cell, summary in zip(cells, summaries, strict=True)
        ],
    }
    (config.output / "results.json").write_text(json.dumps(results, indent=1, default=str) + "\n")
    console.print(render_table(summaries))


def _summary(cell: Cell) -> Any:
    from entrocraft.lab.report import load_run, summarize

    return summarize(load_run(cell.directory))


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _model_settings(config: TrainConfig) -> dict[str, Any]:
    everything = config.as_dict()
    return {key: everything[key] for key in ("model", "warm_start", "cache_dir", "task")}


def _probe_curve(cell: Cell) -> list[list[float]]:
    """[step, target, probe, its standard error] at every probe."""
    keys = ("step", "entropy/target", "entropy/probe", "entropy/probe_stderr")
    return [
        [round(float(record.get(key, "nan")), 5) for key in keys]
        for record in cell.records()
        if "entropy/probe" in record
    ]
