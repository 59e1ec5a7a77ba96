"""Progress of work that usually takes a moment; for five seconds nothing is shown."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_PATIENCE = 5.0
_BETWEEN_LINES = 30.0
_BETWEEN_UPDATES = 0.5

Item = TypeVar("Item")


class Waiting:
    """Says how far work is, on stderr: one line that is written anew, or one every 30 seconds.

    Args:
        what: the work, e.g. "countdown: train problems".
        total: number of its parts.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self._start = time.monotonic()
        self._next = self._start + _PATIENCE
        self._before = 0
        self._quiet = os.environ.get("RANK", "0") != "0"
        self._open = False

    def __call__(self, done: int) -> None:
        """Show that so many parts are done, if it is time to."""
        now = time.monotonic()
        if not self._before:  # what came before the first part says nothing about the others
            self._start, self._before = now, done
        if self._quiet or now < self._next:
            return
        rewritten = sys.stderr.isatty()
        text = f"{self.what}: {done:,} of {self.total:,}"
        if done > self._before:
            left = (now - self._start) * (self.total - done) / (done - self._before)
            text += f", {left:.0f} s left"
        print(
            f"\r{text}\x1b[K" if rewritten else text, end="" if rewritten else "\n", file=sys.stderr
        )
        sys.stderr.flush()
        self._open = rewritten
        self._next = now + (_BETWEEN_UPDATES if rewritten else _BETWEEN_LINES)

    def close(self) -> None:
        """Remove the line."""
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def waiting_for(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Hand on the items and show how many of them are done."""
    waiting = Waiting(what, total)
    try:
        for done, item in enumerate(items):
            waiting(done)
            yield item
    finally:
        waiting.close()
