"""`entrocraft report DIR ... [--output DIR]`."""

from __future__ import annotations

import warnings
from pathlib import Path

from jsonargparse import ArgumentParser


def run(arguments: list[str]) -> None:
    """Draw figures and report.html from run directories, and print the table."""
    parser = ArgumentParser(
        prog="entrocraft report",
        description="Draw report.html and entropy.png of runs from their metrics.jsonl, or from "
        "what transformers' Trainer left of them: trainer_state.json, TensorBoard's or trackio's "
        "logs.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="directories with runs")
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

    page = write_report(options.runs, options.output)
    console = Console()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)  # old keys were told of above
        console.print(render_table([summarize(run) for run in load_runs(options.runs)]))
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
