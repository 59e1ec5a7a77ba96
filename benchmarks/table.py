"""Print the table of a comparison's results.json as Markdown, with 95 % intervals over seeds.

    python benchmarks/table.py benchmarks/results/study.json

Intervals are Student's t over seeds; with three seeds they are wide, as they should be.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from scipy import stats


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % interval."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{mean:.3f} ± {half:.3f}"


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
