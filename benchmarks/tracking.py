"""How closely entropy follows its schedule: methods x schedules x seeds, resumable cell by cell.

    python benchmarks/tracking.py             # runs what is missing; stop and repeat at will
    python benchmarks/tracking.py --list      # what is there and what is missing
    python benchmarks/tracking.py --table     # Markdown tables, from the result file alone
    python benchmarks/tracking.py --docs      # the same, shorter, into the pages that show them
    python benchmarks/tracking.py --figure    # docs/img/tracking.png, from the result file alone

What is run stands in `tracking.yaml`. After every finished run `results/tracking.json` is written
anew; what is in there with the same settings is never trained again, with or without its run
directory. A cell is one method on one schedule with one seed. A run that nothing steers serves all
schedules: its target is each schedule, started at the run's own first measured entropy.

The settings' hash covers what `tracking.yaml` says. It does not cover the code: after a change of
the method, `--fresh` trains the cells anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from rich.console import Console

from benchmarks.tracking_study import Entry, Study, aim, measure
from entrocraft.lab.training.cells import Cell, run_cells

HERE = Path(__file__).resolve().parent
SETTINGS = HERE / "tracking.yaml"
RESULTS = HERE / "results" / "tracking.json"
FIGURE = HERE.parent / "docs" / "img" / "tracking.png"
PAGE = HERE.parent / "docs" / "tracking.md"
README = HERE.parent / "README.md"


# The result file ----------------------------------------------------------------------------


class Results:
    """`results/tracking.json`: settings, versions, missing cells, and one line for every cell."""

    def __init__(self, path: Path, settings: dict[str, Any] | None = None) -> None:
        """Read the file if there is one; `settings` take the place of those in it."""
        found = json.loads(path.read_text()) if path.exists() else {}
        if settings is None and not found:
            raise ValueError(f"{path} does not exist; run the study first")
        self.path = path
        self.cells: dict[str, dict[str, Any]] = found.get("cells", {})
        self.versions: list[dict[str, str]] = found.get("versions", [])
        self._old_settings: dict[str, Any] = found.get("settings", {})
        self.study = Study(self._old_settings if settings is None else settings)

    def get(self, entry: Entry) -> dict[str, Any] | None:
        """What is known of a cell; None if nothing or if it was made with other settings.

        A run that follows nothing is looked up under its other schedules too.
        """
        digest, text = self.study.digest(entry), self.study.text(entry.schedule)
        cell = self.cells.get(entry.key)
        if not self.study.follows(entry.method):
            others = [
                other
                for key, other in self.cells.items()
                if key.startswith(f"{entry.method}/") and other["settings_hash"] == digest
            ]
            if others and (cell is None or cell["schedule"] != text):
                return aim(others[0], self.study, entry.schedule)
        return cell if cell is not None and cell["settings_hash"] == digest else None

    def check(self, entries: list[Entry]) -> None:
        """Refuse to mix settings.

        Raises:
            ValueError: names the first cell that was made with other settings.
        """
        for entry in entries:
            if entry.key in self.cells and self.get(entry) is None:
                raise ValueError(
                    f"the cell {entry.key} of {self.path} was made with other settings than are "
                    f"asked for now{self._difference(entry)}; put the settings back, take the cell "
                    "out of the file, leave its part out with --only, or train it anew with --fresh"
                )

    def _difference(self, entry: Entry) -> str:
        """Name the settings that differ, if the file still knows those that a cell was made by."""
        try:
            old = Study(self._old_settings)
            if old.digest(entry) != self.cells[entry.key]["settings_hash"]:
                return ""
            then, now = _flat(old.keys(entry)), _flat(self.study.keys(entry))
        except (KeyError, ValueError):
            return ""
        changed = [key for key in then | now if then.get(key) != now.get(key)]
        return ": " + ", ".join(f"{k} {then.get(k)} -> {now.get(k)}" for k in changed[:3])

    def missing(self) -> list[str]:
        """Keys of the cells that are in the settings and not, or not with these settings, here."""
        return [entry.key for entry in self.study.entries() if self.get(entry) is None]

    def valid(self) -> dict[str, dict[str, Any]]:
        """The cells of the study, key -> numbers; none that was made with other settings."""
        found = {entry.key: self.get(entry) for entry in self.study.entries()}
        return {key: cell for key, cell in found.items() if cell is not None}

    def write(self) -> None:
        """Write the whole file anew, so that a stop at any time leaves a whole one."""
        order = {entry.key: place for place, entry in enumerate(self.study.entries())}
        ordered = sorted(self.cells, key=lambda key: (order.get(key, len(order)), key))
        head = {
            "command": "python benchmarks/tracking.py",
            "settings": self.study.settings,
            "versions": self.versions,
            "missing": self.missing(),
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()]
        rows = [
            f"  {json.dumps(key)}: {json.dumps(self.cells[key], allow_nan=False)}"
            for key in ordered
        ]
        text = "{\n" + "".join(lines) + ' "cells": {\n' + ",\n".join(rows) + "\n }\n}\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text)
        os.replace(partial, self.path)

    def add(self, entry: Entry, cell: dict[str, Any]) -> None:
        """Put in a cell that was run in this environment."""
        self.cells[entry.key] = cell
        here = {"python": platform.python_version()} | {
            name: version(name) for name in ("torch", "trl", "transformers", "entrocraft")
        }
        if here not in self.versions:
            self.versions.append(here)


def _flat(keys: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in keys.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# Running ------------------------------------------------------------------------------------


class _Watched:
    """A cell's process that tells once when it has ended well, as seen by whoever polls it."""

    def __init__(self, process: subprocess.Popen[bytes], done: Callable[[], None]) -> None:
        self._process, self._done, self._told = process, done, False
        self.terminate, self.wait = process.terminate, process.wait

    def poll(self) -> int | None:
        code = self._process.poll()
        if code == 0 and not self._told:
            self._told = True
            self._done()
        return code


@dataclass
class _WatchedCell(Cell):
    """A cell with something to do when it has ended well, while others still run."""

    done: Callable[[], None]

    def start(self, threads: int) -> Any:
        return _Watched(super().start(threads), self.done)


def run(
    results: Results,
    entries: list[Entry],
    runs: Path,
    jobs: int,
    console: Console,
    fresh: bool = False,
) -> int:
    """Train what is missing of `entries`, or all with `fresh`, keeping each cell once it is there.

    Returns:
        The number of runs that failed; the others are kept.

    Raises:
        ValueError: a cell in the result file, or a run directory, of other settings.
        RuntimeError: another process is at work in `runs`.
    """
    from entrocraft.lab.training.run import prepare_model

    if not fresh:
        results.check(entries)
    runs.mkdir(parents=True, exist_ok=True)
    lock = FileLock(runs / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"another process runs the study in {runs}; wait for it, stop it, or choose another "
            "directory with --runs"
        ) from None
    try:
        if fresh:
            _forget(results, entries, runs)
        groups = _missing_runs(results, entries, runs)
        waiting = [cell for cell, _ in groups if not _finished(cell)]
        for cell, served in groups:
            if cell not in waiting:
                _keep(results, served, cell)
        results.write()
        there = len(entries) - sum(len(served) for cell, served in groups if cell in waiting)
        _say(console, f"{there} of {len(entries)} cells are there; {len(waiting)} runs to do")
        settings = [(c.config.model, c.config.warm_start, asdict(c.config.task)) for c in waiting]
        for index, cell in enumerate(waiting):
            if settings[index] not in settings[:index]:
                prepare_model(cell.config, console)
        clock = _Clock(len(waiting), console)

        def keep(cell: Cell, served: list[Entry]) -> None:
            _keep(results, served, cell)
            results.write()
            clock.one_more(cell)

        todo: list[Cell] = [
            _WatchedCell(cell.directory, cell.config, lambda c=cell, s=served: keep(c, s))
            for cell, served in groups
            if cell in waiting
        ]
        failed = run_cells(todo, jobs, 1, console) if todo else []
        for cell in failed:
            _say(console, f"failed: {cell.title}, see {cell.directory / 'log.txt'}")
        return len(failed)
    finally:
        lock.release()


def _missing_runs(
    results: Results, entries: list[Entry], runs: Path
) -> list[tuple[Cell, list[Entry]]]:
    """Every run that is needed once, with the cells that it serves."""
    groups: dict[Path, tuple[Cell, list[Entry]]] = {}
    for entry in entries:
        known = results.get(entry)
        if known is not None:
            results.cells[entry.key] = known
            continue
        cell = results.study.cell(entry, runs)
        groups.setdefault(cell.directory, (cell, []))[1].append(entry)
    return list(groups.values())


def _finished(cell: Cell) -> bool:
    try:
        return cell.finished()
    except ValueError as error:
        raise ValueError(
            f"{error}; here: delete the directory, or use --fresh or --runs"
        ) from error


def _keep(results: Results, served: list[Entry], cell: Cell) -> None:
    for entry in served:
        results.add(entry, measure(results.study, entry, cell.directory))


def _forget(results: Results, entries: list[Entry], runs: Path) -> None:
    """Drop cells and their run directories, so that they are trained anew."""
    for entry in entries:
        results.cells.pop(entry.key, None)
        if not results.study.follows(entry.method):
            # the same run under another schedule would bring the old numbers back
            for key in list(results.cells):
                if key.startswith(f"{entry.method}/") and key.endswith(f"/{entry.seed}"):
                    del results.cells[key]
        shutil.rmtree(results.study.cell(entry, runs).directory, ignore_errors=True)


class _Clock:
    """Says after every run how many are left and how long they will take."""

    def __init__(self, total: int, console: Console) -> None:
        self.total, self.console, self.done = total, console, 0
        self.start = time.monotonic()

    def one_more(self, cell: Cell) -> None:
        self.done += 1
        each = (time.monotonic() - self.start) / self.done
        left = (self.total - self.done) * each / 60
        time_left = f"{left:.0f} min" if left < 90 else f"{left / 60:.1f} h"
        text = f"kept {cell.title}: {self.done} of {self.total} runs, about {time_left} left"
        _say(self.console, text)


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


# The command --------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Read the command line; return the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_HelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", metavar="PART", help="these parts of the settings file only")
    add("--seeds", nargs="+", type=int, metavar="SEED", help="these of the parts' seeds only")
    add("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    add(
        "--runs",
        type=Path,
        default=Path("runs/tracking"),
        help="where the runs are made (default: runs/tracking)",
    )
    add("--fresh", action="store_true", help="drop the chosen cells and train them anew")
    add("--list", action="store_true", help="print the chosen cells, done or missing, and stop")
    add("--table", action="store_true", help="print Markdown tables of the result file and stop")
    add("--docs", action="store_true", help="write tables into docs/tracking.md and README.md")
    add(
        "--figure",
        nargs="?",
        type=Path,
        const=FIGURE,
        metavar="FILE",
        help="draw the result file (default: docs/img/tracking.png) and stop",
    )
    add("--settings", type=Path, default=SETTINGS, help="default: tracking.yaml beside the script")
    add("--results", type=Path, default=RESULTS, help="default: results/tracking.json beside it")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        return _command(options, console)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        Console(stderr=True).print(f"error: {error}", soft_wrap=True, markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        _say(console, f"stopped; finished cells are in {options.results}, the same command goes on")
        return 130


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description."""


def _command(options: argparse.Namespace, console: Console) -> int:
    if options.table or options.docs or options.figure:
        from benchmarks import tracking_views as views
        from benchmarks.pages import into_page

        results = Results(options.results)
        if options.docs:
            study, cells = results.study, results.valid()
            into_page(views.tables(study, cells, results.missing(), views.DOCS), PAGE)
            into_page(views.readme_table(study, cells), README)
            _say(console, f"wrote {PAGE} and {README}")
        if options.table:
            print(views.tables(results.study, results.valid(), results.missing()))
        if options.figure:
            views.draw(results.study, results.valid(), options.figure)
            _say(console, f"wrote {options.figure}")
        return 0
    results = Results(options.results, yaml.safe_load(options.settings.read_text()))
    entries = results.study.entries(options.only, options.seeds)
    if options.list:
        _list(results, entries)
        return 0
    if options.jobs < 1:
        raise ValueError(f"--jobs is {options.jobs}; use at least 1")
    failed = run(results, entries, options.runs, options.jobs, console, options.fresh)
    if failed:
        again = shlex.join(["python", "benchmarks/tracking.py", *sys.argv[1:]])
        again = again.replace(" --fresh", "")
        raise RuntimeError(f"{failed} runs failed; the others are kept, try these again: {again}")
    return 0


def _list(results: Results, entries: list[Entry]) -> None:
    """Print every cell with its state."""
    done = 0
    for entry in entries:
        cell = results.get(entry)
        if cell is not None:
            done += 1
            error = cell["tracking_error"]
            state = "done" if error is None else f"done, {error:.4f} nats"
        else:
            state = "made with other settings" if entry.key in results.cells else "missing"
        print(f"{entry.key:32} {state}")
    print(f"{done} of {len(entries)} cells are there")


if __name__ == "__main__":
    sys.exit(main())
