"""TRL's own options, set by an entropy method."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib.metadata import version
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from entrocraft.method import EntropyControlWarning, Method

__all__ = ["DecisionCallback", "apply_settings", "check_loss", "with_options"]


def with_options(
    args: tuple, kwargs: dict[str, Any], method: Method
) -> tuple[tuple, dict[str, Any]]:
    """Return a trainer's arguments with the method's `trainer_options` in a copy of its config.

    Raises:
        ValueError: an option that this trainer or this TRL does not have, or that the user has set
            to something else.
    """
    options = method.trainer_options
    if not options:
        return args, kwargs
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, TrainingArguments)]
    if not given:
        raise ValueError(
            f"the method {method.name!r} sets options of the trainer; give it a config, e.g. "
            "args=GRPOConfig(...)"
        )
    config, changed = given[0], copy.copy(given[0])
    defaults = {
        field.name: None if field.default is MISSING else field.default for field in fields(config)
    }
    for name, value in options.items():
        if name not in defaults:
            raise ValueError(
                f"the method {method.name!r} works through the option {name!r}, which "
                f"{type(config).__name__} of TRL {version('trl')} does not have; use GRPO, and the "
                "newest TRL"
            )
        found = getattr(config, name)
        if found != defaults[name] and found != value:
            raise ValueError(
                f"the method {method.name!r} sets {name}={value!r}, and your config sets it to "
                f"{found!r}; leave it out there, or give the method its own option"
            )
        setattr(changed, name, value)
    replaced = {key: changed if value is config else value for key, value in kwargs.items()}
    return tuple(changed if value is config else value for value in args), replaced


def check_loss(trainer: Any, method: Method) -> None:
    """Check that the method fits the trainer's loss; one without `loss_type` is not asked.

    Raises:
        ValueError: it does not; the message names the losses that it fits.
    """
    losses, loss = method.losses, getattr(trainer, "loss_type", None)
    if losses is None or loss is None or loss in losses:
        return
    raise ValueError(
        f"the method {method.name!r} does not fit loss_type={loss!r}, which treats "
        f"importance ratios or their bounds differently; it fits {', '.join(map(repr, losses))}"
    )


def apply_settings(trainer: Any, settings: Mapping[str, Any]) -> None:
    """Set options of a trainer at work, in its config and where it has read them from there."""
    for name, value in settings.items():
        for owner in (trainer.args, trainer):
            if hasattr(owner, name):
                setattr(owner, name, value)


class DecisionCallback(TrainerCallback):
    """Does what a decision asks of the optimizer and the run.

    A step's learning rate is multiplied by the latest decision's factor, which the trainer's
    scheduler does not see, and a run that is to stop ends after the step.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._scheduled: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Scale the learning rates."""
        groups, decision = self._trainer.optimizer.param_groups, self._trainer.last_decision
        self._scheduled = [group["lr"] for group in groups]
        factor = 1.0 if decision is None else decision.learning_rate_factor
        for group in groups:
            # a product of its own: some optimizers keep the rate in a tensor
            group["lr"] = group["lr"] * factor

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the learning rates."""
        for group, rate in zip(self._trainer.optimizer.param_groups, self._scheduled, strict=True):
            group["lr"] = rate

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run, if it is to stop; a checkpoint is written."""
        decision = self._trainer.last_decision
        if decision is not None and decision.stop is not None:
            warnings.warn(decision.stop, EntropyControlWarning, stacklevel=2)
            control.should_training_stop = control.should_save = True
