"""TRL's own options, set by an entropy method."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib.metadata import version
from typing import Any

from entrocraft.method import Method

__all__ = ["apply_settings", "check_loss", "with_options"]


def with_options(
    trainer_class: type, args: tuple, kwargs: dict[str, Any], method: Any
) -> tuple[tuple, dict[str, Any]]:
    """Return a trainer's arguments with the method's `trainer_options` in a copy of its config.

    Raises:
        ValueError: an option that this trainer or this TRL does not have, or that the user has set
            to something else.
    """
    options = method.trainer_options if isinstance(method, Method) else {}
    if not options:
        return args, kwargs
    bound = inspect.signature(trainer_class).bind_partial(*args, **kwargs)
    config = bound.arguments.get("args", bound.arguments.get("kwargs", {}).get("args"))
    if config is None:
        raise ValueError(
            f"the method {method.name!r} sets options of the trainer; give it a config, e.g. "
            "args=GRPOConfig(...)"
        )
    changed = _changed(config, method.name, options)
    if "args" in kwargs:
        return args, {**kwargs, "args": changed}
    return tuple(changed if value is config else value for value in args), kwargs


def _changed(config: Any, method: str, options: Mapping[str, Any]) -> Any:
    defaults = {
        field.name: field.default if field.default is not MISSING else None
        for field in fields(config)
    }
    changed = copy.copy(config)
    for name, value in options.items():
        if name not in defaults:
            raise ValueError(
                f"the method {method!r} works through the option {name!r}, which "
                f"{type(config).__name__} of TRL {version('trl')} does not have; use GRPO, and the "
                "newest TRL"
            )
        found = getattr(config, name)
        if found != defaults[name] and found != value:
            raise ValueError(
                f"the method {method!r} sets {name}={value!r}, and your config sets it to "
                f"{found!r}; leave it out there, or give the method its own option"
            )
        setattr(changed, name, value)
    return changed


def check_loss(trainer: Any, method: Method) -> None:
    """Check that the method fits the trainer's loss; one without `loss_type` is not asked.

    Raises:
        ValueError: it does not; the message names the losses that it fits.
    """
    losses, loss = method.losses, getattr(trainer, "loss_type", None)
    if losses is None or loss is None or loss in losses:
        return
    raise ValueError(
        f"the method {method.name!r} does not fit loss_type={loss!r}, which makes something else "
        f"of importance ratios or their bounds; it fits {', '.join(map(repr, losses))}"
    )


def apply_settings(trainer: Any, settings: Mapping[str, Any]) -> None:
    """Set options of a trainer at work, in its config and where it has read them from there."""
    for name, value in settings.items():
        if hasattr(trainer.args, name):
            setattr(trainer.args, name, value)
        if hasattr(trainer, name):
            setattr(trainer, name, value)
