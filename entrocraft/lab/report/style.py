"""How the figures look: colors, type and axes.

The palette is Okabe and Ito's (2008), which stays apart under the common color deficiencies, in
an order that also keeps neighbors apart in lightness. Its yellow is left out: it vanishes on
white.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
ORANGE = "#e69f00"
SKY = "#56b4e9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))

INK = "#1f2328"
SOFT = "#5c6570"
GRID = "#e2e5e9"
SHADE = "#b4bbc4"
PAPER = "#ffffff"

WIDE = 8.8
"""Width of a figure in inches on a normal page."""
NARROW = 4.5
"""Width of a figure in inches on a phone."""

FONTS = ("Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")


@contextmanager
def style() -> Iterator[None]:
    """Draw and save inside this context; matplotlib's own settings are put back afterwards."""
    known = {font.name for font in fontManager.ttflist}
    settings: dict[Any, Any] = {
        "font.family": [font for font in FONTS if font in known] or ["sans-serif"],
        "font.size": 9.5,
        "text.color": INK,
        "text.parse_math": False,  # a dollar sign in a run's name is a dollar sign
        "axes.edgecolor": SHADE,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.labelcolor": SOFT,
        "axes.linewidth": 0.8,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.titlepad": 7,
        "axes.titleweight": "bold",
        "axes.xmargin": 0.02,
        "figure.facecolor": "none",
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.solid_capstyle": "round",
        "lines.solid_joinstyle": "round",
        "svg.fonttype": "none",
        "svg.hashsalt": "entrocraft",
        "xtick.color": SHADE,
        "xtick.labelcolor": SOFT,
        "xtick.labelsize": 9,
        "ytick.color": SHADE,
        "ytick.labelcolor": SOFT,
        "ytick.labelsize": 9,
        "ytick.major.size": 0,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in any script
        yield


def empty_figure(width: float, height: float) -> Figure:
    """Return a figure of this size (inches) that leaves its axes the room their texts need."""
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.06, hspace=0.04, wspace=0.06)
    return Figure(figsize=(width, height), layout=layout)


def panels(width: float, heights: Sequence[float], columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes: ``heights`` (inches) of the rows, the same x axis in all."""
    figure = empty_figure(width, sum(heights))
    grid = figure.subplots(
        len(heights), columns, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    return figure, list(grid.flat)


def label_steps(axes: Sequence[Axes]) -> None:
    """Name the x axis of ``axes`` and let its ticks be whole steps."""
    for axis in axes:
        axis.set_xlabel("optimizer step")
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def place_apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions near ``wanted``, in the same order, at least ``gap`` apart.

    They stay between ``low`` and ``high`` where there is room for all.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [min(max(w, low), high) for w in wanted]
    for before, i in pairwise(order):
        placed[i] = max(placed[i], placed[before] + gap)
    ceiling = max(high, low + gap * (len(wanted) - 1))
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def color_of(name: str) -> str:
    """Return the color of a method, the same in every figure; a stand-in of the report room's."""
    known = {"tilt": BLUE, "sign": GREEN, "switch": PURPLE, "grpo": VERMILION, "plain": VERMILION}
    others = (ORANGE, SKY, PURPLE, GREEN)
    return known.get(name.lower()) or others[zlib.crc32(name.encode()) % len(others)]


def save_png(figure: Figure, path: str | Path) -> Path:
    """Save a figure on white, at twice the resolution of a normal screen; return the path."""
    with style():
        figure.savefig(path, format="png", dpi=200, facecolor=PAPER)
    return Path(path)
