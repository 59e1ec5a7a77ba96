"""Several methods and seeds on the same work, side by side, resumable cell by cell.

A cell is one method with one seed: a training run of its own in a process of its own. All cells
share the model, the problems and, for the same seed, the order of the prompts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from entrocraft.training.config import TrainConfig
from entrocraft.training.directory import RunDirectory
from entrocraft.training.parsing import config_from_mapping
from entrocraft.training.recorder import read_records

__all__ = ["Cell", "CompareConfig", "compare", "merge", "run_cells"]

_POLL_SECONDS = 0.5


@dataclass
class CompareConfig:
    """Methods x seeds.

    Args:
        output: directory of the comparison: cells/, report.html, entropy.png, results.json.
        methods: name -> changes to `base`, e.g. {tilt: {control: {rule: tilt}}}.
        seeds: one run of every method for each.
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
    base: dict[str, Any] = field(default_factory=dict)
    jobs: int = 2
    threads: int = 1

    def __post_init__(self) -> None:
        self.output = Path(self.output)
        if not self.methods or not self.seeds:
            raise ValueError("a comparison needs at least one method and one seed")
        for name in self.methods:
            if not re.fullmatch(r"[\w .,+()-]{1,60}", name):
                raise ValueError(
                    f"the method name {name!r} becomes a directory; use letters, digits, . , + - ()"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; name each once")
        if self.jobs < 1 or self.threads < 1:
            raise ValueError(f"jobs={self.jobs}, threads={self.threads}; use at least 1 of each")

    def cells(self) -> list[Cell]:
        """Every cell, seed by seed, so that an early stop leaves whole comparisons."""
        cells = []
        for seed in self.seeds:
            for name, changes in self.methods.items():
                directory = self.output / "cells" / f"{name}-seed{seed}"
                keys = merge(self.base, changes)
                keys |= {"name": name, "seed": seed, "output": str(directory)}
                cells.append(Cell(directory, config_from_mapping(TrainConfig, keys)))
        return cells


@dataclass
class Cell:
    """One training run of a comparison."""

    directory: Path
    config: TrainConfig

    @property
    def title(self) -> str:
        """Method and seed."""
        return f"{self.config.title}, seed {self.config.seed}"

    def records(self) -> list[dict[str, Any]]:
        """What the run has recorded so far."""
        return read_records(self.directory / "metrics.jsonl")

    def finished(self) -> bool:
        """Whether this very run reached its end and was reported.

        Raises:
            ValueError: the directory holds a run of another config.
        """
        done = RunDirectory(self.directory).finished(self.config)
        return done and (self.directory / "report.html").exists()

    def start(self, threads: int) -> subprocess.Popen[bytes]:
        """Start the run in a process of its own; what it prints goes to log.txt."""
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "cell.yaml"
        file.write_text(yaml.safe_dump(self.config.as_dict(), sort_keys=False))
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        with (self.directory / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "entrocraft", "train", str(file)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )


def compare(config: CompareConfig, console: Console | None = None) -> Path:
    """Run what is missing, then draw the common report; return its path.

    Raises:
        RuntimeError: cells that failed, with their logs; the finished ones are kept.
    """
    from entrocraft.report import load_run, render_table, summarise, write_report
    from entrocraft.training.run import prepare_model

    console = console or Console()
    cells = config.cells()
    for model in {json.dumps(_model_settings(cell.config)): cell.config for cell in cells}.values():
        prepare_model(model, console)
    todo = [cell for cell in cells if not cell.finished()]
    if len(todo) < len(cells):
        console.print(
            f"{len(cells) - len(todo)} of {len(cells)} runs are there already; delete them in "
            f"{config.output / 'cells'} to train them again",
            soft_wrap=True,
            highlight=False,
        )
    failed = run_cells(todo, config.jobs, config.threads, console)
    if failed:
        logs = "\n".join(f"  {cell.title}: {cell.directory / 'log.txt'}" for cell in failed)
        raise RuntimeError(
            f"{len(failed)} of {len(cells)} runs failed; the others are kept, the same command "
            f"tries these again:\n{logs}"
        )
    directories = [cell.directory for cell in cells]
    page = write_report(directories, config.output)
    summaries = [summarise(load_run(directory)) for directory in directories]
    results = {
        "command": " ".join(["entrocraft", *sys.argv[1:]]),
        "config": {**asdict(config), "output": str(config.output)},
        "runs": [
            asdict(summary) | {"probe": _probe_curve(cell)}
            for cell, summary in zip(cells, summaries, strict=True)
        ],
    }
    (config.output / "results.json").write_text(json.dumps(results, indent=1, default=str) + "\n")
    console.print(render_table(summaries))
    return page


def run_cells(
    cells: list[Cell], jobs: int, threads: int, console: Console, poll: float = _POLL_SECONDS
) -> list[Cell]:
    """Run cells, `jobs` at a time, under a progress display; return those that failed."""
    from entrocraft.training.progress import CellsProgress

    waiting, failed = list(cells), []
    running: dict[str, tuple[Cell, subprocess.Popen[bytes]]] = {}
    with CellsProgress([(cell.title, cell.config.steps) for cell in cells], console) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    running[cell.title] = (cell, cell.start(threads))
                time.sleep(poll)
                for title, (cell, process) in list(running.items()):
                    records = cell.records()
                    progress.show(title, records)
                    if (code := process.poll()) is not None:
                        del running[title]
                        progress.finish(title, failed=code != 0)
                        if code != 0:
                            failed.append(cell)
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
    return failed


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


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(old, value) if both and old is not None else value
    return merged
