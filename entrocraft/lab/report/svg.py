"""Figures as pictures: PNG files, and SVG that can stand inside a page."""

from __future__ import annotations

import io
import re
from pathlib import Path

from matplotlib.figure import Figure

from entrocraft.lab.report.style import PAPER, style

PNG_DPI = 200

_ID = re.compile(r'\bid="([^"]+)"')
_URL = re.compile(r"url\(#([^)]+)\)")
_HREF = re.compile(r'xlink:href="#([^"]+)"')
_COLOUR = re.compile(r"(?<=[a-z]: )#([0-9a-f]{6})(?=[;\"])")
_FONT = re.compile(r"(font-family:|font: [^;\"']*?[\d.]+px) [^;\"]*")
_COORDINATES = re.compile(r'(?<= )(d|x|y)="([^"]+)"')
_DECIMALS = re.compile(r"\d+\.\d{3,}")
_BLOCKS = re.compile(
    r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL
)
_STROKES = "stroke-linejoin: round; stroke-linecap: butt"  # what the removed <style> said


def to_svg(figure: Figure, prefix: str, title: str) -> str:
    """Return a figure as one ``<svg>`` element for a page that holds several.

    Text stays text, in the font of the page. Every color ``#rrggbb`` becomes
    ``var(--rrggbb, #rrggbb)``, so a page can restyle the figure for a dark background; without
    such variables it shows as drawn. Coordinates are rounded to a hundredth of a point. There is
    no reference to anything outside.

    Args:
        figure: a figure of this package.
        prefix: starts every id; give each figure of a page its own, letters and digits only.
        title: says what the picture shows to those who cannot see it.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = _BLOCKS.sub("", svg[svg.index("<svg") :])
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None, "matplotlib writes a viewBox"
    used = set(_URL.findall(body)) | set(_HREF.findall(body))
    body = _ID.sub(lambda m: f'id="{prefix}-{m[1]}"' if m[1] in used else "", body)
    body = _URL.sub(rf"url(#{prefix}-\1)", body)
    body = _HREF.sub(rf'href="#{prefix}-\1"', body)
    body = _COLOUR.sub(r"var(--\1, #\1)", body)
    body = _FONT.sub(r"\1 var(--figure-font, sans-serif)", body)
    body = _COORDINATES.sub(lambda m: f'{m[1]}="{_DECIMALS.sub(_round, m[2])}"', body)
    label = _attribute(title)
    return f'<svg {box[0]} role="img" aria-label="{label}" style="{_STROKES}">{body.strip()}'


def save_png(figure: Figure, path: str | Path) -> Path:
    """Save a figure on white, at twice the resolution of a normal screen; return the path."""
    path = Path(path)
    with style():
        figure.savefig(path, format="png", dpi=PNG_DPI, facecolor=PAPER)
    return path


def _round(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
