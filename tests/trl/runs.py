"""Tiny TRL runs shared by the tests of the TRL adapter; also a script, for tests of processes.

python -m tests.trl.runs train OUTPUT_DIR [--hold-at STEP] [--resume]
torchrun --nproc_per_node 2 -m tests.trl.runs ranks OUTPUT_DIR
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    TrainerCallback,
)

from entrocraft import EntropyController, EntropyControlWarning
from entrocraft.methods.entropic import EntroPIC
from entrocraft.steering import give_command
from entrocraft.trl import EntropyControlMixin, GRPOTrainer, RLOOTrainer, Steering


def _characters() -> PreTrainedTokenizerFast:
    names = ["<pad>", "<eos>", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


TOKENIZER = _characters()
VOCABULARY = len(TOKENIZER)
PROMPTS = Dataset.from_dict({"prompt": [f"{a}*{b}=" for a in range(1, 13) for b in range(1, 13)]})
PLAIN = {"grpo": trl.GRPOTrainer, "rloo": trl.RLOOTrainer}
CONTROLLED = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}
CONFIGS = {"grpo": trl.GRPOConfig, "rloo": trl.RLOOConfig}

ALIGNED: dict[str, Any] = {}
"""Generation and update in step: TRL's GRPO makes no pass for old log-probs."""

REUSED = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 2,
    "num_iterations": 2,
}
"""16 rollouts in 4 micro-batches, used twice: 4 optimizer steps for each generation batch."""

TIMES = ("time", "per_second")


def digits(completions: list[str], **columns: Any) -> list[float]:
    """Reward that differs inside nearly every group: a checksum of the text."""
    return [sum(map(ord, text)) % 5 / 4 for text in completions]


def tiny_model(
    config: Any = None, *, sharpness: float = 15.0, ends: bool = False, **changes: Any
) -> Any:
    """Untrained model, far from uniform: entropy near 3 nats; with `ends` many completions end."""
    if config is None:
        config = Qwen3Config(**tiny_shape(**changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight.mul_(sharpness)
        if ends:  # the end becomes as likely as a likely token
            weight[TOKENIZER.eos_token_id] = weight[60]
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, pad_token_id=0, eos_token_id=1
    )
    return model


def tiny_shape(**changes: Any) -> dict[str, Any]:
    """Arguments that the configs of most architectures share."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    } | changes


def saved(model: Any, path: Path) -> Any:
    """Model that knows where it lies on disk: TRL loads its reference model from there."""
    model.save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path)


def make_trainer(kind: str = "grpo", cls: type | None = None, **settings: Any) -> Any:
    """Make a trainer; `settings` not named here go into TRL's config."""
    own = {"reward_funcs": digits, "train_dataset": PROMPTS, "processing_class": TOKENIZER}
    for name in ("model", "entropy_control", "callbacks", "eval_dataset", "peft_config", *own):
        if name in settings:
            own[name] = settings.pop(name)
    own.setdefault("model", None)
    if own["model"] is None:
        own["model"] = tiny_model()
    config = {
        "output_dir": settings.pop("output_dir", None) or tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "beta": 0.0,
    } | settings
    # transformers 4 leaves the precision of one trainer in the environment of the next
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        arguments = CONFIGS[kind](**config)
    return (cls or CONTROLLED[kind])(args=arguments, **own)


def rows(trainer: Any, *, times: bool = False) -> list[dict[str, Any]]:
    """Logged rows of the optimizer steps, without wall times."""
    kept = [row for row in trainer.state.log_history if "loss" in row]
    if times:
        return kept
    return [{k: v for k, v in row.items() if not any(t in k for t in TIMES)} for row in kept]


def generation_batch(trainer: Any) -> dict[str, Any]:
    """One generation batch as TRL makes it in training, decided on but not yet shuffled."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


class Witness(EntropyControlMixin):
    """Keeps what passes the adapter: put it before one of TRL's trainers."""

    _sensitive = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.batches: list[dict[str, Any]] = []
        self.micro_batches: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)
        if self._in_loss is not None:
            self._score, self._signals.score = self._signals.score, self._scored

    def _decide_on(self, output: dict[str, Any]) -> None:
        batch = {k: v.clone() for k, v in output.items() if isinstance(v, torch.Tensor)}
        batch["weights_before"] = {k: v.clone() for k, v in self.model.state_dict().items()}
        batch["sensitivity"] = torch.zeros(batch["completion_mask"].shape)
        self.batches.append(batch)
        super()._decide_on(output)

    def _decided(self, batch: Any, decision: Any) -> None:
        super()._decided(batch, decision)
        seen, signals = self.batches[-1], batch.signals
        if signals.sensitivity is None and self._sensitive:
            signals = replace(signals, sensitivity=seen["sensitivity"])
        seen |= {"signals": signals, "decided": batch.output["advantages"].clone()}

    def _scored(self, *args: Any) -> Any:
        """Signals of a micro-batch; the trainer itself does not keep its sensitivity."""
        out, sensitivity = self._score(*args)
        self._sensitive = sensitivity is not None
        if sensitivity is not None and torch.is_grad_enabled():
            self.batches[-1]["sensitivity"][self._rows, : sensitivity.shape[1]] = sensitivity
        return out, sensitivity

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if self.model.training:
            names = ("prompt_ids", "completion_ids", "advantages")
            self._rows = inputs.get("entrocraft_row")
            self.micro_batches.append({name: inputs[name].clone() for name in names})
        return super()._compute_loss(model, inputs)


class WitnessGRPO(Witness, trl.GRPOTrainer):
    """GRPO that keeps its batches."""


class WitnessRLOO(Witness, trl.RLOOTrainer):
    """RLOO that keeps its batches."""


WITNESSES = {"grpo": WitnessGRPO, "rloo": WitnessRLOO}


class Recording(EntropyController):
    """Controller that keeps what it was asked and what it answered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[tuple[Any, Any]] = []
        self.answered: list[Any] = []

    def decide(self, batch: Any, step: Any = None) -> Any:
        self.asked.append((batch, step))
        self.answered.append(super().decide(batch, step))
        return self.answered[-1]

    def finish(self, stats: Any, step: Any, chosen: Any, weights: Any) -> Any:
        self.asked.append((stats, step))
        self.answered.append(super().finish(stats, step, chosen, weights))
        return self.answered[-1]


# ---------------------------------------------------------------- as a script


class _Journal(TrainerCallback):
    """Appends each logged row to a file, as it is logged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            row = {k: v for k, v in logs.items() if not any(t in k for t in TIMES)}
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step} | row) + "\n")


def train(output_dir: Path, hold_at: int | None, resume: bool) -> None:
    """Train for 8 steps, saving every 3; at step `hold_at` wait for the end in the reward."""
    output_dir.mkdir(exist_ok=True)

    def reward(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        while trainer_state.global_step == hold_at:
            (output_dir / "holding").touch()
            time.sleep(0.05)
        return digits(completions)

    trainer = make_trainer(
        output_dir=str(output_dir),
        reward_funcs=reward,
        entropy_control="linear(initial, 2.5, 8)",
        callbacks=[_Journal(output_dir / "journal.jsonl")],
        max_steps=8,
        save_strategy="steps",
        save_steps=3,
    )
    trainer.train(resume_from_checkpoint=resume)


def ranks(output_dir: Path) -> None:
    """Train GRPO and RLOO on every rank and write down what each rank saw."""
    for kind, witness in WITNESSES.items():
        control = Recording("linear(initial, 2.5, 4)")
        trainer = make_trainer(
            kind,
            witness,
            entropy_control=control,
            per_device_train_batch_size=5,  # the group in the middle spans both ranks
            steps_per_generation=2,
            gradient_accumulation_steps=2,
            output_dir=str(output_dir / "run"),
        )
        trainer.train()
        seen = {
            "processes": trainer.accelerator.num_processes,
            "weights": [answer.weights.tolist() for answer in control.answered],
            "metrics": [answer.metrics for answer in control.answered],
            "advantages": [answer.advantages.tolist() for answer in control.answered],
            "groups": [stats.group.tolist() for stats, _ in control.asked],
            "rewards": [stats.rewards.tolist() for stats, _ in control.asked],
            "before": [batch["advantages"].tolist() for batch in trainer.batches],
            "local": [batch["decided"].tolist() for batch in trainer.batches],
            "entropy": [
                [
                    float((batch["signals"].entropies * batch["completion_mask"]).double().sum()),
                    int(batch["completion_mask"].sum()),
                ]
                for batch in trainer.batches
            ],
            "model": float(sum(p.double().abs().sum() for p in trainer.model.parameters())),
            "rows": rows(trainer),
        }
        rank = trainer.accelerator.process_index
        (output_dir / f"{kind}-{rank}.json").write_text(json.dumps(seen))


class _Watched(EntroPIC):
    """EntroPIC that keeps each micro-batch's entropy on this rank, and its answer."""

    name = "watched"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entropies: list[list[float]] = []
        self.alphas: list[float] = []

    def reweigh(self, tokens: Any) -> torch.Tensor:
        own = tokens.entropies[tokens.mask].double()
        self.entropies.append([float(own.sum()), len(own)])
        advantages = super().reweigh(tokens)
        self.alphas.append(self.report()["entropy/alpha"])
        return advantages


def token_ranks(output_dir: Path) -> None:
    """Train with a method that weighs tokens and sums up an error, on every rank."""
    method = _Watched(2.5, kp=0.4, ki=0.3)
    trainer = make_trainer(
        entropy_control=method,
        per_device_train_batch_size=5,
        steps_per_generation=2,
        gradient_accumulation_steps=2,
        output_dir=str(output_dir / "run"),
    )
    trainer.train()
    seen = {
        "entropies": method.entropies,
        "alphas": method.alphas,
        "state": method.state_dict(),
        "model": float(sum(p.double().abs().sum() for p in trainer.model.parameters())),
    }
    rank = trainer.accelerator.process_index
    (output_dir / f"tokens-{rank}.json").write_text(json.dumps(seen))


def stopped_ranks(output_dir: Path) -> None:
    """Train until rank 1 cannot score one micro-batch of the third step."""
    model, passes = tiny_model(), []

    def spoil(module: Any, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            passes.append(len(output.last_hidden_state))
            if len(passes) == 5 and trainer.accelerator.process_index == 1:
                output.last_hidden_state[1] = torch.nan

    model.base_model.register_forward_hook(spoil)
    control = Recording("linear(initial, 2.5, 4)", remeasure=0)
    trainer = make_trainer(
        model=model,
        entropy_control=control,
        per_device_train_batch_size=5,
        steps_per_generation=2,
        gradient_accumulation_steps=2,
        output_dir=str(output_dir / "run"),
    )
    try:
        trainer.train()
        error = ""
    except ValueError as found:
        error = str(found)
    seen = {
        "error": error,
        "passes": passes,
        "step": trainer.state.global_step,
        "state": control.state_dict(),
        "model": float(sum(p.double().abs().sum() for p in trainer.model.parameters())),
    }
    rank = trainer.accelerator.process_index
    (output_dir / f"stopped-{rank}.json").write_text(json.dumps(seen))


def dropped_ranks(output_dir: Path) -> None:
    """Train with all rollouts in the update and with those alone that carry a gradient."""
    for name in ("extra_pass", "drop_rejected"):
        control = EntropyController("linear(initial, 2.5, 4)", remeasure=0, **{name: True})
        model, passes = tiny_model(ends=True), []

        def count(module: Any, inputs: Any, output: Any, passes: list = passes) -> None:
            if torch.is_grad_enabled():
                passes.append(len(output.last_hidden_state))

        model.base_model.register_forward_hook(count)
        trainer = make_trainer(
            model=model,
            entropy_control=control,
            per_device_train_batch_size=8,
            steps_per_generation=2,
            gradient_accumulation_steps=2,
            output_dir=str(output_dir / "run"),
        )
        trainer.train()
        seen = {
            "passes": passes,
            "model": float(sum(p.double().abs().sum() for p in trainer.model.parameters())),
            "rejected": trainer.last_decision.weights.tolist().count(0.0),
        }
        rank = trainer.accelerator.process_index
        (output_dir / f"{name}-{rank}.json").write_text(json.dumps(seen))


class _Commands(TrainerCallback):
    """Gives the commands of a run, {step: (action, schedule)}, beside rank 0's output alone."""

    def __init__(self, directory: Path, commands: dict[int, tuple[str, str | None]]) -> None:
        self.directory, self.commands = directory, commands

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the command of this step."""
        if state.is_world_process_zero and state.global_step in self.commands:
            give_command(self.directory, *self.commands[state.global_step])


def steered_ranks(output_dir: Path) -> None:
    """Train under commands that rank 1 cannot read by itself, until one stops the run."""
    control = Recording("constant(2.5)")
    trainer = make_trainer(
        entropy_control=control,
        per_device_train_batch_size=5,
        steps_per_generation=2,
        gradient_accumulation_steps=2,
        output_dir=str(output_dir / "run"),
        max_steps=6,
    )
    rank = trainer.accelerator.process_index
    directory = output_dir / f"steered{rank}"
    trainer.add_callback(Steering(trainer, directory))
    commands = {1: ("run", "constant(2.25)"), 2: ("run", "constant(99)"), 3: ("stop", None)}
    trainer.add_callback(_Commands(directory, commands))
    trainer.train()
    seen = {
        "targets": [answer.metrics["entropy/target"] for answer in control.answered],
        "state": control.state_dict(),
        "step": trainer.state.global_step,
        "files": sorted(path.name for path in directory.glob("*")),
        "model": float(sum(p.double().abs().sum() for p in trainer.model.parameters())),
    }
    (output_dir / f"steered-{rank}.json").write_text(json.dumps(seen))


def main() -> None:
    """Run as a script."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", EntropyControlWarning)
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["train", "ranks"])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--hold-at", type=int)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    if options.what == "ranks":
        ranks(options.output_dir)
        token_ranks(options.output_dir)
        stopped_ranks(options.output_dir)
        dropped_ranks(options.output_dir)
        steered_ranks(options.output_dir)
    else:
        train(options.output_dir, options.hold_at, options.resume)


if __name__ == "__main__":
    sys.exit(main())
