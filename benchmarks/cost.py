"""What control costs: processor time of a step and peak memory, as ratios to plain TRL.

    python benchmarks/cost.py --rounds 5                    # write benchmarks/results/cost.json
    python -m benchmarks.tables benchmarks/results/cost.json

Two vocabularies: the demo's 99 tokens, with its warm-started model and task, and 49,152, with a
Llama from scratch that is rewarded for even token numbers. One thread, one run at a time, each in a
process of its own, whose processor time is counted: what else runs on the machine counts little.
Cases take turns, round after round; a round's median step is divided by plain TRL's of the same
vocabulary, updates and round.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from entrocraft.lab.models import load_model
from entrocraft.lab.tasks import Problem, get_task
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.run import prepare_model
from entrocraft.lab.training.trainer import build_trainer
from entrocraft.settings import ControlSettings
from entrocraft.storage import write_atomically

RESULTS = Path(__file__).parent / "results" / "cost.json"
SMALL, LARGE = 99, 49_152
PLAIN = "plain TRL"


class NoControl(ControlSettings):
    """TRL alone: no controller, nothing observed."""

    def build(self, seed: int) -> Any:
        return None


def _tilt(**settings: Any) -> ControlSettings:
    return ControlSettings(schedule="linear(initial, 0.6*initial, 150)", **settings)


ONE_UPDATE = {
    PLAIN: NoControl(),
    "observed": ControlSettings(rule=None),
    "tilt (default): all measured again": _tilt(),
    "a quarter measured again": _tilt(remeasure=0.25),
    "not measured again": _tilt(remeasure=0.0),
    "rejected rollouts dropped, not measured again": _tilt(remeasure=0.0, drop_rejected=True),
}
FOUR_UPDATES = {
    PLAIN: NoControl(),
    "tilt (default): measured in the loss": _tilt(),
    "rejected rollouts dropped": _tilt(drop_rejected=True),
}


@dataclass(frozen=True)
class Case:
    """One method on one kind of work."""

    vocabulary: int
    updates: int
    method: str

    @property
    def rollouts(self) -> int:
        """Of an optimizer step."""
        return 32 if self.vocabulary == LARGE else 256

    @property
    def control(self) -> ControlSettings:
        """Its settings."""
        return (ONE_UPDATE if self.updates == 1 else FOUR_UPDATES)[self.method]


CASES = [
    Case(vocabulary, updates, method)
    for vocabulary in (SMALL, LARGE)
    for updates, methods in ((1, ONE_UPDATE), (4, FOUR_UPDATES))
    for method in methods
]


class StepClock(TrainerCallback):
    """Processor time at the end of each optimizer step, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.process_time())


def measure(case: Case, seed: int) -> dict[str, float]:
    """Median time of a rollout batch's steps (rollouts, rewards, control, update), and more."""
    large = case.vocabulary == LARGE
    warm_up, batches = (1, 3) if large else (3, 12 if case.updates == 1 else 5)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output=Path(folder),
            seed=seed,
            steps=(warm_up + batches) * case.updates,
            prompts=case.rollouts // 8 * case.updates,
            updates=case.updates,
            micro_batch=min(case.rollouts, 64),
            max_completion_length=16 if large else 24,
            save_every=0,
            control=case.control,
        )
        trainer = build_trainer(config, *_work(case.vocabulary, config), chat=False)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
    ends = clock.ends[case.updates - 1 :: case.updates]
    taken = [after - before for before, after in itertools.pairwise(ends)][warm_up - 1 :]
    kept = [row.get("entropy/kept_fraction", 1.0) for row in trainer.state.log_history[:-1]]
    return {
        "seconds": statistics.median(taken),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,  # MiB
        "kept": statistics.mean(map(float, kept)),
    }


def _work(vocabulary: int, config: TrainConfig) -> tuple[Any, Any, Any, list[Problem]]:
    """Model, tokenizer, task and problems."""
    if vocabulary == SMALL:
        model, tokenizer = load_model(prepare_model(config), dtype=config.dtype)
        task = get_task("countdown")
        return model, tokenizer, task, stored_problems(task, "train", config.task.train_size)
    # one character for each token, in the order of their numbers
    tokens = ["<pad>", "<eos>", *(chr(0x20000 + i) for i in range(vocabulary - 2))]
    characters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(config.seed)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=0, pad_token_id=0, eos_token_id=1
    )
    draw = random.Random(config.seed)
    prompts = ["".join(draw.choices(tokens[2:], k=6)) for _ in range(1000)]

    class Even:
        """Share of even tokens."""

        name = "even"

        def verify(self, problem: Problem, text: str) -> float:
            return sum(ord(token) % 2 == 0 for token in text) / max(len(text), 1)

    problems = [Problem(str(i), prompt, prompt, "") for i, prompt in enumerate(prompts)]
    return model, tokenizer, Even(), problems


def _child(pipe: Any, case: Case, seed: int) -> None:
    torch.set_num_threads(1)
    pipe.send(measure(case, seed))


def in_a_process(case: Case, seed: int) -> dict[str, float]:
    """Measure in a process that starts with this one's imports; its peak memory is its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, case, seed))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit(f"{case} ended without a result; see above") from None
    finally:
        process.join()


def main() -> None:
    """Run all cases, round after round; whole rounds are kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of every case")
    parser.add_argument("--output", type=Path, default=RESULTS, help="result file")
    options = parser.parse_args()
    taken: dict[Case, list[dict[str, float]]] = {case: [] for case in CASES}
    for turn in range(options.rounds):
        for case in CASES:
            taken[case].append(found := in_a_process(case, turn))
            print(
                f"round {turn + 1}/{options.rounds}  {case}  {found['seconds']:.2f} s", flush=True
            )
        rows = [_row(case, taken) for case in CASES]
        command = f"python benchmarks/cost.py --rounds {turn + 1}"
        result = {"command": command, "plain": PLAIN, "cases": rows}
        write_atomically(options.output, json.dumps(result, indent=1) + "\n")


def _row(case: Case, taken: dict[Case, list[dict[str, float]]]) -> dict[str, Any]:
    plain = taken[Case(case.vocabulary, case.updates, PLAIN)]

    def ratios(name: str) -> list[float]:
        pairs = zip(taken[case], plain, strict=True)
        return [round(own[name] / other[name], 4) for own, other in pairs]

    return {
        **vars(case),
        "rollouts": case.rollouts,
        "seconds": [round(found["seconds"], 4) for found in taken[case]],
        "time_ratios": ratios("seconds"),
        "memory_ratios": ratios("peak_memory"),
        "kept": [round(found["kept"], 3) for found in taken[case]],
    }


if __name__ == "__main__":
    main()
