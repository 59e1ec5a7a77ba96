"""The report: one page that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from entrocraft.lab.report import figures
from entrocraft.lab.report.grid import is_crowded
from entrocraft.lab.report.groups import (
    describe_group,
    duration,
    group_summaries,
    table_header,
    table_notes,
    table_rows,
)
from entrocraft.lab.report.intervals import ENOUGH
from entrocraft.lab.report.runs import Run, load_runs
from entrocraft.lab.report.summary import BURN_IN, FINAL_STEPS, Summary, describe, summarize
from entrocraft.lab.report.svg import save_png, to_svg

PAGE_FILE = "report.html"
PICTURE_FILE = "entropy.png"
SUMMARY_FILE = "summary.json"

# What each color of the figures becomes on a dark page. The hues stay, the lightness changes.
DARK = {
    figures.BLUE: "#4aa3e6",
    figures.VERMILION: "#f5823d",
    figures.GREEN: "#2cc295",
    "#cc79a7": "#e095c0",
    "#e69f00": "#f0b73a",
    figures.SKY: "#86cdf7",
    figures.INK: "#e8eaed",
    figures.SOFT: "#a3acb8",
    figures.SHADE: "#5d6773",
    "#e2e5e9": "#2b313a",
    figures.PAPER: "#181c22",
}


@dataclass(frozen=True)
class Picture:
    """A figure laid out for a normal page and for a phone, as SVG elements."""

    wide: Markup
    narrow: Markup


def write_report(run_dirs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write ``report.html``, ``entropy.png`` and ``summary.json`` for one or several runs.

    The page holds its pictures and its style; opening it loads nothing else. Files from an
    earlier report are replaced.

    Args:
        run_dirs: run directories, in the order in which they shall appear.
        output: directory for the three files, made if it does not exist; a path that ends in
            ``.html`` names the page itself and puts the others beside it. Default for one run:
            its own directory.

    Returns:
        The path of the page.

    Raises:
        RunError: a run cannot be read.
        ValueError: no run, or several runs and no ``output``.
    """
    if isinstance(run_dirs, (str, Path)):
        run_dirs = [run_dirs]
    if not run_dirs:
        raise ValueError("no run directories; give at least one")
    if output is None and len(run_dirs) > 1:
        raise ValueError(
            f"{len(run_dirs)} runs and no output directory; say where the shared report goes"
        )
    runs = load_runs(run_dirs)
    summaries = [summarize(run) for run in runs]
    page = Path(run_dirs[0] if output is None else output)
    if page.suffix != ".html":
        page = page / PAGE_FILE
    page.parent.mkdir(parents=True, exist_ok=True)
    save_png(figures.entropy_figure(runs), page.with_name(PICTURE_FILE))
    records = [{**asdict(s), "description": describe(s)} for s in summaries]
    page.with_name(SUMMARY_FILE).write_text(
        json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    page.write_text(render_page(runs, summaries), encoding="utf-8")
    return page


def render_page(runs: Sequence[Run], summaries: Sequence[Summary]) -> str:
    """Return the page of ``runs`` and their ``summaries`` (same order) as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = group_summaries(summaries)
    crowded = is_crowded(runs)
    every_run = table_rows(summaries, members=True)
    rows = table_rows(summaries) if crowded else every_run
    colors = {name: look["color"] for name, look in figures.group_looks(runs).items()}
    return environment.get_template("page.html").render(
        title=_title(runs),
        several=len(runs) > 1,
        runs=[
            {
                "run": run,
                "summary": summary,
                "duration": "" if summary.seconds is None else duration(summary.seconds),
                "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
            }
            for run, summary in zip(runs, summaries, strict=True)
        ],
        groups=[
            {
                "group": group,
                "text": _unbroken(describe_group(group)),
                "color": colors[group.name],
            }
            for group in groups
        ],
        header=table_header(summaries),
        rows=rows,
        colors=colors,
        every_run=every_run if len(every_run) > len(rows) else [],
        notes=table_notes(rows),
        crowded=crowded,
        steered=sum(group.steered for group in groups),
        blue=figures.BLUE,
        vermilion=figures.VERMILION,
        enough=ENOUGH,
        any_controlled=any(run.controlled for run in runs),
        entropy=_picture(figures.entropy_figure, runs, "entropy", "Entropy and its target by step"),
        reward=_picture(figures.reward_figure, runs, "reward", "Reward and pass@k by step"),
        control=_picture(figures.control_figure, runs, "control", "Rollouts kept and authority"),
        dark={_variable(light): dark for light, dark in DARK.items()},
        burn_in=BURN_IN,
        final_steps=FINAL_STEPS,
        smoothing=figures.SMOOTHING,
    )


def _picture(
    draw: Callable[[Sequence[Run], float], Figure | None],
    runs: Sequence[Run],
    prefix: str,
    title: str,
) -> Picture | None:
    wide, narrow = draw(runs, figures.WIDE), draw(runs, figures.NARROW)
    if wide is None or narrow is None:
        return None
    # Markup: matplotlib has already escaped every text it wrote.
    return Picture(
        Markup(to_svg(wide, f"{prefix}-wide", title)),
        Markup(to_svg(narrow, f"{prefix}-narrow", title)),
    )


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].name
    names = list(dict.fromkeys(run.group for run in runs))
    if is_crowded(runs):
        return f"{len(names)} methods"
    if len(names) > 4:
        return f"{len(runs)} runs"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _unbroken(text: str) -> str:
    """Keep numbers and their units on one line."""
    return text.replace(" %", "\u00a0%").replace(" nats", "\u00a0nats")


def _variable(color: str) -> str:
    return f"--{color[1:]}"
