"""Runs the missing cells of a study, saves each as it finishes, and writes the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from entrocraft.lab.grid.cells import Cell, run_cells
from entrocraft.lab.grid.results import Results, measure
from entrocraft.lab.grid.study import Entry, Study
from entrocraft.lab.report.summary import BURN_IN
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.directory import locked


def compare(
    study: Study,
    console: Console | None = None,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    fresh: bool = False,
) -> Path:
    """Train what is missing of a study, draw the common report and return its path.

    `only` and `seeds` choose parts and seeds; `fresh` forgets the chosen cells and runs first.

    Raises:
        ValueError: a run that could not start, be judged or go on; nothing was trained.
        RuntimeError: another process is at work on the study; or runs that failed, with their logs:
            the others are kept and reported, a method with a failed trial is not trained.
    """
    console = console or Console()
    entries = study.entries(only, seeds)
    with locked(study.output, "runs the study in"):
        results = Results(study.results_file)
        tuned = [name for name in study.tuned() if name in {entry.method for entry in entries}]
        trials = study.trials()
        tried = trials.entries(tuned)
        if fresh:
            _forget(results, trials, tried)
            _forget(results, study, entries)
        results.tuning = judge_trials(study, results)
        early = study.choose(results.chosen())
        ready = [entry for entry in entries if "tune" not in early.of(entry.method)]
        configs = _check(results, trials, tried, judged=True) + _check(results, early, ready)
        _prepare_models(configs, console)
        failed = _train(results, trials, tried, study, console)
        results.tuning = judge_trials(study, results)
        for name in tuned:
            _say(console, _choice(name, results.tuning[name]))
        chosen = study.choose(results.chosen())
        waiting = [name for name in tuned if name not in results.chosen()]
        entries = [entry for entry in entries if entry.method not in waiting]
        _check(results, chosen, entries)
        failed += _train(results, chosen, entries, study, console)
        _report(results, chosen, console)
    if failed:
        logs = "".join(f"\n  {cell.title}: {cell.directory / 'log.txt'}" for cell in failed)
        if waiting:
            logs += f"\nnot compared before their trials are there: {', '.join(waiting)}; take a "
            logs += "value that cannot run out of tune"
        remedy = "the others are kept, the same command tries these again"
        raise RuntimeError(f"{len(failed)} of the runs failed; {remedy}:{logs}")
    return study.output / "report.html"


def _forget(results: Results, study: Study, entries: list[Entry]) -> None:
    """Drop cells and their runs; one run may have served several cells."""
    directories = {study.directory(entry) for entry in entries}
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
    for entry in study.entries():
        if study.directory(entry) in directories:
            results.cells.pop(entry.key, None)


def _check(
    results: Results, study: Study, entries: list[Entry], judged: bool = False
) -> list[TrainConfig]:
    """Return the configs of the missing runs; refuse those that could not start or be judged."""
    from entrocraft.lab.tasks import get_task
    from entrocraft.lab.training.trainer import trainer_arguments

    results.check(study, entries)
    cells = [study.cell(entry) for entry in entries if results.get(study, entry) is None]
    for cell in cells:
        config = cell.config
        try:
            if judged and study.tuning.by == "tracking_error":
                _check_trial(config)
            trainer_arguments(config)
            get_task(config.task.name, **config.task.options)
        except ValueError as error:
            raise ValueError(f"the method {config.title}: {error}") from error
        cell.finished()  # refuses a directory that holds another run
    return [cell.config for cell in cells]


def _check_trial(trial: TrainConfig) -> None:
    """Refuse a trial that will not have the tracking error that is to judge it."""
    method: Any = trial.control.build(trial.seed)
    lacking = {
        "control.schedule is null; set a schedule": method.schedule is None,
        "evaluation.probe_every is 0; probe, e.g. every 10": not trial.evaluation.probe_every,
        f"steps is {trial.steps}, probes count after {BURN_IN}; raise it": trial.steps <= BURN_IN,
    }
    for problem in [text for text, there in lacking.items() if there]:
        raise ValueError(f"tuning.by is tracking_error: {problem}, or tuning.by to final_reward")


def _prepare_models(configs: list[TrainConfig], console: Console) -> None:
    """Make the models that the runs start from, each once."""
    from entrocraft.lab.training.run import prepare_model

    keys = ("model", "warm_start", "cache_dir", "task")
    models = {json.dumps([c.as_dict()[key] for key in keys]): c for c in configs}
    for config in models.values():
        prepare_model(config, console)


def _train(
    results: Results, study: Study, entries: list[Entry], whole: Study, console: Console
) -> list[Cell]:
    """Run those of the cells that are not there; return the runs that failed."""
    served: dict[Path, list[Entry]] = {}
    for entry in entries:
        if known := results.get(study, entry):
            results.cells[entry.key] = known
        else:
            served.setdefault(study.directory(entry), []).append(entry)

    def keep(cell: Cell) -> None:
        for entry in served[cell.directory]:
            results.add(entry, measure(study, entry))
        results.write(whole)

    todo = []
    for same in served.values():
        cell = study.cell(same[0])
        keep(cell) if cell.finished() else todo.append(cell)
    results.write(whole)
    there = len(entries) - sum(len(served[cell.directory]) for cell in todo)
    if there:
        _say(console, f"{there} of {len(entries)} cells are there already; --fresh drops them")
    return run_cells(todo, study.jobs, study.threads, console, keep) if todo else []


def judge_trials(study: Study, results: Results) -> dict[str, dict[str, Any]]:
    """Say what each method has tried, how each value did, and which is best once all are there."""
    trials, by, found = study.trials(), study.tuning.by, {}
    for name in study.tuned():
        tried: dict[Any, float | None] = {}
        done = True
        for value in study.tried(name):
            runs = [e for e in trials.entries([name]) if e.method == f"{name} {value}"]
            cells = [results.get(trials, entry) for entry in runs]
            done = done and None not in cells
            numbers = [cell[by] if cell else None for cell in cells]  # one of each schedule
            tried[value] = None if None in numbers else float(np.mean(np.array(numbers, float)))
        known = {value: number for value, number in tried.items() if number is not None}
        if done and not known:
            raise RuntimeError(f"no trial of {name} has a {by} by which it could be judged")
        choose = min if by == "tracking_error" else max
        found[name] = {
            "key": next(iter(study.of(name)["tune"])),
            "by": by,
            "seed": study.tuning.seed,
            "tried": {str(value): number for value, number in tried.items()},
            "done": done,
            "chosen": choose(known, key=lambda value: known[value]) if done else None,
        }
    return found


def _choice(name: str, found: dict[str, Any]) -> str:
    known = {value: number for value, number in found["tried"].items() if number is not None}
    shown = ", ".join(f"{value}: {number:.4g}" for value, number in known.items())
    if found["done"]:
        return f"{name}: {found['key']}={found['chosen']} has the best {found['by']} ({shown})"
    return f"{name} waits for its trials of {found['key']}; {found['by']} so far: {shown or 'none'}"


def _report(results: Results, study: Study, console: Console) -> None:
    """Draw the report of all cells whose run directories are here."""
    from entrocraft.lab.report import load_run, render_table, summarize, write_report

    known = [entry for entry in study.entries() if results.get(study, entry) is not None]
    places = list(dict.fromkeys(study.directory(entry) for entry in known))
    here = [directory for directory in places if (directory / "metrics.jsonl").exists()]
    if len(here) < len(places):
        _say(console, f"{len(here)} of {len(places)} run directories are here to be reported")
    if here:
        write_report(here, study.output)
        console.print(render_table([summarize(load_run(directory)) for directory in here]))


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
