"""Checkpoints of the trainer: whether one is whole, and which are kept."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import zipfile
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

__all__ = ["RotationByStep", "StopOnSignal", "by_step", "lacking", "problem_of"]


def by_step(folder: Path) -> dict[int, Path]:
    """Checkpoints in a folder by their optimizer step, rising."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    return dict(sorted((int(path.name[11:]), path) for path in found))


def problem_of(checkpoint: Path) -> str | None:
    """What keeps a checkpoint from being resumed from; None if it is whole.

    A disk that was full, or a machine that stopped, leaves files that are empty or cut.
    """
    if not (checkpoint / "trainer_state.json").is_file():  # the trainer writes it last
        return "it has no trainer_state.json"
    if not any(checkpoint.glob("*.safetensors")) and not any(checkpoint.glob("*model*.bin")):
        return "it has no weights"
    for file in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".safetensors":
                _check_safetensors(file)
            elif file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
                raise ValueError("it is no file of torch.save")
        except (OSError, ValueError, LookupError, TypeError) as error:
            return f"{file.name} is cut or broken ({error})"
    return None


def _check_safetensors(file: Path) -> None:
    """Compare the size with the one that the header asks for; ValueError if it differs."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("its header is not whole")
        header = json.loads(opened.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if file.stat().st_size != 8 + length + max(ends, default=0):
        raise ValueError("its size differs from what its header says")


def lacking(checkpoint: Path) -> list[str]:
    """Parts of the trainer's state without which a run goes on otherwise than uninterrupted."""
    names = {
        "optimizer": "optimizer*",
        "learning-rate scheduler": "scheduler.pt",
        "random generators": "rng_state*.pth",
    }
    return [part for part, name in names.items() if not any(checkpoint.glob(name))]


class RotationByStep(TrainerCallback):
    """Keeps the last checkpoints by step; the trainer itself goes by a clock that may be set back.

    Args:
        limit: checkpoints to keep; None keeps all.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Delete the oldest but for the trainer's best one."""
        if self.limit and state.is_world_process_zero:
            for checkpoint in list(by_step(Path(args.output_dir)).values())[: -self.limit]:
                if str(checkpoint) != str(state.best_model_checkpoint):
                    shutil.rmtree(checkpoint, ignore_errors=True)


class StopOnSignal(TrainerCallback):
    """After a SIGTERM, as batch systems send, saves at the end of the rollout batch and stops.

    Args:
        cycle: optimizer steps of a rollout batch; inside one the trainer cannot resume exactly.
    """

    def __init__(self, cycle: int) -> None:
        self.cycle = cycle
        self.received = False
        self._before: Any = None

    def _receive(self, number: int, frame: Any) -> None:
        self.received = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen for the signal, which Python lets the main thread alone do."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop; all processes at the same step, whichever has the signal first."""
        if state.global_step % self.cycle:
            return
        processes = PartialState()
        if processes.num_processes > 1:
            received = torch.tensor(float(self.received), device=processes.device)
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
            self.received = bool(received)
        if self.received:
            control.should_save = control.should_training_stop = True
