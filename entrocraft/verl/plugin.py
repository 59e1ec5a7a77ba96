"""The plug-in: import hooks that add entropy control to verl's modules."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import wrapt
from packaging.specifiers import SpecifierSet

__all__ = ["MODES", "SUPPORTED", "check_version", "install", "trainer_name"]

SUPPORTED = ">=0.9,<0.11"
"""Versions of verl that the plug-in knows."""

MODES = ("sync", "colocate_async", "separate_async")
"""verl's V1 trainers, each of which has a controlled one."""

logger = logging.getLogger("entrocraft.verl")


def trainer_name(mode: str) -> str:
    """Name under which the controlled trainer of a mode is registered with verl."""
    return f"entrocraft_{mode}"


def check_version() -> None:
    """Refuse a verl that the plug-in does not know.

    Raises:
        RuntimeError: names the version found and those supported.
    """
    try:
        found = version("verl")
    except PackageNotFoundError:
        raise RuntimeError(
            f"verl is imported but not installed, so its version is unknown; entrocraft knows verl "
            f"{SUPPORTED}: pip install 'verl{SUPPORTED}'"
        ) from None
    if not SpecifierSet(SUPPORTED).contains(found, prereleases=True):
        raise RuntimeError(
            f"verl {found} is installed, entrocraft knows verl {SUPPORTED}; install one of these "
            f"(pip install 'verl{SUPPORTED}'), or set VERL_USE_EXTERNAL_PLUGINS=none to run verl "
            "without entropy control"
        )


def install() -> None:
    """Register the trainers once verl's are imported, and extend the engine once it is.

    Nothing of verl is imported here, so that processes that need neither pay nothing.

    Raises:
        RuntimeError: a verl that the plug-in does not know; also logged, as verl swallows what a
            plug-in raises.
    """
    try:
        check_version()
    except RuntimeError as error:
        logger.error("no entropy control: %s", error)
        raise
    wrapt.register_post_import_hook(_value_heads, "verl.models.transformers.monkey_patch")
    wrapt.register_post_import_hook(_trainers, "verl.trainer.ppo.v1")
    wrapt.register_post_import_hook(_engine, "verl.workers.engine.fsdp.transformer_impl")


def _value_heads(module: Any) -> None:
    """Let verl patch TRL's value heads only where TRL still has them.

    verl 0.9 takes them for granted wherever TRL is installed, and entrocraft brings a newer TRL.
    """
    installed = module.is_trl_available

    def has_value_heads() -> bool:
        if not installed():
            return False
        for home in ("trl.experimental.ppo", "trl"):
            try:
                if hasattr(import_module(home), "AutoModelForCausalLMWithValueHead"):
                    return True
            except ImportError:
                continue
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
