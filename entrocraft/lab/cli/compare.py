"""`entrocraft compare [STUDY.yaml] [--key value ...]`."""

from __future__ import annotations

import argparse
import signal
import sys

import yaml

from entrocraft.lab.grid.study import Study
from entrocraft.lab.parsing import config_from_arguments

DESCRIPTION = (
    "Train methods x schedules x seeds in processes of their own and report them together. Every "
    "finished cell is kept in the result file; what that has with the same settings is not trained "
    "again: stop at will, the same command goes on. Beside the keys below: --only PART ..., these "
    "parts of the study alone; --seeds SEED ..., these seeds alone, new ones included; --fresh, "
    "forget the chosen cells and train them anew; --list, print the chosen cells, done or missing."
)


def run(arguments: list[str]) -> None:
    """Run what is missing of a study and say where the report is, or list its cells."""
    chosen, rest = _choice(arguments)
    study = config_from_arguments(Study, "compare", DESCRIPTION, rest)
    if chosen.seeds is not None:
        study = study.with_seeds(chosen.seeds)
    if chosen.list:
        _list(study, chosen.only, chosen.seeds)
        return
    from entrocraft.lab.cli.console import quiet_console
    from entrocraft.lab.grid.engine import compare

    # what batch systems send stops the runs too, as Ctrl-C does
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = quiet_console()
    page = compare(study, console, chosen.only, chosen.seeds, chosen.fresh)
    console.print(f"results: {study.results_file}", soft_wrap=True, highlight=False)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)


def _choice(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Part the options that choose from those that are keys of the study.

    Raises:
        ValueError: seeds that are no numbers.
    """
    parser = argparse.ArgumentParser(prog="entrocraft compare", add_help=False, allow_abbrev=False)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--seeds", nargs="+")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--list", action="store_true")
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.seeds is not None:
        text = ",".join(chosen.seeds).replace("[", "").replace("]", "")
        chosen.seeds = yaml.safe_load(f"[{text}]")
        for seed in chosen.seeds:
            if not isinstance(seed, int):
                raise ValueError(f"--seeds has {seed!r}; give whole numbers, e.g. --seeds 0 1 2")
    return chosen, rest


def _list(study: Study, only: list[str] | None, seeds: list[int] | None) -> None:
    """Print every cell with its state."""
    from entrocraft.lab.grid.engine import judge_trials
    from entrocraft.lab.grid.results import Results

    results, entries, done = Results(study.results_file), study.entries(only, seeds), 0
    results.tuning = judge_trials(study, results)
    study = study.choose(results.chosen())
    for entry in entries:
        cell = results.get(study, entry)
        state = "made with other settings" if entry.key in results.cells else "missing"
        if cell is not None:
            done += 1
            error = cell["tracking_error"]
            state = "done" if error is None else f"done, {error:.4f} nats"
        print(f"{entry.key:32} {state}")
    print(f"{done} of {len(entries)} cells are there")
