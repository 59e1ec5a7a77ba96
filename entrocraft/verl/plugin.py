"""The plug-in: import hooks that add entropy control to verl's modules."""

from __future__ import annotations

import logging
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import wrapt
from packaging.specifiers import SpecifierSet

__all__ = ["MODES", "SUPPORTED", "install", "trainer_name"]

SUPPORTED = ">=0.9,<0.11"
"""Versions of verl that the plug-in knows."""

MODES = ("sync", "colocate_async", "separate_async")
"""verl's V1 trainers, each of which has a controlled one."""

logger = logging.getLogger("entrocraft.verl")


def trainer_name(mode: str) -> str:
    """Name under which the controlled trainer of a mode is registered with verl."""
    return f"entrocraft_{mode}"


def install() -> None:
    """Register the trainers once verl's are imported, and extend the engine once it is.

    Nothing of verl is imported here, so that processes that need neither pay nothing.

    Raises:
        RuntimeError: a verl that the plug-in does not know; also logged, as verl swallows what a
            plug-in raises.
    """
    try:
        found = version("verl")
        known = SpecifierSet(SUPPORTED).contains(found, prereleases=True)
    except PackageNotFoundError:
        found, known = "of unknown version", False
    if not known:
        text = (
            f"verl {found} is installed, entrocraft knows verl {SUPPORTED}; install one of these "
            f"(pip install 'verl{SUPPORTED}'), or set VERL_USE_EXTERNAL_PLUGINS=none to run verl "
            "without entropy control"
        )
        logger.error("no entropy control: %s", text)
        raise RuntimeError(text)
    wrapt.register_post_import_hook(_value_heads, "verl.models.transformers.monkey_patch")
    wrapt.register_post_import_hook(_trainers, "verl.trainer.ppo.v1")
    wrapt.register_post_import_hook(_engine, "verl.workers.engine.fsdp.transformer_impl")


def _value_heads(module: Any) -> None:
    """Let verl patch TRL's value heads only where TRL still has them.

    verl 0.9 expects them wherever TRL is installed; newer TRL has moved or dropped them.
    """
    installed = module.is_trl_available

    def has_value_heads() -> bool:
        for home in ("trl.experimental.ppo", "trl") if installed() else ():
            with suppress(ImportError):
                if hasattr(import_module(home), "AutoModelForCausalLMWithValueHead"):
                    return True
        return False

    module.is_trl_available = has_value_heads


def _trainers(module: Any) -> None:
    _load("entrocraft.verl.trainers")


def _engine(module: Any) -> None:
    _load("entrocraft.verl.engine").serve_sensitivity(module.FSDPEngineWithLMHead)


def _load(name: str) -> Any:
    try:
        return import_module(name)
    except Exception:
        logger.exception("no entropy control: %s cannot be imported", name)
        raise
