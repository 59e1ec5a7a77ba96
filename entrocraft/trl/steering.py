"""Steering of a TRL run while it goes: another schedule, pause, stop."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback

from entrocraft.method import EntropyControlWarning
from entrocraft.steering import Command, Steered, read_command, read_steered
from entrocraft.trl.checkpoint import batches_before

__all__ = ["Steering"]


class Steering(TrainerCallback):
    """Trainer callback that lets `entrocraft watch` replace the schedule, pause and stop a run.

        trainer.add_callback(Steering(trainer))

    The main process reads `steer.json` once a rollout batch, and all processes do the same. A
    schedule that cannot be followed is refused and changes nothing. Each change is logged as
    `schedule` with its step and kept in `steered.json`: a run that resumes from an earlier
    checkpoint makes it again at its step, and so does a new run beside whose output the file is
    put.

    Args:
        trainer: that the callback joins.
        directory: of the two files; by default the trainer's `output_dir`.
        interval: seconds between two looks at the file during a pause.
    """

    def __init__(
        self, trainer: Any, directory: str | Path | None = None, interval: float = 0.5
    ) -> None:
        self._trainer = trainer
        self._directory = Path(directory or trainer.args.output_dir)
        self._interval = interval
        self._main = trainer.accelerator.is_main_process
        self._forget()

    @property
    def stopped(self) -> bool:
        """Whether the run was told to stop."""
        return self._action == "stop"

    def _forget(self) -> None:
        self._action, self._number = "run", 0
        self._error: str | None = None
        self._changes: list[tuple[int, str]] = []
        self._due: list[tuple[int, str]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up what an earlier part of the run was told."""
        self._forget()
        [earlier] = broadcast_object_list([read_steered(self._directory) if self._main else None])
        if earlier is not None:
            self._number = earlier.number
            self._changes = [change for change in earlier.changes if change[0] < state.global_step]
            self._due = [change for change in earlier.changes if change[0] >= state.global_step]
        if self._due:
            steps = ", ".join(str(step) for step, _ in self._due)
            self._warn(
                f"the schedule will be changed again at step {steps}, as {self._directory}"
                "/steered.json says; delete the file for a run without these changes"
            )
        self._answer(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before a batch: change the schedule, wait while the run is paused."""
        method, step = self._trainer.entropy_control, state.global_step
        if batches_before(args, step) % 1:
            return
        if method is not None and method.initial is None:
            return  # no schedule can be judged before the first batch
        while self._due and self._due[0][0] <= step:
            self._change(self._due.pop(0)[1], step)
        while True:
            if command := self._new_command():
                self._obey(command, step)
            self._answer(state)
            if self._action != "pause":
                return
            time.sleep(self._interval)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a batch: end the run if it is to stop; a checkpoint is written."""
        if batches_before(args, state.global_step) % 1:
            return
        command = self._new_command()
        if command is not None and command.action == "stop":
            self._number, self._action = command.number, "stop"
        if self.stopped:
            control.should_training_stop = control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that the run is over."""
        self._answer(state, "stopped" if self.stopped else "ended")

    def _new_command(self) -> Command | None:
        """Latest command of the main process's file, if it has not been obeyed yet."""
        found: Any = None
        if self._main:
            try:
                found = read_command(self._directory)
            except ValueError as error:
                found = str(error)
        [found] = broadcast_object_list([found])
        if isinstance(found, str):
            self._refuse(found)
            return None
        return found if found is not None and found.number > self._number else None

    def _obey(self, command: Command, step: int) -> None:
        self._number, self._action, self._error = command.number, command.action, None
        if command.schedule is not None:
            self._change(command.schedule, step)

    def _change(self, schedule: str, step: int) -> None:
        method = self._trainer.entropy_control
        if method is None:
            self._refuse("this run has no entropy control, and so no schedule to replace")
            return
        try:
            method.replace_schedule(schedule)
        except ValueError as error:
            self._refuse(str(error))
            return
        text = repr(method.schedule)
        self._changes.append((step, text))
        # not TRL's own log, which would average and print what belongs to the next step
        logs: dict[str, Any] = {"schedule": text}
        Trainer.log(self._trainer, logs)

    def _refuse(self, error: str) -> None:
        if error != self._error:
            self._warn(f"refused: {error}")
        self._error = error

    def _warn(self, text: str) -> None:
        if self._main:
            warnings.warn(text, EntropyControlWarning, stacklevel=3)

    def _answer(self, state: Any, now: str | None = None) -> None:
        """Write `steered.json`."""
        if not self._main:
            return
        method = self._trainer.entropy_control
        Steered(
            number=self._number,
            state=now or ("paused" if self._action == "pause" else "running"),
            step=state.global_step,
            steps=state.max_steps,
            schedule=None if method is None else repr(method.schedule),
            initial=None if method is None else method.initial,
            error=self._error,
            # those still due are not lost if the run is killed before
            changes=(*self._changes, *self._due),
        ).write(self._directory)
