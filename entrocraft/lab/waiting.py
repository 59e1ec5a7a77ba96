"""Progress bar of work that usually takes a moment: it shows after five seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

_PATIENCE = 5.0

Item = TypeVar("Item")


def progress_bar(items: Iterable[Item] | None, what: str, total: int) -> tqdm[Item]:
    """Bar of tqdm on the main process's stderr, also for logs; without items it is updated by hand.

    Args:
        what: the work, e.g. "countdown: train problems".
        total: number of its parts.
    """
    return tqdm(
        items,
        what,
        total,
        delay=_PATIENCE,
        mininterval=0.5 if sys.stderr.isatty() else _PATIENCE,
        leave=False,
        disable=os.environ.get("RANK", "0") != "0",
    )
