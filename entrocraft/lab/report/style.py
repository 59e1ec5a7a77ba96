"""How every figure of the project looks: one color per method, type and axes.

The palette is Okabe and Ito's (2008), safe for color-blind readers, without its yellow.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
PURPLE, ORANGE, SKY = "#cc79a7", "#e69f00", "#56b4e9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
INK, SOFT, SHADE, PAPER = "#1f2328", "#5c6570", "#b4bbc4", "#ffffff"
WIDE, NARROW = 8.8, 4.5  # inches, of a figure on a normal page and on a phone

_METHODS = {"tilt": BLUE, "sign": GREEN, "switch": PURPLE}
_METHODS |= dict.fromkeys(("grpo", "plain", "none", "rloo"), VERMILION)
_OTHERS = (ORANGE, SKY, PURPLE, GREEN)


def color_of(name: str) -> str:
    """Return the color of a method, the same in every figure of the project.

    tilt, sign, switch and plain RL have colors of their own, other names one of four by checksum.
    """
    return _METHODS.get(name.strip().lower()) or _OTHERS[zlib.crc32(name.encode()) % len(_OTHERS)]


def looks_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return name -> ``color`` and ``linestyle`` for one report, in which no two names look alike.

    A name whose color is taken has the next free one of the palette, beyond six names other dashes.
    """
    looks: dict[str, dict[str, Any]] = {}
    for name in sorted(names, key=lambda name: name.strip().lower() not in _METHODS):
        taken = [look["color"] for look in looks.values()]
        color = min([color_of(name), *PALETTE], key=taken.count)
        looks[name] = {"color": color, "linestyle": DASHES[taken.count(color) % len(DASHES)]}
    return {name: looks[name] for name in names}


@contextmanager
def style() -> Iterator[None]:
    """Draw and save inside this context; matplotlib's own settings are put back afterwards."""
    sheet = Path(__file__).with_name("entrocraft.mplstyle")
    with mpl.rc_context(fname=sheet), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in any script
        yield


def empty_figure(width: float, height: float) -> Figure:
    """Return a figure of this size (inches) that leaves its axes the room their texts need."""
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.06, hspace=0.04, wspace=0.06)
    return Figure(figsize=(width, height), layout=layout)


def label_steps(axes: Iterable[Axes]) -> None:
    """Name the x axis of ``axes`` and let its ticks be whole steps."""
    for axis in axes:
        axis.set_xlabel("optimizer step")
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def save_png(figure: Figure, path: str | Path) -> Path:
    """Save a figure on white, at twice the resolution of a normal screen; return the path."""
    with style():
        figure.savefig(path, format="png", dpi=200, facecolor=PAPER)
    return Path(path)
