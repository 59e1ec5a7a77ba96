"""Print the table of a comparison's results.json as Markdown, with 95 % intervals over seeds.

    python benchmarks/table.py benchmarks/results/study.json

Intervals are Student's t over seeds; with three seeds they are wide, as they should be.
"""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

from scipy import stats


def confidence(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval; a single value has none (NaN)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def interval(values: list[float], digits: int = 3) -> str:
    """Mean and half-width of the 95 % interval, as text."""
    mean, half = confidence(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def main() -> None:
    """Read the file named on the command line."""
    results = json.loads(Path(sys.argv[1]).read_text())
    runs = defaultdict(list)
    for run in results["runs"]:
        runs[run["group"]].append(run)
    columns = {
        "tracking error, nats": lambda r: r["tracking_error"],
        "final reward": lambda r: r["final_reward"],
        "pass@1": lambda r: r["pass_at"]["pass@1"]["last"],
        "pass@8": lambda r: r["pass_at"]["pass@8"]["last"],
        "entropy at the end": lambda r: r["entropy_end"],
        "kept": lambda r: r["kept_fraction"],
    }
    print("| method | seeds | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for name, group in runs.items():
        cells = [interval([read(run) for run in group]) for read in columns.values()]
        print(f"| {name} | {len(group)} | " + " | ".join(cells) + " |")
    print(f"\nCommand: `{results['command']}`")


if __name__ == "__main__":
    main()
