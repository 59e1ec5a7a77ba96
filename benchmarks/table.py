"""Print the table of a comparison's results.json as Markdown.

    python benchmarks/table.py runs/peers/results.json

From three seeds on a number is the interquartile mean with its 95 % bootstrap interval; of two it
is the mean with the range. Time is relative to the first method of the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLLAPSED, EXPLODED = 0.5, 1.5
"""Entropy at the end over entropy at the start, below and above which the table says so."""


def number(spread: dict[str, Any] | None, form: str = "{:.3f}") -> str:
    """Centre, and what is around it."""
    if spread is None:
        return "-"
    text = form.format(spread["centre"])
    if spread["n"] == 1:
        return text
    return f"{text} [{form.format(spread['low'])}, {form.format(spread['high'])}]"


def fate(row: dict[str, Any]) -> str:
    """What became of the entropy, in a word."""
    start, end = row["entropy_start"], row["entropy_end"]
    if start is None or end is None:
        return ""
    ratio = end["centre"] / start["centre"]
    return "collapsed" if ratio < COLLAPSED else "exploded" if ratio > EXPLODED else ""


def main() -> None:
    """Read the file named on the command line."""
    results = json.loads(Path(sys.argv[1]).read_text())
    tuning, rows = results.get("tuning", {}), results["groups"]
    keys = sorted({key for row in rows for key in row if key.startswith("pass@")}, key=len)
    head = ["method", "seeds", "chosen", "tracking error, nats", "final reward", *keys]
    head += ["entropy at the end", "", "kept", "time"]
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    first = rows[0]["seconds"]["centre"]
    for row in rows:
        chosen = tuning.get(row["group"])
        cells = [
            row["group"] + (" *" if row["steered"] else ""),
            str(row["runs"]),
            f"{chosen['key'].rpartition('.')[2]} {chosen['chosen']}" if chosen else "",
            number(row["tracking_error"]),
            number(row["final_reward"], "{:.2f}"),
            *(number(row.get(key), "{:.2f}") for key in keys),
            number(row["entropy_end"]),
            fate(row),
            number(row["kept_fraction"] and {**row["kept_fraction"], "n": 1}, "{:.0%}"),
            f"{row['seconds']['centre'] / first:.2f}",
        ]
        print("| " + " | ".join(cells) + " |")
    print("\n\\* follows the schedule; for the others it is a reference.")
    print(f"Command: `{results['command']}`")


if __name__ == "__main__":
    main()
