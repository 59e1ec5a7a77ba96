"""The feedback loops on a simulated trainer and policy whose truth is known.

    python benchmarks/simulator.py                 # run, write benchmarks/results/simulator.json
    python -m benchmarks.tables benchmarks/results/simulator.json

The simulator gives a batch of rollouts with heavy-tailed true effects on entropy, predictions that
correlate with them, and a noisy measurement; what the controller keeps moves its entropy through
momentum, against a leak toward where the policy rests. The controller is the real one, with all its
parts. Errors are mean |entropy - target| after step 20, of the true entropy. The first version
called it a plant: results/plant.json.
"""

import argparse
import itertools
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
from entrocraft.rollouts import RolloutStats, StepInfo

RESULTS = Path(__file__).parent / "results" / "simulator.json"
STEPS, SEEDS = 150, (10, 11, 12, 13, 14)
START = 0.42


@dataclass(frozen=True)
class Simulator:
    """Settings of a simulated run; nats per token.

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


SIMULATORS = {
    "nominal": Simulator(),
    "4 times slower": Simulator(speed=0.25),
    "4 times faster": Simulator(speed=4.0),
    "predictions 4 times too large": Simulator(unit=4.0),
    "predictions 4 times too small": Simulator(unit=0.25),
    "predictions correlate 0.15": Simulator(correlation=0.15),
    "predictions correlate 0.95": Simulator(correlation=0.95),
    "no momentum": Simulator(momentum=0.0),
    "twice the noise": Simulator(noise=0.032),
    "four updates a batch": Simulator(updates=4, noise=0.008),
    "no leak": Simulator(leak=0.0),
}
TARGETS = {
    "constant": "constant(initial)",
    "linear down": "linear(initial, 0.6*initial, 150)",
    "linear up": "linear(initial, 1.2*initial, 150)",
    "triangle": "piecewise([(0, initial), (75, 0.7*initial), (150, initial)])",
    "step": "join([constant(initial), constant(initial - 0.1)], [60])",
}
LOOPS: dict[str, dict[str, float]] = {
    "measured again": {"remeasure": 1.0},
    "not measured again": {"remeasure": 0.0},
}


def run(simulator: Simulator, target: str, loop: str, seed: int) -> float:
    """Mean absolute error of one run."""
    random = np.random.default_rng(seed)
    warnings.simplefilter("ignore", EntropyControlWarning)
    controller = EntropyController(TARGETS[target], effect="logit", seed=seed, **LOOPS[loop])
    controller.prepare(steps=STEPS)
    rollouts = 256 * simulator.updates
    entropy = resting = START
    velocity, errors, size = 0.0, [], 4e-4 / simulator.updates
    for step in range(0, STEPS, simulator.updates):
        # three in ten succeed, a third of the rest is in groups without an advantage
        won = random.random(rollouts) < 0.3
        advantages = np.where(won, random.gamma(2, 0.7, rollouts), -random.gamma(2, 0.3, rollouts))
        advantages[random.random(rollouts) < 0.35] = 0
        tails = random.standard_t(4, (2, rollouts)) / math.sqrt(2)
        mean = -0.0012 * 16 / (4e-4 * 256)  # plain training lowers entropy
        truth = tails[0] + mean
        rest = math.sqrt(1 - simulator.correlation**2)
        guess = simulator.correlation * truth + rest * tails[1]
        true_effect = np.abs(advantages) * truth * size * simulator.speed * entropy / START
        sensitivity = np.sign(advantages) * guess * size * simulator.unit * rollouts
        noise = simulator.noise * math.sqrt(rollouts) * random.standard_normal(rollouts)
        stats = RolloutStats(
            advantages=torch.tensor(advantages),
            tokens=torch.ones(rollouts, dtype=torch.float64),
            logprob=torch.full((rollouts,), -1.0, dtype=torch.float64),
            entropy=torch.tensor(entropy + noise),
            sensitivity=torch.tensor(sensitivity),
        )
        decision = controller.decide(stats, StepInfo(step, simulator.updates, simulator.momentum))
        if step > 20:
            errors.append(abs(entropy - decision.metrics["entropy/target"]))
        # each update has its own mini-batch and so its own normalizer
        push = float((decision.weights.numpy() * true_effect).sum())
        before = entropy
        for _ in range(simulator.updates):
            pull = simulator.speed * simulator.leak * (resting - entropy)
            velocity = simulator.momentum * velocity + (1 - simulator.momentum) * (push + pull)
            entropy = max(entropy + velocity, 0.0)
            resting += 0.02 * simulator.speed * (entropy - resting)
        change = entropy - before
        if controller.remeasure:
            left_out = change + simulator.left_out_noise * float(random.standard_normal())
            controller.post_update(left_out, simulator.left_out_noise, trained=False)
            trained = change + simulator.trained_noise * float(random.standard_normal())
            trained += simulator.trained_bias * simulator.updates
            controller.post_update(trained, simulator.trained_noise, trained=True)
    return float(np.mean(errors))


def _cell(arguments: tuple[str, str, str, int]) -> float:
    torch.set_num_threads(1)
    name, target, loop, seed = arguments
    return run(SIMULATORS[name], target, loop, seed)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--output", type=Path, default=RESULTS, help="result file")
    options = parser.parse_args()
    cells = list(itertools.product(SIMULATORS, TARGETS, LOOPS, SEEDS))
    with ProcessPoolExecutor(options.jobs) as pool:
        errors = list(track(pool.map(_cell, cells), "simulators", total=len(cells)))
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (name, target, loop, _), error in zip(cells, errors, strict=True):
        by_loop = rows.setdefault(name, {}).setdefault(target, {})
        by_loop.setdefault(loop, []).append(round(error, 5))
    result = {
        "command": "python benchmarks/simulator.py",
        "seeds": list(SEEDS),
        "steps": STEPS,
        "targets": TARGETS,
        "simulators": {name: asdict(simulator) for name, simulator in SIMULATORS.items()},
        "errors": rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
