"""What control costs in time: seconds of an optimiser step, as ratios to the plain trainer.

    python benchmarks/cost.py              # run, write benchmarks/results/cost.json
    python benchmarks/cost.py --table      # print the table of that file as Markdown

The demo's model and task, one thread. Methods take turns, round after round, so that a busy machine
slows all of them; each round's median step is divided by the plain trainer's of the same round.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path

import torch
from rich.progress import track

from entrocraft.parsing import config_from_mapping
from entrocraft.training.config import TrainConfig
from entrocraft.training.recorder import read_records
from entrocraft.training.run import train

RESULTS = Path(__file__).parent / "results" / "cost.json"
STEPS, WARM_UP = 18, 4
METHODS = {
    "plain TRL, observed": {"rule": None},
    "tilt, sampled, not re-measured": {"effect": "sampled", "remeasure": False},
    "tilt, not re-measured": {"remeasure": False},
    "tilt (default)": {},
    "tilt, gradient": {"effect": "gradient"},
    "tilt, gradient, refresh 4": {"effect": "gradient", "refresh": 4},
}


def step_seconds(control: dict[str, object], seed: int) -> float:
    """Median seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        keys = {
            "output": f"{folder}/run",
            "seed": seed,
            "steps": STEPS,
            "save_every": 0,
            "control": control,
            "evaluation": {"probe_every": 0, "every": 0},
        }
        train(config_from_mapping(TrainConfig, keys))
        seconds = [record["seconds"] for record in read_records(Path(folder) / "run/metrics.jsonl")]
    taken = [after - before for before, after in itertools.pairwise(seconds)]
    return statistics.median(taken[WARM_UP:])


def main() -> None:
    """Run everything, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="print the committed result's table")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every method")
    parser.add_argument("--output", type=Path, default=RESULTS, help="result file")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        taken: dict[str, list[float]] = {name: [] for name in METHODS}
        for turn in track(range(options.rounds), "rounds"):
            for name, control in METHODS.items():
                taken[name].append(step_seconds(control, turn))
        plain = taken[next(iter(METHODS))]
        result = {
            "command": f"python benchmarks/cost.py --rounds {options.rounds}",
            "rollouts": 256,
            "seconds": taken,
            "ratios": {
                name: [round(a / b, 3) for a, b in zip(row, plain, strict=True)]
                for name, row in taken.items()
            },
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    ratios = json.loads(options.output.read_text())["ratios"]
    print("| method | step, plain TRL = 1: median (range over rounds) |\n|---|---|")
    for name, row in ratios.items():
        print(f"| {name} | {statistics.median(row):.2f} ({min(row):.2f} - {max(row):.2f}) |")


if __name__ == "__main__":
    main()
