"""`entrocraft report RUN_DIR ... [--output DIR]`."""

from __future__ import annotations

import warnings
from pathlib import Path

from jsonargparse import ArgumentParser


def run(arguments: list[str]) -> None:
    """Draw figures and report.html from run directories, and print the table."""
    parser = ArgumentParser(
        prog="entrocraft report",
        description="Draw report.html and entropy.png from the metrics.jsonl of some runs.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run directories")
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help="where to write; a single run's own directory if left out",
    )
    options = parser.parse_args(arguments)
    from rich.console import Console

    from entrocraft import EntropyControlWarning
    from entrocraft.lab.report import load_runs, render_table, summarize, write_report

    runs = options.runs
    if options.output is None and len(runs) > 1:
        raise ValueError("several runs need --output DIR for their common report")
    output = options.output or runs[0]
    page = write_report(runs, output)
    console = Console()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)  # old keys were told of above
        console.print(render_table([summarize(run) for run in load_runs(runs)]))
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
