"""The method's state inside the trainer's checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from entrocraft.method import EntropyControlWarning, Method

__all__ = ["EntropyControlState"]


class EntropyControlState(TrainerCallback, ExportableState):
    """Writes the method's state into `trainer_state.json` and takes it back when a run resumes."""

    method: Method
    _fresh: dict[str, Any]

    @classmethod
    def of(cls, method: Method) -> EntropyControlState:
        """Bind a method to a callback.

        The method is an attribute of the callback's class, since a trainer with
        `restore_callback_states_from_checkpoint` makes callbacks anew by calling their class.
        """
        return type(cls.__name__, (cls,), {"method": method, "_fresh": method.state_dict()})()

    def state(self) -> dict[str, Any]:
        """Return what the trainer writes under `stateful_callbacks`."""
        return {"args": {}, "attributes": {"method_state": self.method.state_dict()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the state back if the run resumes, and check the schedule against the whole run."""
        name, step = type(self).__name__, state.global_step
        saved = state.stateful_callbacks.get(name)
        if step == 0:
            # a second train() from the start remembers nothing of the first
            self.method.load_state_dict(self._fresh)
        elif saved is None:
            _warn(
                f"the checkpoint at step {step} was written without entropy control; control "
                "starts afresh here, and levels relative to the initial entropy are anchored here"
            )
        else:
            attributes = saved["attributes"]
            # entrocraft 0.1.0 called it memory
            key = "method_state" if "method_state" in attributes else "memory"
            self.method.load_state_dict(attributes[key])
        if batches_before(args, step) % 1:
            _warn(
                f"step {step} lies in the middle of a rollout batch: TRL keeps no rollouts in "
                "checkpoints and makes new ones, so the run goes on, but not as the uninterrupted "
                "one; for exact resumption let save_steps be a multiple of the optimizer steps per "
                "rollout batch"
            )
        # the trainer expects an entry of every exporting callback when it saves
        state.stateful_callbacks.setdefault(name, self.state())
        self.method.prepare(steps=state.max_steps)
        for text in self.method.start_warnings(state.max_steps, *rollouts_and_decay(args)):
            _warn(text)


def batches_before(args: Any, step: int) -> float:
    """Rollout batches that are used up after some optimizer steps; whole where the next begins."""
    micro_batches = args.steps_per_generation * args.num_iterations
    return step * args.gradient_accumulation_steps / micro_batches


def rollouts_and_decay(args: Any) -> tuple[int, str | None]:
    """Rollouts of an optimizer step, and the setting by which the learning rate decays."""
    rollouts = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    steady = kind in ("constant", "constant_with_warmup")
    return rollouts, None if steady else f"lr_scheduler_type={kind!r}"


def _warn(text: str) -> None:
    warnings.warn(text, EntropyControlWarning, stacklevel=3)
