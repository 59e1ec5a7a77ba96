"""Tables of the peers' study, from the results.json of `entrocraft compare benchmarks/peers.yaml`.

    python benchmarks/peers.py runs/peers/results.json   # print them as Markdown
    python benchmarks/peers.py --docs                    # the committed results, into docs/peers.md

From three seeds on a number is the interquartile mean with its 95 % bootstrap interval; of two it
is the mean with the range. Time is relative to GRPO.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from pages import into_page, markdown

RESULTS = Path(__file__).parent / "results" / "peers.json"
PAGE = Path(__file__).parent.parent / "docs" / "peers.md"
REFERENCE = "GRPO"
COLLAPSED, EXPLODED = 0.5, 1.5
"""Entropy at the end over entropy at the start, below and above which the table says so."""


def tables(results: dict[str, Any]) -> str:
    """Markdown: every method, nearest to the schedule first, and the values that were tried."""
    rows, tuning = results["groups"], results["tuning"]
    blocks = [_methods(rows, tuning), "\\* follows the schedule; for the others it is a reference."]
    if tuning:
        blocks += ["Values tried first, each on one seed of its own:", _trials(tuning)]
    return "\n\n".join([*blocks, f"Command: `{results['command']}`"])


def _methods(rows: list[dict[str, Any]], tuning: dict[str, Any]) -> str:
    keys = sorted({key for row in rows for key in row if key.startswith("pass@")}, key=len)
    [plain] = [row["seconds"]["centre"] for row in rows if row["group"] == REFERENCE]
    head = ["method", "seeds", "value", "tracking error, nats", "final reward", *keys]
    table = []
    for row in sorted(rows, key=lambda row: _centre(row["tracking_error"])):
        tried = tuning.get(row["group"])
        table.append(
            [
                row["group"] + (" *" if row["steered"] else ""),
                str(row["runs"]),
                f"{_short(tried['key'])} {tried['chosen']}" if tried else "",
                number(row["tracking_error"], 4),
                number(row["final_reward"]),
                *(number(row.get(key)) for key in keys),
                number(row["entropy_end"]),
                fate(row),
                f"{_centre(row['kept_fraction']):.0%}" if row["kept_fraction"] else "",
                f"{row['seconds']['centre'] / plain:.2f}",
            ]
        )
    return markdown([*head, "entropy at the end", "", "kept", "time"], table)


def _trials(tuning: dict[str, Any]) -> str:
    table = []
    for name, found in tuning.items():
        values = [
            f"{value}: {'failed' if error is None else f'{error:.4f}'}"
            for value, error in found["tried"].items()
        ]
        table.append([name, _short(found["key"]), *values])
    widest = max(len(row) for row in table)
    rows = [row + [""] * (widest - len(row)) for row in table]
    columns = ["value: tracking error, nats"] + [""] * (widest - 3)
    return markdown(["method", "key", *columns], rows)


def number(spread: dict[str, Any] | None, digits: int = 2) -> str:
    """Centre, and what is around it."""
    if spread is None:
        return "-"
    centre, low, high = (f"{spread[key]:.{digits}f}" for key in ("centre", "low", "high"))
    return centre if spread["n"] == 1 else f"{centre} [{low}, {high}]"


def fate(row: dict[str, Any]) -> str:
    """What became of the entropy, in a word."""
    ratio = _centre(row["entropy_end"]) / _centre(row["entropy_start"])
    return "collapsed" if ratio < COLLAPSED else "exploded" if ratio > EXPLODED else ""


def _centre(spread: dict[str, Any] | None) -> float:
    return math.inf if spread is None else spread["centre"]


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def main() -> None:
    """Print, or write into the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="results.json")
    parser.add_argument("--docs", action="store_true", help=f"write into {PAGE.name} and stop")
    options = parser.parse_args()
    made = tables(json.loads(options.results.read_text()))
    if options.docs:
        into_page(made, PAGE)
    else:
        print(made)


if __name__ == "__main__":
    main()
