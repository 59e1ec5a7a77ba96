"""Files by which a run is steered while it goes: what it is asked to do, and what it does.

Whoever steers writes `steer.json` beside the run, and nobody else does; the run reads it once a
batch and answers in `steered.json`, which it alone writes. Commands have growing numbers, so that
each is obeyed once. Nothing that is read is evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from entrocraft.storage import write_atomically

__all__ = [
    "ACTIONS",
    "STEERED_FILE",
    "Command",
    "Steered",
    "give_command",
    "read_command",
    "read_steered",
]

STEER_FILE, STEERED_FILE = "steer.json", "steered.json"
ACTIONS = ("run", "pause", "stop")
_LONGEST = 100_000  # characters of a file


@dataclass(frozen=True)
class Command:
    """What a run is asked to do.

    Attributes:
        number: larger than that of every command before.
        action: one of `ACTIONS`; "pause" waits before the next batch, "stop" ends after a batch.
        schedule: text of the schedule to follow from the next batch on; None keeps the present one.
    """

    number: int
    action: str = "run"
    schedule: str | None = None


@dataclass(frozen=True)
class Steered:
    """What a run says of itself.

    Attributes:
        number: of the latest command that it has read.
        state: "running", "paused", "stopped" on command, or "ended".
        step: optimizer steps taken.
        steps: of the whole run.
        schedule: that it follows; None without entropy control.
        initial: entropy of its first batch, nats per token, if known.
        error: why the latest command was refused.
        changes: (step, schedule) of every change until now.
    """

    number: int = 0
    state: str = "running"
    step: int = 0
    steps: int = 0
    schedule: str | None = None
    initial: float | None = None
    error: str | None = None
    changes: tuple[tuple[int, str], ...] = field(default=())

    def write(self, directory: Path) -> None:
        """Write it as `steered.json`."""
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / STEERED_FILE, json.dumps(asdict(self)) + "\n")


def give_command(directory: Path, action: str = "run", schedule: str | None = None) -> Command:
    """Write the next command for the run in a directory.

    Raises:
        ValueError: an unknown action, or files that cannot be read.
    """
    if action not in ACTIONS:
        raise ValueError(f"action is {action!r}; choose one of {', '.join(ACTIONS)}")
    before, read = read_command(directory), read_steered(directory)
    numbers = [found.number for found in (before, read) if found is not None]
    command = Command(max(numbers, default=0) + 1, action, schedule)
    write_atomically(directory / STEER_FILE, json.dumps(asdict(command)) + "\n")
    return command


def read_command(directory: Path) -> Command | None:
    """Return the latest command; None where none was given.

    Raises:
        ValueError: the file is no command; the message names it.
    """
    found = _read(directory / STEER_FILE)
    if found is None:
        return None
    command = Command(found.get("number", -1), found.get("action", "run"), found.get("schedule"))
    is_number = type(command.number) is int and command.number > 0
    is_schedule = command.schedule is None or isinstance(command.schedule, str)
    if not (is_number and command.action in ACTIONS and is_schedule):
        raise ValueError(
            f"{directory / STEER_FILE} holds {str(found)[:200]}; expected a number above 0, an "
            f"action of {', '.join(ACTIONS)}, and a schedule as text or null"
        )
    return command


def read_steered(directory: Path) -> Steered | None:
    """Return what the run has said of itself; None of a run that cannot be steered.

    Raises:
        ValueError: the file is something else; the message names it.
    """
    found = _read(directory / STEERED_FILE)
    if found is None:
        return None
    try:
        changes = tuple((int(step), str(text)) for step, text in found["changes"])
        return Steered(**{**found, "changes": changes, "number": int(found["number"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{directory / STEERED_FILE} is not what a run writes ({error!r}); delete it"
        ) from error


def _read(file: Path) -> Mapping[str, Any] | None:
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if len(text) <= _LONGEST else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read ({error}); correct or delete it") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no JSON object; correct or delete it")
    return found
