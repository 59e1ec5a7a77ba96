"""Where a schedule can be held: tracking error over learning rate, batch, updates, LoRA and model.

    python benchmarks/reach.py                     # run what is missing of results/reach.json
    python benchmarks/reach.py --share 0/2         # every second cell, 1/2 in another process
    python -m benchmarks.tables                    # the table and figure of docs/reach.md

Four worlds of small models from scratch with a dense reward, and the demo's warm-started model on
countdown. Each cell is one run of TRL under `linear(initial, 0.7*initial, 60)`, which is far above
the free run (the cells without control) wherever the learning rate is not tiny. Nothing was tuned
on the worlds below the first two. Errors are mean |batch entropy - target| after step 10.
"""

import argparse
import itertools
import json
import random
import string
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from entrocraft import EntropyControlWarning
from entrocraft.feedback import FeedbackSettings
from entrocraft.lab.models import load_model
from entrocraft.lab.models.reasoner import build_tokenizer
from entrocraft.lab.tasks import Problem, get_task
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.run import prepare_model
from entrocraft.lab.training.trainer import build_trainer
from entrocraft.selection import SelectionSettings
from entrocraft.settings import ControlSettings
from entrocraft.storage import write_atomically

RESULTS = Path(__file__).parent / "results" / "reach.json"
SCHEDULE, STEPS, BURN_IN = "linear(initial, 0.7*initial, 60)", 60, 10
LETTERS = string.ascii_lowercase


def vowels(prompt: str, text: str) -> float:
    """Share of the letters that are vowels."""
    return sum(letter in "aeiou" for letter in text) / max(len(text), 1)


def ascending(prompt: str, text: str) -> float:
    """Share of neighbors in alphabetical order."""
    return sum(a < b for a, b in itertools.pairwise(text)) / max(len(text) - 1, 1)


def copied(prompt: str, text: str) -> float:
    """Share of the characters that the prompt has."""
    return sum(letter in prompt for letter in text) / max(len(text), 1)


def alternating(prompt: str, text: str) -> float:
    """1 where letters and digits alternate at least half of the time, else 0."""
    turns = sum(a.isalpha() != b.isalpha() for a, b in itertools.pairwise(text))
    return float(len(text) > 3 and turns >= 0.5 * (len(text) - 1))


_SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64}
WORLDS: dict[str, tuple[Callable[[str, str], float], PreTrainedConfig]] = {
    "vowels": (
        vowels,
        LlamaConfig(num_hidden_layers=2, intermediate_size=128, num_key_value_heads=4, **_SHAPE),
    ),
    "ascending": (
        ascending,
        Qwen2Config(num_hidden_layers=3, intermediate_size=128, num_key_value_heads=2, **_SHAPE),
    ),
    "copied": (copied, GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64)),
    "alternating": (
        alternating,
        GPTNeoXConfig(num_hidden_layers=2, intermediate_size=256, **_SHAPE),
    ),
}


@dataclass(frozen=True)
class Cell:
    """Settings of one run; `control` is off, on, learning-rate feedback or floor 0.02."""

    world: str
    learning_rate: float
    control: str = "on"
    rollouts: int = 256
    updates: int = 1
    lora: bool = False
    iterations: int = 1
    optimizer: str = "adamw_torch"
    scheduler: str = "constant"
    seed: int = 0

    @property
    def key(self) -> str:
        """Name in the result file."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


def cells() -> Iterator[Cell]:
    """All cells, the map of two worlds first."""
    controls = ("off", "on", "learning-rate feedback")
    rates = {"vowels": (3e-4, 1e-3, 3e-3, 6e-3), "countdown": (1e-4, 3e-4, 1e-3, 3e-3)}
    for world, control in itertools.product(rates, controls):
        for rate in rates[world]:
            yield Cell(world, rate, control)
            yield Cell(world, rate, control, rollouts=64)
            yield Cell(world, rate, control, rollouts=1024, updates=4)
            yield Cell(world, rate, control, lora=True)
        yield Cell(world, 10 * rates[world][2], control, optimizer="sgd")
    for control, rate in itertools.product(controls, (1e-3, 3e-3, 6e-3)):
        yield Cell("vowels", rate, control, lora=True, iterations=2)
    for control, seed in itertools.product(controls, (1, 2)):
        for rate in (1e-3, 3e-3, 6e-3):
            yield Cell("vowels", rate, control, seed=seed)
    for world in ("ascending", "copied", "alternating"):
        for rate, control, seed in itertools.product((3e-4, 1e-3, 3e-3), controls, (0, 1, 2)):
            yield Cell(world, rate, control, seed=seed)
    # added when the cells above were there: LoRA moves nothing at their rates; what the floor does
    for rate, control in itertools.product((3e-2, 1e-1), controls):
        yield Cell("vowels", rate, control, lora=True)
        yield Cell("vowels", rate, control, lora=True, iterations=2)
    for seed in (0, 1, 2):
        for world, rate in (("vowels", 3e-3), ("vowels", 6e-3), ("countdown", 3e-4)):
            yield Cell(world, rate, "floor 0.02", seed=seed)
        yield Cell("countdown", 3e-4, seed=seed)
    # for the warnings at a run's start: small batches, and learning rates that decay to 0
    for seed, control, rate in itertools.product((0, 1, 2), ("off", "on"), (1e-3, 3e-3)):
        for rollouts in (8, 16, 32):
            yield Cell("vowels", rate, control, rollouts=rollouts, seed=seed)
        yield Cell("vowels", rate, control, scheduler="linear", seed=seed)


def run(cell: Cell) -> dict[str, Any]:
    """Train one cell and measure it."""
    control = ControlSettings(
        rule=None if cell.control == "off" else "tilt",
        schedule=None if cell.control == "off" else SCHEDULE,
        feedback=FeedbackSettings(learning_rate=cell.control == "learning-rate feedback"),
        selection=SelectionSettings(floor=0.02 if cell.control == "floor 0.02" else 0.0),
    )
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output=Path(folder),
            seed=cell.seed,
            steps=STEPS,
            prompts=cell.rollouts // 8,
            updates=cell.updates,
            learning_rate=cell.learning_rate,
            max_completion_length=16 if cell.world in WORLDS else 24,
            save_every=0,
            control=control,
            trainer={
                "optim": cell.optimizer,
                "num_iterations": cell.iterations,
                "lr_scheduler_type": cell.scheduler,
            },
        )
        model, tokenizer, task, problems = _world(cell, config)
        if cell.lora:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
        trainer = build_trainer(config, model, tokenizer, task, problems, chat=False)
        begin = time.perf_counter()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", EntropyControlWarning)
            trainer.train()
    log = [line for line in trainer.state.log_history if "entropy/measured" in line]
    entropy = np.array([float(line["entropy/measured"]) for line in log])
    found: dict[str, Any] = {
        "initial": entropy[0],
        "entropy_end": entropy[-5:].mean(),
        "reward_end": float(np.mean([float(line["reward"]) for line in log[-5:]])),
        "seconds": time.perf_counter() - begin,
    }
    if cell.control != "off":
        late = [line for line in log if float(line["step"]) > BURN_IN]
        gap = np.array([float(x["entropy/measured"]) - float(x["entropy/target"]) for x in late])
        found |= {
            "error": np.abs(gap).mean(),
            "bias": gap.mean(),
            "largest": np.abs(gap).max(),
            "saturated": float(np.mean([float(line["entropy/saturated"]) for line in late])),
            "kept": float(np.mean([float(line["entropy/kept_fraction"]) for line in late])),
            "least_learning_rate_factor": min(
                float(line.get("entropy/learning_rate_factor", 1.0)) for line in log
            ),
        }
    found = {name: round(float(value), 5) for name, value in found.items()}
    texts = [str(w.message) for w in heard if issubclass(w.category, EntropyControlWarning)]
    return {**asdict(cell), **found, "warnings": texts}


def _world(cell: Cell, config: TrainConfig) -> tuple[Any, Any, Any, list[Problem]]:
    """Model, tokenizer, task and problems of a world."""
    countdown = get_task("countdown")
    if cell.world == "countdown":
        model, tokenizer = load_model(prepare_model(config), dtype=config.dtype)
        return model, tokenizer, countdown, stored_problems(countdown, "train", 3000)
    reward, shape = WORLDS[cell.world]
    tokenizer = build_tokenizer()
    shape.vocab_size = len(tokenizer)
    shape.pad_token_id, shape.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    shape.bos_token_id = None
    torch.manual_seed(cell.seed)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=0, pad_token_id=shape.pad_token_id, eos_token_id=shape.eos_token_id
    )
    draw = random.Random(cell.seed)
    prompts = ["".join(draw.choices(LETTERS, k=6)) for _ in range(3000)]

    class World:
        """A task of one reward function."""

        name = cell.world

        def verify(self, problem: Problem, text: str) -> float:
            return reward(problem.prompt, text)

    problems = [Problem(str(i), prompt, prompt, "") for i, prompt in enumerate(prompts)]
    return model, tokenizer, World(), problems


def main() -> None:
    """Run what is missing; what is there stays, so that the command can be stopped at will."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="one world alone")
    parser.add_argument("--output", type=Path, default=RESULTS, help="result file")
    parser.add_argument("--share", default="0/1", help="i/n: every n-th cell from the i-th on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, step = map(int, options.share.split("/"))
    wanted = [cell for cell in cells() if options.only in (None, cell.world)]
    for cell in track(list(dict.fromkeys(wanted))[first::step], "cells"):
        if cell.key not in _known(options.output):
            found = run(cell)
            with FileLock(options.output.with_suffix(".lock")):
                cells_there = {**_known(options.output), cell.key: found}
                result = {
                    "command": "python benchmarks/reach.py",
                    "schedule": SCHEDULE,
                    "steps": STEPS,
                    "cells": cells_there,
                }
                write_atomically(options.output, json.dumps(result, indent=1) + "\n")


def _known(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["cells"] if path.exists() else {}


if __name__ == "__main__":
    main()
