"""The feedback loops on simulated plants with known truth.

    python benchmarks/plant.py                 # run, write benchmarks/results/plant.json
    python benchmarks/plant.py --table         # print the table of that file as Markdown

A plant gives a batch of rollouts with heavy-tailed true effects on entropy, predictions that
correlate with them, and a noisy measurement; what the controller keeps moves its entropy through
momentum, against a leak toward where the policy rests. The controller is the real one, with all its
parts; only trainer and policy are simulated. Errors are mean |entropy - target| after step 20, of
the true entropy.
"""

import argparse
import json
import math
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from entrocraft import EntropyController, EntropyControlWarning
from entrocraft.rollouts import RolloutStats

RESULTS = Path(__file__).parent / "results" / "plant.json"
STEPS, SEEDS = 150, (10, 11, 12, 13, 14)
START = 0.42


@dataclass(frozen=True)
class Plant:
    """Settings of a plant; nats per token.

    correlation: of predicted with true effects. speed: factor on everything that moves. unit: of
    the predictions. momentum: of the optimizer. noise: standard error of one measurement. leak: per
    step, toward the resting point. updates: optimizer steps a batch. trained_noise, trained_bias,
    left_out_noise: of the changes that are measured after an update, on prompts that were trained
    on and on those that were left out.
    """

    correlation: float = 0.4
    speed: float = 1.0
    unit: float = 1.0
    momentum: float = 0.9
    noise: float = 0.016
    leak: float = 0.05
    updates: int = 1
    trained_noise: float = 0.002
    trained_bias: float = -0.001
    left_out_noise: float = 0.003


PLANTS = {
    "nominal": Plant(),
    "4 times slower": Plant(speed=0.25),
    "4 times faster": Plant(speed=4.0),
    "predictions 4 times too large": Plant(unit=4.0),
    "predictions 4 times too small": Plant(unit=0.25),
    "predictions correlate 0.15": Plant(correlation=0.15),
    "predictions correlate 0.95": Plant(correlation=0.95),
    "no momentum": Plant(momentum=0.0),
    "twice the noise": Plant(noise=0.032),
    "four updates a batch": Plant(updates=4, noise=0.008),
    "no leak": Plant(leak=0.0),
}
TARGETS = {
    "constant": "constant(initial)",
    "linear down": "linear(initial, 0.6*initial, 150)",
    "linear up": "linear(initial, 1.2*initial, 150)",
    "triangle": "piecewise([(0, initial), (75, 0.7*initial), (150, initial)])",
    "step": "join([constant(initial), constant(initial - 0.1)], [60])",
}
LOOPS = {
    "plan": {"feedback": "plan"},
    "plan, not re-measured": {"feedback": "plan", "remeasure": False},
    "pi": {"feedback": "pi"},
}


def run(plant: Plant, target: str, loop: str, seed: int) -> float:
    """Mean absolute error of one run."""
    random = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        return _run(plant, target, loop, seed, random)


def _run(plant: Plant, target: str, loop: str, seed: int, random: np.random.Generator) -> float:
    controller = EntropyController(TARGETS[target], seed=seed, **LOOPS[loop])
    controller.prepare(steps=STEPS)
    rollouts = 256 * plant.updates
    entropy = resting = START
    velocity, errors, size = 0.0, [], 4e-4 / plant.updates
    for step in range(0, STEPS, plant.updates):
        # three in ten succeed, a third of the rest is in groups without an advantage
        won = random.random(rollouts) < 0.3
        advantages = np.where(won, random.gamma(2, 0.7, rollouts), -random.gamma(2, 0.3, rollouts))
        advantages[random.random(rollouts) < 0.35] = 0
        tails = random.standard_t(4, (2, rollouts)) / math.sqrt(2)
        mean = -0.0012 * 16 / (4e-4 * 256)  # plain training lowers entropy
        truth = tails[0] + mean
        rest = math.sqrt(1 - plant.correlation**2)
        guess = plant.correlation * truth + rest * tails[1]
        true_effect = np.abs(advantages) * truth * size * plant.speed * entropy / START
        sensitivity = np.sign(advantages) * guess * size * plant.unit * rollouts
        noise = plant.noise * math.sqrt(rollouts) * random.standard_normal(rollouts)
        stats = RolloutStats(
            advantages=torch.tensor(advantages),
            tokens=torch.ones(rollouts, dtype=torch.float64),
            logprob=torch.full((rollouts,), -1.0, dtype=torch.float64),
            entropy=torch.tensor(entropy + noise),
            sensitivity=torch.tensor(sensitivity),
        )
        decision = controller.decide(
            stats, step=step, optimizer_steps=plant.updates, momentum=plant.momentum
        )
        if step > 20:
            errors.append(abs(entropy - decision.metrics["entropy/target"]))
        # each update has its own mini-batch and so its own normalizer
        push = float((decision.weights.numpy() * true_effect).sum())
        before = entropy
        for _ in range(plant.updates):
            pull = plant.speed * plant.leak * (resting - entropy)
            velocity = plant.momentum * velocity + (1 - plant.momentum) * (push + pull)
            entropy = max(entropy + velocity, 0.0)
            resting += 0.02 * plant.speed * (entropy - resting)
        change = entropy - before
        if controller.remeasure:
            left_out = change + plant.left_out_noise * float(random.standard_normal())
            controller.post_update(left_out, plant.left_out_noise, trained=False)
            trained = change + plant.trained_noise * float(random.standard_normal())
            trained += plant.trained_bias * plant.updates
            controller.post_update(trained, plant.trained_noise, trained=True)
    return float(np.mean(errors))


def _cell(arguments: tuple[str, str, str, int]) -> float:
    torch.set_num_threads(1)
    plant, target, loop, seed = arguments
    return run(PLANTS[plant], target, loop, seed)


def main() -> None:
    """Run everything, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="print the committed result's table")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--output", type=Path, default=RESULTS, help="result file")
    options = parser.parse_args()
    if not options.table:
        cells = [(p, t, c, s) for p in PLANTS for t in TARGETS for c in LOOPS for s in SEEDS]
        with ProcessPoolExecutor(options.jobs) as pool:
            errors = list(track(pool.map(_cell, cells), "plants", total=len(cells)))
        rows: dict[str, dict[str, dict[str, list[float]]]] = {}
        for (plant, target, loop, _), error in zip(cells, errors, strict=True):
            by_loop = rows.setdefault(plant, {}).setdefault(target, {})
            by_loop.setdefault(loop, []).append(round(error, 5))
        result = {
            "command": "python benchmarks/plant.py",
            "seeds": list(SEEDS),
            "steps": STEPS,
            "targets": TARGETS,
            "plants": {name: asdict(plant) for name, plant in PLANTS.items()},
            "errors": rows,
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    errors = json.loads(options.output.read_text())["errors"]
    print("| plant | target | " + " | ".join(LOOPS) + " |")
    print("|---" * (2 + len(LOOPS)) + "|")
    for plant, by_target in errors.items():
        for target, by_loop in by_target.items():
            means = [f"{np.mean(by_loop[loop]):.4f}" for loop in LOOPS]
            print(f"| {plant} | {target} | " + " | ".join(means) + " |")


if __name__ == "__main__":
    main()
