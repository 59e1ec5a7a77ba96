"""What control costs in time: seconds of an optimizer step, as ratios to TRL without control.

    python benchmarks/cost.py --rounds 5                    # write benchmarks/results/cost.json
    python benchmarks/tables.py benchmarks/results/cost.json

The demo's model and task, one thread. Methods take turns, round after round, so that a busy machine
slows all of them; each round's median step is divided by plain TRL's of the same round.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from transformers import TrainerCallback

from entrocraft.lab.models import load_model
from entrocraft.lab.tasks import get_task
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.run import prepare_model
from entrocraft.lab.training.trainer import build_trainer
from entrocraft.settings import ControlSettings

RESULTS = Path(__file__).parent / "results" / "cost.json"
STEPS, WARM_UP = 18, 4


class NoControl(ControlSettings):
    """TRL alone: no controller, nothing observed."""

    def build(self, seed: int) -> Any:
        return None


METHODS = {
    "plain TRL": NoControl(),
    "observed, nothing rejected": ControlSettings(rule=None),
    "tilt, a quarter measured again": ControlSettings(remeasure=0.25),
    "tilt, not measured again": ControlSettings(remeasure=0.0),
    "tilt (default)": ControlSettings(),
    "tilt, logit": ControlSettings(effect="logit"),
}


class StepClock(TrainerCallback):
    """When each optimizer step ended, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def step_seconds(control: ControlSettings, seed: int) -> float:
    """Median seconds of a step: rollouts, rewards, control and update."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output=Path(folder), seed=seed, steps=STEPS, save_every=0, control=control
        )
        model, tokenizer = load_model(prepare_model(config), dtype=config.dtype)
        task = get_task(config.task.name, **config.task.options)
        problems = stored_problems(task, "train", config.task.train_size)
        trainer = build_trainer(config, model, tokenizer, task, problems, chat=False)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
    taken = [after - before for before, after in itertools.pairwise(clock.ends)]
    return statistics.median(taken[WARM_UP:])


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of every method")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in track(range(rounds), "rounds"):
        for name, control in METHODS.items():
            taken[name].append(step_seconds(control, turn))
    plain = taken["plain TRL"]
    ratios = {
        name: [round(a / b, 3) for a, b in zip(row, plain, strict=True)]
        for name, row in taken.items()
    }
    command = f"python benchmarks/cost.py --rounds {rounds}"
    result = {"command": command, "rollouts": 256, "seconds": taken, "ratios": ratios}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
