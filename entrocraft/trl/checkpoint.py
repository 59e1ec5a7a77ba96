"""The method's state inside the trainer's checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from entrocraft.method import EntropyControlWarning, Method

__all__ = ["EntropyControlState"]


class EntropyControlState(TrainerCallback, ExportableState):
    """Writes the method's state into `trainer_state.json` and takes it back when a run resumes.

    Made by `EntropyControlState.of(method)`.
    """

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
        """Take the state back if the run resumes, and check the schedule over its whole length."""
        name = type(self).__name__
        saved = state.stateful_callbacks.get(name)
        if state.global_step == 0:
            # a second train() from the start remembers nothing of the first
            self.method.load_state_dict(self._fresh)
        else:
            _warn_in_mid_batch(args, state.global_step)
            if saved is None:
                warnings.warn(
                    f"the checkpoint at step {state.global_step} was written without entropy "
                    "control; control starts afresh here, and levels relative to the "
                    "initial entropy are anchored here",
                    EntropyControlWarning,
                    stacklevel=2,
                )
            else:
                self.method.load_state_dict(_saved_state(saved["attributes"]))
        # the trainer expects an entry of every exporting callback when it saves
        state.stateful_callbacks.setdefault(name, self.state())
        self.method.prepare(steps=state.max_steps)


def _saved_state(attributes: dict[str, Any]) -> dict[str, Any]:
    # entrocraft 0.1.0 called it memory
    return attributes["method_state" if "method_state" in attributes else "memory"]


def _warn_in_mid_batch(args: Any, step: int) -> None:
    """TRL keeps no rollouts in checkpoints: resumed in the middle of a batch it makes a new one."""
    micro_steps = step * args.gradient_accumulation_steps
    if micro_steps % (args.steps_per_generation * args.num_iterations):
        warnings.warn(
            f"step {step} lies in the middle of a rollout batch: the trainer makes new rollouts "
            "there, so the run goes on, but not as the uninterrupted one; for exact resumption let "
            "save_steps be a multiple of the optimizer steps per rollout batch",
            EntropyControlWarning,
            stacklevel=3,
        )
